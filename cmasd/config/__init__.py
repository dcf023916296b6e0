"""Configuration: the tree of keys, its rules, and the loader.

What reads YAML is resolved on first use, so that an engine runs where omegaconf is not installed. No submodule may be
named like one of these functions: importing it would put the module in the function's place.
"""

from typing import TYPE_CHECKING, Any

from cmasd.config.flat import fingerprint, flatten, identity, public_dict, to_dict
from cmasd.config.tree import Config

if TYPE_CHECKING:
    from cmasd.config.reading import from_dict, load, load_tree, to_yaml

__all__ = [
    "Config",
    "fingerprint",
    "flatten",
    "from_dict",
    "identity",
    "load",
    "load_tree",
    "public_dict",
    "to_dict",
    "to_yaml",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cmasd.config import reading

    return getattr(reading, name)
