"""The command line: picks the verb, and turns what goes wrong into one line and an exit code.

Each verb is a module of this package with `register(parser)` and `main(args) -> exit code`; only the one that is
asked for is imported, so that help is quick. Exit codes: 0 complete, 1 failed (a rerun resumes), 2 the input or the
configuration is at fault, 3 too many bad rows, 130 and 143 stopped by a signal.
"""

import argparse
import importlib
import importlib.util
import io
import os
import shlex
import sys
from collections.abc import Sequence

from cmasd import __version__
from cmasd.errors import CmasdError

VERBS = {
    "run": "Decode a corpus: start a run, or complete it.",
    "plan": "Show what a run would do, without doing it.",
    "status": "Show how far a run is, from its folder alone.",
    "report": "Write a page that shows how a run went, and what to do about it.",
    "audit": "Decode rows of a run again plainly: is every difference rounding, or is one a fault?",
    "calibrate": "Fit confidence to acceptance, from the telemetry of a run.",
    "compact": "Merge a run's many small output files into few large ones.",
    "train": "Train a model of a pair from a recipe.",
    "bench": "Measure engines side by side.",
    "compare": "Compare ways of decoding on a sample of a corpus: speed, quality, cost.",
    "tune": "Search the settings of confidence modulation for a corpus: speed against quality.",
}
NO_VERB, INTERRUPTED, TERMINATED = 2, 130, 143


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of one verb."""
    top = argparse.ArgumentParser(
        prog="cmasd",
        description="Batch inference with confidence-modulated speculative decoding.",
        epilog="cmasd VERB --help shows a verb's options. configs/reference.yaml lists every configuration key.",
    )
    top.add_argument("--version", action="version", version=f"cmasd {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in available():
        one = verbs.add_parser(name, help=VERBS[name], description=VERBS[name])
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == verb:
            importlib.import_module(f"jobs.{name}").register(one)
    return top


def parse(top: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Like `parse_args`, but overrides may follow options, which argparse refuses for a subcommand."""
    args, extra = top.parse_known_args(argv)
    strange = [word for word in extra if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    if strange:
        top.error(f"unrecognized arguments: {' '.join(strange)}")
    if extra:
        args.overrides = [*args.overrides, *extra]
    return args


def available() -> list[str]:
    """Verbs whose module is there."""
    return [name for name in VERBS if importlib.util.find_spec(f"jobs.{name}")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal cannot show must not end a run
    if not argv:
        # A script whose verb got lost must not go on as if something had been done: not 0.
        parser(None).print_help(sys.stderr)
        return NO_VERB
    verb = next((word for word in argv if not word.startswith("-")), None)
    args = parse(parser(verb if verb in available() else None), argv)
    try:
        return int(importlib.import_module(f"jobs.{args.verb}").main(args))
    except CmasdError as error:
        return failed(args.debug, str(error), error.exit_code)
    except KeyboardInterrupt:
        return stopped("interrupted", argv, INTERRUPTED)
    except Terminated:
        return stopped("terminated", argv, TERMINATED)
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: one line instead of a traceback
        lines = str(error).strip().splitlines() or [""]
        return failed(args.debug, f"{type(error).__name__}: {lines[0]} (--debug shows where)", 1)


def failed(debug: bool, message: str, code: int) -> int:
    """Say why on stderr; called while the exception is being handled."""
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def stopped(how: str, argv: Sequence[str], code: int) -> int:
    """Say how to go on."""
    kept = {
        "run": "finished shards are kept. Resume with",
        "compact": "merged files are kept, and no row is lost. Resume with",
        "train": "the last checkpoint is kept. Resume with",
    }
    print(
        f"{how}; {kept.get(argv[0], 'nothing was kept. Start again with')}: cmasd {shlex.join(argv)}", file=sys.stderr
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
