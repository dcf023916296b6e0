"""Reads a run folder once, streaming, and keeps only what adds up: the figures behind every chart of a report.

Works for each `telemetry.level`, and on a run that is still going on: figures are then of the finished shards.
Memory grows with the longest row and the number of shards, not with rows.

Shapes: R rows, I iterations of all rows, N tokens.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmasd.config import from_dict
from cmasd.config.tree import Config
from cmasd.evaluation.calibration import judged
from cmasd.evaluation.calibration.judged import Array, Counts, Judged, Places, flat, lengths, places
from cmasd.evaluation.calibration.reliability import ScoredTokens
from cmasd.io.run_folder import RunFolder
from cmasd.io.status import ENDED, status
from cmasd.pipeline.summary import summarise
from cmasd.reports.picks import Picks
from cmasd.telemetry import clock as timing
from cmasd.telemetry import totals
from cmasd.telemetry.clock import ShardTiming
from cmasd.telemetry.schema import SOURCE_FIELD
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals

ROW_COLUMNS = (
    "id",
    "error",
    "num_output_tokens",
    "num_drafted_tokens",
    "num_accepted_tokens",
    "mean_gap_nats",
)
ITERATION_COLUMNS = ("iteration_draft_length", "iteration_accepted", "iteration_rejected_confidence")
MOST_ERROR_KINDS = 200
OTHER_ERRORS = "other errors"
_READERS = 16


class Histogram:
    """Sums by a small non-negative integer."""

    def __init__(self) -> None:
        self.sums: Array = np.zeros(0)

    def add(self, place_N: Places, weight_N: Any = None) -> None:
        """Grows as far as the largest integer."""
        more = np.bincount(place_N, weight_N, len(self.sums)).astype(np.float64)
        more[: len(self.sums)] += self.sums
        self.sums = more

    def at_least(self, size: int) -> Array:
        """(size,): the sum over places 1 and above, 2 and above, ..."""
        padded = np.zeros(max(size + 1, len(self.sums)))
        padded[: len(self.sums)] = self.sums
        reached: Array = padded[::-1].cumsum()[::-1][1 : size + 1]
        return reached

    def padded(self, size: int) -> Array:
        """(size,), zeros at the end."""
        return np.pad(self.sums, (0, max(0, size - len(self.sums))))[:size]


@dataclass(frozen=True)
class ShardFacts:
    """One finished shard, from its footer."""

    position: tuple[int, int]
    """(file, index)."""
    totals: Totals
    timing: ShardTiming | None
    """Null where an earlier version wrote the shard."""


@dataclass
class Iterations:
    """What iterations drafted and kept; counts of one per row and verifier forward."""

    drafted: Histogram = field(default_factory=Histogram)
    """Iterations by draft length."""
    accepted: Histogram = field(default_factory=Histogram)
    """Iterations by accepted draft tokens."""
    rejected: Histogram = field(default_factory=Histogram)
    """Iterations with a rejection, by the draft tokens accepted before it."""
    accepted_by_drafted: Histogram = field(default_factory=Histogram)
    """Accepted draft tokens by draft length."""
    rows_at: Histogram = field(default_factory=Histogram)
    """Rows that reach an iteration, by its index in the row."""
    drafted_at: Histogram = field(default_factory=Histogram)
    accepted_at: Histogram = field(default_factory=Histogram)

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of an output."""
        drafted_I, accepted_I = (flat(batch, name).astype(np.int64) for name in ITERATION_COLUMNS[:2])
        is_rejected_I = ~np.isnan(flat(batch, ITERATION_COLUMNS[2]))
        index_I = places(lengths(batch, ITERATION_COLUMNS[0]))
        self.drafted.add(drafted_I)
        self.accepted.add(accepted_I)
        self.rejected.add(accepted_I[is_rejected_I])
        self.accepted_by_drafted.add(drafted_I, accepted_I)
        self.rows_at.add(index_I)
        self.drafted_at.add(index_I, drafted_I)
        self.accepted_at.add(index_I, accepted_I)

    @property
    def positions(self) -> int:
        """Draft positions in use."""
        return max(0, len(self.drafted.sums) - 1)

    def by_position(self) -> tuple[Array, Array, Array]:
        """(positions,) each: tokens drafted, of those judged, of those accepted.

        The verdict on a token after a rejected one means nothing, and is not counted.
        """
        accepted = self.accepted.at_least(self.positions)
        return self.drafted.at_least(self.positions), accepted + self.rejected.padded(self.positions), accepted


@dataclass
class Evidence:
    """Everything a report says, as numbers."""

    folder: RunFolder
    config: Config
    manifest: dict[str, Any]
    state: dict[str, Any]
    """As `cmasd status` gives it."""
    attempts: list[dict[str, Any]]
    summary: dict[str, Any]
    """The run's own when it is complete; else of what is finished."""
    shards: list[ShardFacts]
    judged: Judged
    """Empty below telemetry level `token`."""
    picks: Picks
    iterations: Iterations = field(default_factory=Iterations)
    errors: Counter[str] = field(default_factory=Counter)
    """Failed rows by kind: the message with its numbers left out."""
    error_examples: dict[str, str] = field(default_factory=dict)
    """Identity of the first row of a kind."""
    gap_nats: float = 0.0
    """Summed over output tokens, but for rows of which the verifier has not seen all."""

    @property
    def level(self) -> str:
        """Telemetry level of the run."""
        return self.config.telemetry.level

    @property
    def is_complete(self) -> bool:
        """Whether all rows are there and the run has closed."""
        return bool(self.state["state"] in ENDED)

    @property
    def mean_gap_nats(self) -> float:
        """Per output token."""
        tokens = self.summary["output_tokens"]
        return self.gap_nats / tokens if tokens else 0.0

    @property
    def stats(self) -> EngineStats:
        """Of all starts."""
        return sum((EngineStats.of(attempt["stats"]) for attempt in self.attempts), start=EngineStats())

    @property
    def drafting_share(self) -> float | None:
        """Of the iterations of rows, those that drafted; null where none is recorded."""
        stats = self.stats
        return stats.drafting_row_iterations / stats.row_iterations if stats.row_iterations else None

    @property
    def score_in_force(self) -> str:
        """The key of `judged.counts` that holds what the run called confidence."""
        return self.config.score

    def sample(self, score: str, position: int | None = None) -> ScoredTokens | None:
        """Judged tokens of all rows by a score; null where the telemetry cannot tell it."""
        counts = self.judged.counts.get(score)
        return None if counts is None else ScoredTokens.of(_one_part(counts), 0, position)

    def add(self, batch: pa.RecordBatch, place: tuple[int, ...]) -> None:
        """Rows of an output."""
        gap_R, tokens_R = (
            batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            for name in ("mean_gap_nats", "num_output_tokens")
        )
        self.gap_nats += float(np.nan_to_num(gap_R) @ tokens_R)
        self._add_errors(batch)
        self.picks.add(batch, place)
        if self.level in ("iteration", "token"):
            self.iterations.add(batch)
        if self.level == "token":
            self.judged.add(batch.select(list(judged.COLUMNS)), place)

    def _add_errors(self, batch: pa.RecordBatch) -> None:
        failed = batch.filter(pc.is_valid(batch.column("error")))
        for identity, error in zip(*(failed.column(name).to_pylist() for name in ("id", "error")), strict=True):
            kind = re.sub(r"\d+", "#", error)[:160]
            if kind not in self.errors and len(self.errors) >= MOST_ERROR_KINDS:
                kind = OTHER_ERRORS
            self.errors[kind] += 1
            self.error_examples.setdefault(kind, str(identity))


def gather(address: str) -> Evidence:
    """Everything about a run; raises `RunFolderError` when there is none."""
    state = status(address)
    folder = RunFolder(address)
    manifest = folder.manifest()
    assert manifest is not None, "status raises without a manifest"
    config = from_dict(manifest["config"])
    attempts = folder.attempts()
    shards = _shards(folder)
    known = (state["summary"] if state["state"] in ENDED else None) or {}
    done = sum((shard.totals for shard in shards), start=Totals())
    evidence = Evidence(
        folder=folder,
        config=config,
        manifest=manifest,
        state=state,
        attempts=attempts,
        summary=known
        if known.keys() >= {"seconds_by_phase", "actor_hours"}
        else summarise(config, done, attempts, 0, known.get("baseline"), known.get("pair_notices", [])),
        shards=shards,
        # What counts here is the confidence that the run went by: calibrated, where it was.
        judged=Judged(replace(config, confidence=replace(config.confidence, calibration=None)), seed=0),
        picks=Picks(),
    )
    columns = dict.fromkeys(ROW_COLUMNS)
    columns |= dict.fromkeys(ITERATION_COLUMNS if evidence.level in ("iteration", "token") else ())
    columns |= dict.fromkeys(judged.COLUMNS if evidence.level == "token" else ())
    if manifest["config"].get("telemetry", {}).get("keep_source", "none") != "none":
        columns[SOURCE_FIELD.name] = None
    for place, batch in folder.read_outputs(list(columns), positions=[shard.position for shard in shards]):
        evidence.add(batch, place)
    return evidence


def _shards(folder: RunFolder) -> list[ShardFacts]:
    """Finished shards in input order; a file without totals is not whole, and is left out."""
    return [
        ShardFacts(position, Totals.from_dict(notes[totals.METADATA_KEY]), _timing(notes))
        for position, notes in folder.footers().items()
        if totals.METADATA_KEY in notes
    ]


def _timing(notes: dict[str, Any]) -> ShardTiming | None:
    return ShardTiming(**notes[timing.METADATA_KEY]) if timing.METADATA_KEY in notes else None


def _one_part(counts: Counts) -> Counts:
    """The parts of the rows, which only calibration needs apart, as one."""
    return Counts(*(total[None].sum(1) for total in (counts.tokens_PKJ, counts.accepted_PKJ, counts.sums_PKJ)))
