"""Configuration: the tree of keys, its rules, and the loader."""

from cmasd.config.load import fingerprint, flatten, from_dict, identity, load, load_tree, to_dict, to_yaml
from cmasd.config.tree import Config

__all__ = ["Config", "fingerprint", "flatten", "from_dict", "identity", "load", "load_tree", "to_dict", "to_yaml"]
