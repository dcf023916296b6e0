"""The driver's running account of one start of a run: what came in, how fast, and when it will be done."""

import time
from dataclasses import dataclass
from typing import Any

from cmasd.io.plan import Shard
from cmasd.pipeline.report import ShardReport
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals


@dataclass(frozen=True)
class Progress:
    """What is shown while a run goes on."""

    rows_total: int
    rows_done: int
    """Rows of earlier starts included."""
    errors: int
    """Failed rows, those of earlier starts included."""
    seconds: float
    """Since the first models were loaded; 0 until then."""
    tokens_per_second: float
    tokens_per_iteration: float
    acceptance_rate: float | None
    """Null where nothing was drafted."""
    eta_seconds: float | None
    """Null until the first shard is done."""


class Tally:
    """Adds up shard reports; a report that comes twice counts once."""

    def __init__(self, rows_total: int, before: Totals) -> None:
        self.rows_total = rows_total
        self.before = before
        self.now = Totals()
        self.notices: list[str] = []
        self.first_failure: str | None = None
        self._seen: set[Shard] = set()
        self._stats: dict[str, EngineStats] = {}
        self._started: float | None = None
        self._last: float = 0.0

    def add(self, report: ShardReport) -> None:
        """One more shard."""
        if report.shard in self._seen:
            return
        self._seen.add(report.shard)
        self.now += report.totals
        known = self._stats.get(report.actor)
        if known is None or known.iterations <= report.stats.iterations:
            self._stats[report.actor] = report.stats
        self.notices += [notice for notice in report.notices if notice not in self.notices]
        self.first_failure = self.first_failure or report.first_failure
        self._started = min(self._started or report.ready_at, report.ready_at)
        self._last = time.time()

    @property
    def errors(self) -> int:
        """Failed rows, those of earlier starts included."""
        return self.before.errors + self.now.errors

    @property
    def rows_left(self) -> int:
        """Rows of no shard that is known to be done."""
        return self.rows_total - self.before.rows - self.now.rows

    @property
    def ready_at(self) -> float | None:
        """When the first models were loaded, in seconds since the epoch; null until a shard has told."""
        return self._started

    @property
    def seconds(self) -> float:
        """From the first loaded models to the latest finished shard."""
        return 0.0 if self._started is None else max(1e-3, self._last - self._started)

    @property
    def stats(self) -> EngineStats:
        """Of all actors."""
        return sum(self._stats.values(), start=EngineStats())

    @property
    def actors(self) -> int:
        """Actors that finished a shard."""
        return len(self._stats)

    def progress(self) -> Progress:
        """For the screen."""
        done = self.before.rows + self.now.rows
        rate = self.now.rows / self.seconds if self.now.rows else None
        return Progress(
            rows_total=self.rows_total,
            rows_done=done,
            errors=self.errors,
            seconds=self.seconds,
            tokens_per_second=self.now.output_tokens / self.seconds if self.now.rows else 0.0,
            tokens_per_iteration=self.now.tokens_per_iteration,
            acceptance_rate=self.now.acceptance_rate if self.now.drafted_tokens else None,
            eta_seconds=(self.rows_total - done) / rate if rate else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """For the attempt's record."""
        return {
            "seconds": round(self.seconds, 3),
            "actors": self.actors,
            "totals": self.now.to_dict(),
            "stats": self.stats.to_dict(),
        }
