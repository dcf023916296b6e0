"""Arguments that several verbs take."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmasd.config import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """`CONFIG key=value ...`; a first argument with `=` in it is an override of the defaults."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, e.g. engine.slots=16")


def read_config(args: argparse.Namespace) -> "Config":
    """The checked configuration; raises `ConfigError`."""
    from cmasd.config import load

    if "=" in args.config:
        return load([], [args.config, *args.overrides])
    return load([args.config], args.overrides)
