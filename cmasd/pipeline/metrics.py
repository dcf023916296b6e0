"""Prometheus metrics of actors and of the driver, through Ray's own exporter.

Each node's Ray serves them on its metrics port under `ray_<name>`, counters with `_total` behind. Nouns are vLLM's
where it has one. `METRICS` is the whole list: boards and alerts are tested against it. Engines count by themselves;
what they counted is passed on a few times per second, so that no token costs anything here.
Rows never depend on it: an exporter that fails is told nothing more, and the log says so once.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cmasd.pipeline.escaping import PRINTABLE, as_ascii
from cmasd.pipeline.tally import Progress
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals

_log = logging.getLogger(__name__)

UPDATED_EVERY_SECONDS = 0.5
MOST_OBSERVATIONS = 100
"""Iterations that go into the histogram per update; of more, evenly spaced ones do."""
ITERATION_BOUNDARIES_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Metric:
    """One name, and what it counts."""

    name: str
    """Without the exporter's `ray_`."""
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ("run", "actor")
    boundaries: tuple[float, ...] = ()
    """Of a histogram."""

    @property
    def exported(self) -> set[str]:
        """The names of its series in Prometheus."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return {f"ray_{self.name}{ending}" for ending in endings}


def _counter(name: str, description: str, *more_tags: str) -> Metric:
    return Metric(f"cmasd_{name}", "counter", description, ("run", "actor", *more_tags))


def _gauge(name: str, description: str) -> Metric:
    return Metric(f"cmasd_{name}", "gauge", description)


def _run_gauge(name: str, description: str) -> Metric:
    return Metric(f"cmasd_run_{name}", "gauge", description, ("run",))


ENGINE_COUNTERS = {
    "drafting_row_iterations": _counter("spec_decode_num_drafts", "Drafts: row-iterations with a draft token."),
    "drafted_tokens": _counter("spec_decode_num_draft_tokens", "Draft tokens."),
    "accepted_tokens": _counter("spec_decode_num_accepted_tokens", "Accepted draft tokens."),
    "rollbacks": _counter("spec_decode_num_rollbacks", "Drafts of which a token was rejected."),
    "small_tokens": _counter("stitch_num_small_tokens", "Output tokens that the small model said by itself."),
    "switches": _counter("stitch_num_switches", "Times that rows went from one of the two models to the other."),
    "output_tokens": _counter("generation_tokens", "Output tokens of finished rows."),
    "iterations": _counter("iterations", "Verifier forwards."),
    "row_iterations": _counter("row_iterations", "Live rows summed over verifier forwards."),
    "busy_seconds": _counter("busy_seconds", "Seconds that the engine worked."),
    "draft_seconds": _counter("draft_seconds", "Part of the busy seconds that went into drafting."),
}
"""By the field of `EngineStats` that they follow."""
RUNNING = _gauge("num_rows_running", "Rows in slots.")
WAITING = _gauge("num_rows_waiting", "Rows that wait in the actor for a slot.")
OCCUPANCY = _gauge("slot_occupancy", "Share of slots in use, 0 to 1.")
LOADING = _gauge("model_load_seconds", "Seconds from the actor's start until it could decode.")
ITERATION = Metric(
    "cmasd_iteration_seconds",
    "histogram",
    "Seconds of one iteration: admit, draft, verify, commit, collect.",
    boundaries=ITERATION_BOUNDARIES_SECONDS,
)
ROWS = _counter("rows", "Rows written, by outcome: stop, length or error.", "outcome")
PROMPT_TOKENS = _counter("prompt_tokens", "Input tokens of written rows.")
SHARDS = _counter("shards", "Shards written.")

RUN_GAUGES = {
    "rows_planned": _run_gauge("rows_planned", "Rows of the run."),
    "rows_done": _run_gauge("rows_done", "Rows with a result or a recorded error, of earlier starts too."),
    "rows_failed": _run_gauge("rows_failed", "Rows with a recorded error, of earlier starts too."),
    "actors_seen": _run_gauge("actors_seen", "Actors that wrote a shard since this start, ended ones included."),
    "eta_seconds": _run_gauge("eta_seconds", "Seconds until the run is complete, as estimated."),
    "last_shard_timestamp_seconds": _run_gauge("last_shard_timestamp_seconds", "When the driver last saw a shard."),
}
METRICS = (*ENGINE_COUNTERS.values(), RUNNING, WAITING, OCCUPANCY, LOADING, ITERATION, ROWS, PROMPT_TOKENS, SHARDS)
METRICS += tuple(RUN_GAUGES.values())


def exported_names() -> set[str]:
    """Every series that a query may name."""
    return set().union(*(metric.exported for metric in METRICS))


class _Series:
    """Ray's own metric objects, with this process's tags."""

    def __init__(self, metrics: Iterable[Metric], **tags: str) -> None:
        # Ray's tags are ASCII.
        self._tags = {name: as_ascii(text, PRINTABLE + " ") for name, text in tags.items()}
        self._of: dict[str, Any] = {}
        self._fails = False
        self._attempt(lambda: self._of.update({metric.name: _build(metric) for metric in metrics}))

    def add(self, metric: Metric, amount: float, **more: str) -> None:
        """Counters take no zeros."""
        if amount > 0:
            self._attempt(lambda: self._of[metric.name].inc(amount, tags={**self._tags, **more}))

    def set(self, metric: Metric, value: float) -> None:
        """Of a gauge."""
        self._attempt(lambda: self._of[metric.name].set(value, tags=self._tags))

    def observe(self, metric: Metric, values: Iterable[float]) -> None:
        """Into a histogram."""
        for value in values:
            self._attempt(lambda one=value: self._of[metric.name].observe(one, tags=self._tags))  # type: ignore[misc]

    def _attempt(self, tell: Callable[[], object]) -> None:
        """Nothing more is told after a failure, and nothing at all where no Ray is there to export it."""
        if self._fails or "ray" not in sys.modules:
            return
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - of whatever kind: a metric is not worth a row
            self._fails = True
            _log.warning("metrics: the exporter fails, and is told nothing more (%s: %s)", type(error).__name__, error)


def _build(metric: Metric) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(metric.name, metric.description, list(metric.boundaries), metric.tags)
    return {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.description, metric.tags)


class EngineMetrics:
    """Of one engine; used by its thread alone."""

    def __init__(self, run: str, actor: str) -> None:
        own = (*ENGINE_COUNTERS.values(), RUNNING, WAITING, OCCUPANCY, LOADING, ITERATION)
        self._series = _Series(own, run=run, actor=actor)
        self._told = EngineStats()
        self._told_at = 0.0
        self._busy_seconds = 0.0
        self._durations: list[float] = []

    def loaded(self, seconds: float) -> None:
        """The engine can decode."""
        self._series.set(LOADING, seconds)

    def stepped(self, stats: EngineStats, rows: int, slots: int) -> None:
        """After an iteration, with `rows` in the actor; passed on now and then, and when no row is left."""
        self._durations.append(stats.busy_seconds - self._busy_seconds)
        self._busy_seconds = stats.busy_seconds
        now = time.monotonic()
        if rows and now - self._told_at < UPDATED_EVERY_SECONDS:
            return
        self._told_at = now
        for name, metric in ENGINE_COUNTERS.items():
            self._series.add(metric, getattr(stats, name) - getattr(self._told, name))
        self._told = stats + EngineStats()
        running = min(rows, slots)  # the engine fills its slots as long as there are rows
        self._series.set(RUNNING, running)
        self._series.set(WAITING, rows - running)
        self._series.set(OCCUPANCY, running / slots)
        self._series.observe(ITERATION, self._durations[:: 1 + len(self._durations) // MOST_OBSERVATIONS])
        self._durations = []


class ShardMetrics:
    """Of the shards that one actor wrote; its threads share it."""

    def __init__(self, run: str, actor: str) -> None:
        self._series = _Series((ROWS, PROMPT_TOKENS, SHARDS), run=run, actor=actor)

    def written(self, totals: Totals) -> None:
        """One more shard."""
        for outcome, rows in (("stop", totals.stopped), ("length", totals.cut), ("error", totals.errors)):
            self._series.add(ROWS, rows, outcome=outcome)
        self._series.add(PROMPT_TOKENS, totals.input_tokens)
        self._series.add(SHARDS, 1)


class RunMetrics:
    """Of the run as its driver sees it."""

    def __init__(self, run: str) -> None:
        self._series = _Series(RUN_GAUGES.values(), run=run)

    def update(self, progress: Progress, actors_seen: int) -> None:
        """After another shard."""
        values = {
            "rows_planned": progress.rows_total,
            "rows_done": progress.rows_done,
            "rows_failed": progress.errors,
            "actors_seen": actors_seen,
            "eta_seconds": progress.eta_seconds,
            "last_shard_timestamp_seconds": time.time(),
        }
        for name, value in values.items():
            if value is not None:
                self._series.set(RUN_GAUGES[name], value)
