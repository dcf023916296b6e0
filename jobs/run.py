"""`cmasd run`: complete a run, show its progress on stderr, and close with a table, and one JSON line for programs.

The first SIGTERM or Ctrl-C lets the shards being decoded finish, for `limits.drain_seconds` at most; the second stops
at once. Either way the exit code is the signal's, and the same command resumes.
"""

import argparse
import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_config, add_json, print_json, read_config, wants_json

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.engine import Pair
    from cmasd.pipeline.drain import Drain


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("--quiet", action="store_true", help="print the JSON line only")
    add_json(parser)


def main(args: argparse.Namespace) -> int:
    """Run to the end."""
    from cmasd.config import to_yaml

    config = read_config(args)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    from cmasd.pipeline import logs
    from cmasd.pipeline.drain import Drain, Drained
    from cmasd.pipeline.run import Watcher, run
    from cmasd.reports.shown import shown_rows
    from jobs.ending import told
    from jobs.progress import LogLines, Printer
    from jobs.tables import baseline_table, rows_table, summary_table

    drain = Drain()
    stopping = Stopping(drain, config.limits.drain_seconds)
    logs_json = config.logging.format == "json"
    if logs_json:
        logs.configure(config)
    watcher = LogLines() if logs_json else Watcher() if args.quiet else Printer()
    with told(config) as summary:
        try:
            with stopping:
                summary |= run(config, compare, watcher, drain)
        except Drained:
            raise stopping.reason from None
        finally:
            if isinstance(watcher, Printer):
                watcher.close()
    if not (args.quiet or logs_json):
        print(rows_table(shown_rows(config, summary["rows"])), end="")
        for notice in summary["notices"]:
            print(f"notice: {notice}")
        print(summary_table(summary))
        if summary["baseline"]:
            print(baseline_table(summary["baseline"]))
    if args.quiet or logs_json or wants_json(args):
        print_json(summary)
    return 0


def compare(
    pair: "Pair", config: "Config", sources: list[list[int]], previous: list[list[int] | None] | None
) -> dict[str, Any]:
    """The check against AR decoding; runs where the models are."""
    from cmasd.evaluation.speed.against_ar import compare_with_ar

    return compare_with_ar(pair, config, sources, previous).to_dict()


class Stopping:
    """What signals do to a run."""

    def __init__(self, drain: "Drain", seconds: float) -> None:
        self._drain, self._seconds = drain, seconds
        self.reason: BaseException = KeyboardInterrupt()
        """What the process ends by."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        acts = {signal.SIGTERM: self._signalled, signal.SIGINT: self._signalled, signal.SIGALRM: self._late}
        self._before = {number: signal.signal(number, act) for number, act in acts.items()}

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, act in self._before.items():
            signal.signal(number, act)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        from jobs.main import Terminated

        self.reason = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if self._seconds <= 0 or not self._drain.ask():
            raise self.reason
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        note = f"finishing the shards being decoded, for {self._seconds:g} s at most; a second signal stops at once\n"
        os.write(2, note.encode())  # print may be under way already, and does not bear a second call

    def _late(self, number: int, frame: FrameType | None) -> None:
        raise self.reason
