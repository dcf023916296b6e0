"""`cmasd run`: complete a run, show its progress, and close with a table and one JSON line."""

import argparse
import json
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_config, read_config

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.engine import Pair


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("--quiet", action="store_true", help="print the JSON line only")


def main(args: argparse.Namespace) -> int:
    """Run to the end."""
    from cmasd.config import to_yaml

    config = read_config(args)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    from cmasd.pipeline import logs
    from cmasd.pipeline.run import Watcher, run
    from jobs.ending import told
    from jobs.progress import LogLines, Printer
    from jobs.tables import baseline_table, summary_table

    signal.signal(signal.SIGTERM, _terminate)
    logs_json = config.logging.format == "json"
    if logs_json:
        logs.configure(config)
    watcher = LogLines() if logs_json else Watcher() if args.quiet else Printer()
    with told(config) as summary:
        try:
            summary |= run(config, compare, watcher)
        finally:
            if isinstance(watcher, Printer):
                watcher.close()
    if not (args.quiet or logs_json):
        for notice in summary["notices"]:
            print(f"notice: {notice}")
        print(summary_table(summary))
        if summary["baseline"]:
            print(baseline_table(summary["baseline"]))
    print(json.dumps(summary, ensure_ascii=False), flush=True)
    return 0


def compare(pair: "Pair", config: "Config", sources: list[list[int]]) -> dict[str, Any]:
    """The check against AR decoding; runs where the models are."""
    from cmasd.evaluation.baseline import compare_with_ar

    return compare_with_ar(pair, config, sources).to_dict()


def _terminate(number: int, frame: FrameType | None) -> None:
    from jobs.main import Terminated

    raise Terminated
