"""The fingerprint: two runs may share a folder exactly when their results would be the same."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from cmasd.config import Config, fingerprint, flatten, from_dict, identity
from cmasd.config.flat import WITHOUT_EFFECT_ON_RESULTS
from cmasd.config.rules import value_of

KEYS = dict(flatten(Config()))


def another_value(key: str) -> Any:
    """A value of the key's type that is not its default."""
    section, name = key.split(".")
    kind = get_type_hints(type(getattr(Config(), section)))[name]
    default = KEYS[key]
    literal = next((one for one in (kind, *get_args(kind)) if get_origin(one) is Literal), None)
    if literal is not None:
        return next(choice for choice in get_args(literal) if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    if isinstance(default, list):
        return [*default, *default[:1]] if default else [{float: 0.5, int: 7}.get(get_args(kind)[0], "extra")]
    return 7 if any(part in (int, float) for part in get_args(kind)) else "changed"


def changed(key: str) -> Config:
    section, name = key.split(".")
    return from_dict({section: {name: another_value(key)}})


@pytest.mark.parametrize("key", KEYS)
def test_the_fingerprint_changes_exactly_with_what_decides_results(key: str) -> None:
    other = changed(key)
    assert value_of(other, key) != KEYS[key]
    has_effect = key.split(".")[0] not in WITHOUT_EFFECT_ON_RESULTS
    assert (fingerprint(other) != fingerprint(Config())) == has_effect
    assert (key in identity(Config())) == has_effect


def test_what_may_change_between_a_run_and_its_resumption() -> None:
    expected = {"output", "actors", "logging", "notify", "limits", "baseline", "cost", "compare", "peers"}
    assert set(WITHOUT_EFFECT_ON_RESULTS) == expected


def test_a_fingerprint_is_sixteen_hex_digits_and_stable() -> None:
    assert fingerprint(Config()) == fingerprint(from_dict({}))
    assert len(fingerprint(Config())) == 16
    int(fingerprint(Config()), 16)
