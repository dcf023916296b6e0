"""What the measuring verbs share: files that must be writable later, the command line again, the record, the last line.

A record is the JSON of the last line, kept in a file.
"""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.arguments import print_json, wants_json

REPEATED = ("against",)
"""Options that are given once for each value."""


def check_files(args: argparse.Namespace, *options: str) -> None:
    """What is to be written later can be written, `plot` drawn; raises `ConfigError`."""
    from cmasd.errors import ConfigError
    from cmasd.evaluation.plots import check_plot

    for option in options:
        path: Path | None = getattr(args, option)
        if path and option == "plot":
            check_plot(path)
        if path and not path.parent.is_dir():
            raise ConfigError(f"--{option}: no such folder, got {path.parent}. Create it first.")


def finish(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    """The record, and the JSON line, where asked."""
    if args.record:
        args.record.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if wants_json(args):
        print_json(report)


def command(
    args: argparse.Namespace, verb: str, options: Sequence[str], defaults: Mapping[str, Any] | None = None
) -> str:
    """The command line that these arguments came from, or one that means the same.

    Options go by their names; those at a default that is not empty are left out by `defaults`.
    """
    positional = args.config if hasattr(args, "config") else args.run
    words = ["cmasd", verb, positional]
    for option in options:
        value = getattr(args, option.replace("-", "_"))
        if not value or (defaults and value == defaults.get(option)):
            continue
        if option in REPEATED:
            words += [word for one in value for word in (f"--{option}", one)]
        elif value is True:
            words.append(f"--{option}")
        else:
            words += [f"--{option}", ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    return shlex.join([*words, *getattr(args, "overrides", [])])
