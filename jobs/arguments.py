"""Arguments that several verbs take, and the JSON line that some of them end with."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print the closing JSON line on a terminal too, as into a file or pipe"
    )


def wants_json(args: argparse.Namespace) -> bool:
    """Programs read the last line; on a terminal it would be a wall of text below what was said in words."""
    return bool(args.json) or not sys.stdout.isatty()


def print_json(value: Mapping[str, Any]) -> None:
    """One line; letters beyond ASCII as they are where the output takes all of them."""
    from cmasd.pipeline.escaping import takes_all_letters

    print(json.dumps(value, ensure_ascii=not takes_all_letters(sys.stdout)), flush=True)
