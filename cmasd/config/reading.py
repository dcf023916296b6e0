"""YAML files and `key=value` overrides -> one checked, frozen `Config`.

The only door to omegaconf, and the only module of this room that loads it. Overrides are taken as text, so
`models.source_language=no` is Norwegian; in a YAML file, where `no` is a boolean, a boolean in place of text is
refused.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException, ValidationError

from cmasd.config.flat import flatten, to_dict
from cmasd.config.rules import check, value_of
from cmasd.config.tree import Config
from cmasd.errors import ConfigError

LISTED = ("drafter.kind",)
"""Keys that may hold a list, and mostly hold a word."""
AUTO = {"engine.slots": None}
"""Keys for which `auto` may be said, and what it stands for."""
MOVED = {"policy.quality_budget_nats_per_token": "verification.budget_nats_per_token, for verification.kind=budget"}
"""Keys of earlier versions, and what they are now."""

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
EXAMPLES = {int: ("1", "2"), float: ("0.5", "0.5"), str: ("a", "b")}
"""Of elements of lists."""

Tree = TypeVar("Tree")


def load(files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Config:
    """Merge files, then overrides, over the defaults; raises `ConfigError`."""
    config = load_tree(Config(), files, overrides)
    for key in ("input.path", "output.path"):
        if not value_of(config, key):
            raise ConfigError(f"{key}: is not set; expected a path. Add it to the file or pass {key}=PATH.")
    check(config)
    return config


def load_tree(defaults: Tree, files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Tree:
    """The same for any tree of frozen dataclasses, without rules between keys."""
    merged = OmegaConf.structured(defaults)
    known = dict(flatten(defaults))
    for file in files:
        for key, value in _leaves(_read(Path(file)), known):
            _set(merged, known, key, value, f"{file}: {key}")
    for override in overrides:
        _apply_override(merged, known, override)
    try:
        tree = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a reference to a key that is not there
        raise ConfigError(f"{error.full_key or 'configuration'}: {_first_line(error)}.") from None
    assert isinstance(tree, type(defaults)), "a structured root keeps its type"
    return tree


def _read(file: Path) -> dict[Any, Any]:
    try:
        with _yaml_errors(str(file)):
            plain = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file. `configs/` has examples.") from None
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: cannot be read: {_first_line(error)}.") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{file}: must hold `section:` blocks of `key: value`, got {type(plain).__name__}.")
    return plain


@contextmanager
def _yaml_errors(where: str) -> Iterator[None]:
    """Tell of malformed YAML in one line; yaml's errors share no public base with omegaconf's."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise ConfigError(f"{where}: is not valid YAML: {' '.join(str(error).split())}.") from None


def _leaves(tree: dict[Any, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        is_section = any(k.startswith(f"{key}.") for k in known)
        if isinstance(value, dict) and key not in known:
            yield from _leaves(value, known, f"{key}.")
        elif not (value is None and is_section):
            yield key, value


def _apply_override(merged: DictConfig, known: Mapping[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override}: is not an override; expected key=value, e.g. engine.slots=16.")
    value: Any = text
    if text in ("null", "~", ""):
        value = None
    elif text.startswith("[") and (isinstance(known.get(key), list) or key in LISTED):
        with _yaml_errors(key):
            value = OmegaConf.to_container(OmegaConf.create(text))
    elif type(known.get(key)) is int and text.lstrip("-").isdecimal():
        value = int(text)  # of some numbers only some are possible, and none of these is a text
    _set(merged, known, key, value, key)


def _set(merged: DictConfig, known: Mapping[str, Any], key: str, value: Any, where: str) -> None:
    if key in MOVED:
        raise ConfigError(f"{where}: unknown key. It is now {MOVED[key]}.")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else " `configs/reference.yaml` lists every key."
        raise ConfigError(f"{where}: unknown key.{hint}")
    value = AUTO[key] if value == "auto" and key in AUTO else value
    value = [value] if isinstance(known[key], list) and isinstance(value, str) else value
    booleans = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, bool)]
    if booleans and bool not in map(type, [known[key], *get_args(_type_of(merged, key))]):
        got = str(booleans[0]).lower()
        advice = "Quote it if it is text: YAML reads no, off, yes and on as booleans."
        raise ConfigError(f"{where}: must not be a boolean, got {got}. {advice}")
    if isinstance(value, str) and get_origin(kind := _type_of(merged, key)) is Literal:  # of numbers: `bits=4`
        value = next((part for part in get_args(kind) if _means(value, part)), value)
    section = key.rpartition(".")[0]
    node = OmegaConf.select(merged, section) if section else merged
    try:
        with flag_override(node, "readonly", False):
            OmegaConf.update(merged, key, value, merge=False)
    except ValidationError:
        got = "null" if value is None else f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value
        raise ConfigError(f"{where}: must be {_expected(merged, key)}, got {got}.") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_line(error)}.") from None


def _expected(merged: DictConfig, key: str) -> str:
    """What a key's type says, for people."""
    return _named(_type_of(merged, key))


def _type_of(merged: DictConfig, key: str) -> Any:
    kind: Any = OmegaConf.get_type(merged)
    for part in key.split("."):
        kind = get_type_hints(kind)[part]
    return kind


def _named(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(_spelt, parts))}"
    if get_origin(kind) is list:
        return f"a list like [{', '.join(EXAMPLES.get(parts[0], ('...',)))}]"
    if NoneType in parts:
        return f"{_named(next(part for part in parts if part is not NoneType))}, or null"
    return NAMES.get(kind, f"of type {kind}")


def _means(text: str, part: object) -> bool:
    """True and False in any case, as YAML reads them; all else as it is."""
    return _spelt(part) == (text.lower() if isinstance(part, bool) else text)


def _spelt(value: object) -> str:
    """As YAML spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def from_dict(tree: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; unknown keys raise `ConfigError`."""
    merged, known = OmegaConf.structured(Config()), dict(flatten(Config()))
    for key, value in _leaves(tree, known):
        _set(merged, known, key, value, key)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config), "the structured root is a Config"
    return config


def to_yaml(config: Config) -> str:
    """YAML that `load` reads back to an equal configuration."""
    return str(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))
