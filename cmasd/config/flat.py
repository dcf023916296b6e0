"""A configuration as plain keys and values, and what of it identifies a run. Needs no omegaconf."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from cmasd.config.tree import Config

WITHOUT_EFFECT_ON_RESULTS = ("output", "actors", "logging", "notify", "limits", "baseline", "cost", "compare", "peers")
"""Sections that may change between a run and its resumption."""

SECRET = ("webhook", "command")
"""Keys of `notify` that may hold a token: their values are never stored."""


def flatten(tree: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a tree of dataclasses, in the order of its fields."""
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionaries, for JSON."""
    return dataclasses.asdict(config)


def public_dict(config: Config) -> dict[str, Any]:
    """Like `to_dict`, with `set` in place of values that may be secret."""
    tree = to_dict(config)
    tree["notify"] |= {key: "set" for key in SECRET if tree["notify"][key]}
    return tree


def identity(config: Config) -> dict[str, Any]:
    """The keys that decide the results, with their values."""
    return {key: value for key, value in flatten(config) if key.split(".")[0] not in WITHOUT_EFFECT_ON_RESULTS}


def fingerprint(config: Config) -> str:
    """Sixteen hex digits that change exactly when a key with an effect on results does."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]
