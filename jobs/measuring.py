"""What the verbs that measure on this machine share: who takes part, where it was, and progress on stderr."""

import math
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.engine import Pair
    from cmasd.evaluation.speed.machine_load import Load

LINE_EVERY_SECONDS = 10.0
LEAST_SHARE = 0.05
"""Before that, an estimate would be mostly of the warm-up."""


def with_drafter(config: "Config") -> "Config":
    """Under policy `plain` no drafter would be loaded, yet the other engines are measured as well."""
    lacks_drafter = config.drafter_name is None
    if config.policy.kind != "plain" or lacks_drafter:
        return config
    return replace(config, policy=replace(config.policy, kind="fixed"))


def tell(pair: "Pair") -> None:
    """What a user should know of how the checkpoint is decoded."""
    for notice in pair.notices:
        print(notice, file=sys.stderr, flush=True)


def threads_of_actor(config: "Config") -> int:
    """As a run would use."""
    return max(1, math.ceil(config.actors.cpus_each))


def describe(line: str, on_gpu: bool) -> dict[str, Any]:
    """When, where and with what; `line` is the command line."""
    import torch

    from cmasd.io.provenance import provenance
    from jobs.machine import machine

    known = provenance()
    kept = ("python", "cmasd", "torch", "transformers", "numpy")
    versions = {name: known["versions"][name] for name in kept} | {"ctranslate2": None}
    with suppress(PackageNotFoundError):
        versions["ctranslate2"] = version("ctranslate2")
    return {
        "machine": machine(on_gpu),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "git_commit": known["git_commit"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": line,
    }


def about_line(report: dict[str, Any]) -> str:
    """Where and when, in one line."""
    return f"{report['machine']}, {report['threads']} threads, {report['date'][:10]}"


def busy_lines(load: "Load") -> list[str]:
    """One line where the machine was busy with other things."""
    if not load.is_busy:
        return []
    stolen = f", its hypervisor {load.stolen_share:.0%}" if load.stolen_share >= 0.005 else ""
    return [
        f"The machine was busy: other processes took {load.others_share:.0%} of its processors' time{stolen} (load "
        f"average {load.load_average:.1f}). Speeds are lower than on a free machine, and intervals wide."
    ]


def watch() -> Any:
    """Progress on stderr: one line that is overwritten on a terminal, else a line every ten seconds.

    Once closed, its `load` is what else the machine did meanwhile.
    """
    from cmasd.evaluation.speed.bench import BenchWatcher
    from cmasd.evaluation.speed.machine_load import Clocks, Load, load_between
    from jobs.progress import clock

    class Progress(BenchWatcher):
        def __init__(self) -> None:
            self.left_out: list[dict[str, str]] = []
            self.load: Load | None = None
            self._clocks = Clocks.now()
            self._started = self._line_at = time.monotonic()

        def skipped(self, engine: str, reason: str) -> None:
            self.left_out.append({"engine": engine, "reason": reason})
            print(f"{engine} is left out: {reason}", file=sys.stderr, flush=True)

        def progress(self, batch_size: int, engine: str, share: float) -> None:
            now, live = time.monotonic(), sys.stderr.isatty()
            if not live and now - self._line_at < LINE_EVERY_SECONDS:
                return
            self._line_at, seconds = now, now - self._started
            line = f"batch {batch_size}, {engine}: {share:.0%}, {clock(seconds)} elapsed"
            eta = clock(seconds * (1 - share) / share) if share >= LEAST_SHARE else "?"
            line += f", ETA {eta}"
            ends = {"end": "\033[K\r" if live else "\n"}
            print(line, file=sys.stderr, flush=True, **ends)

        def close(self) -> None:
            self.load = load_between(self._clocks, Clocks.now())
            if sys.stderr.isatty():
                print("\033[K", end="", file=sys.stderr, flush=True)

    return Progress()
