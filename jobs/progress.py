"""Progress on stderr: one live line on a terminal, else a log line every ten seconds and every tenth of the way.

Stdout is left to the results.
"""

import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from cmasd.io.runs import Run
from cmasd.pipeline.run import Watcher
from cmasd.pipeline.tally import Progress
from jobs.tables import share

_log = logging.getLogger("cmasd.jobs")

LINE_EVERY_SECONDS = 10.0
LINE_EVERY_SHARE = 0.1


class Printer(Watcher):
    """Prints what a run tells."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._status: Any = None
        self._line_at = 0.0
        self._line_share = 0.0
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = self._stack.enter_context(Console(stderr=True).status("planning"))

    def planned(self, run: Run) -> None:
        """What there is, and what is left."""
        files, shards, todo = len(run.plan.files), sum(1 for _ in run.plan.shards()), len(run.todo)
        part = f"{shards - todo:,} of {shards:,} shards done" if todo < shards else f"{shards:,} shard(s)"
        print(
            f"{run.plan.rows:,} rows in {files:,} file(s), {part} -> {run.folder.address}", file=sys.stderr, flush=True
        )

    def stage(self, text: str) -> None:
        """A new stage."""
        if self._status is not None:
            self._status.update(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, progress: Progress) -> None:
        """Another shard."""
        line = progress_line(progress)
        if self._status is not None:
            self._status.update(line)
            return
        done = progress.rows_done / progress.rows_total
        late = time.monotonic() - self._line_at >= LINE_EVERY_SECONDS
        if late or done >= self._line_share + LINE_EVERY_SHARE or done == 1:
            self._line_at, self._line_share = time.monotonic(), done
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._stack.close()


class LogLines(Watcher):
    """Logs what a run tells; progress once per `LINE_EVERY_SECONDS`, and at the end."""

    def __init__(self) -> None:
        self._line_at = 0.0

    def planned(self, run: Run) -> None:
        """What there is, and what is left."""
        shards = sum(1 for _ in run.plan.shards())
        counts = {"rows": run.plan.rows, "files": len(run.plan.files), "shards": shards, "shards_todo": len(run.todo)}
        _log.info("planned", extra={"fields": counts})

    def stage(self, text: str) -> None:
        """A new stage."""
        _log.info(text)

    def progress(self, progress: Progress) -> None:
        """Another shard."""
        if progress.rows_done == progress.rows_total or time.monotonic() - self._line_at >= LINE_EVERY_SECONDS:
            self._line_at = time.monotonic()
            _log.info("progress", extra={"fields": asdict(progress)})


def progress_line(progress: Progress) -> str:
    """All figures on one line."""
    done = progress.rows_done / progress.rows_total
    eta = "?" if progress.eta_seconds is None else clock(progress.eta_seconds)
    return (
        f"{progress.rows_done}/{progress.rows_total} rows ({done:.0%}), "
        f"{progress.tokens_per_second:,.0f} tokens/s, acceptance {share(progress.acceptance_rate)}, "
        f"{progress.tokens_per_iteration:.2f} tokens/iteration, {progress.errors} errors, "
        f"{clock(progress.seconds)} elapsed, ETA {eta}"
    )


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
