"""The record of one start of the driver in `attempts/`, renewed every few seconds, so that others can watch a run.

A killed driver leaves its last record behind: the time it took still counts in the run's totals.
"""

import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from cmasd.errors import CmasdError
from cmasd.io.run_folder import RunFolder
from cmasd.pipeline.tally import Tally

RENEWED_EVERY_SECONDS = 2.0


class Attempt:
    """Writes the record of this start, and on exit how it ended."""

    def __init__(self, folder: RunFolder, tally: Tally, began: float | None = None) -> None:
        """`began` is when the command did, in seconds since the epoch; null: now."""
        self.earlier = folder.attempts()
        self._folder = folder
        self.tally = tally
        self._number = 1 + max((int(record["number"]) for record in self.earlier), default=0)
        self._began = time.time() if began is None else began
        self._started_at = _now()
        self._written = 0.0

    def __enter__(self) -> Self:
        self.write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, CmasdError):
            self.write("failed", str(error))
        else:
            self.write("interrupted" if error else "finished")

    def renew(self) -> None:
        """Write, unless it was written a moment ago."""
        if time.monotonic() - self._written >= RENEWED_EVERY_SECONDS:
            self.write("running")

    def write(self, state: str, error: str | None = None) -> None:
        """`state` is running, finished, failed or interrupted."""
        self._written = time.monotonic()
        self._folder.write_attempt(self._number, self.record(state, error))

    def record(self, state: str, error: str | None = None) -> dict[str, Any]:
        """What is written."""
        ready = time.time() if self.tally.ready_at is None else self.tally.ready_at
        times: dict[str, Any] = {"started_at": self._started_at, "updated_at": _now()}
        times |= {"start_up_seconds": round(max(0.0, ready - self._began), 3)}
        before = {"errors_before": self.tally.before.errors}
        return {"number": self._number, "state": state, "error": error, **times, **before, **self.tally.to_dict()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
