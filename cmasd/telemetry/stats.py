"""Counters of one engine, mergeable over actors and shards."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from cmasd.signals import COUNTERS, RowNumbers


@dataclass
class EngineStats:
    """What an engine has done so far; `a + b` is what both did."""

    iterations: int = 0
    """Verifier forwards."""
    row_iterations: int = 0
    """Live rows summed over iterations, without those that had finished before."""
    slot_iterations: int = 0
    """Slots summed over iterations, idle ones included."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    output_tokens: int = 0
    drafter_tokens: int = 0
    """Tokens that the drafter made, those that were not sent to the verifier included."""
    rollbacks: int = 0
    """Row-iterations with a rejected draft token."""
    drafting_row_iterations: int = 0
    """Row-iterations with at least one draft token."""
    busy_seconds: float = 0.0
    """Time inside `step`."""
    draft_seconds: float = 0.0
    """Part of it spent drafting; iterations that run ahead of the host are not divided, and add nothing."""
    small_tokens: int = 0
    """Output tokens that the small model of policy `stitch` said by itself."""
    small_forwards: int = 0
    """Its forwards."""
    idle_iterations: int = 0
    """Of the steps of policy `stitch`, those in which the verifier did not run."""
    switches: int = 0
    """Times that a row went from one of the two models to the other."""
    idle_row_iterations: int = 0
    """Live rows, summed over all its steps, that the verifier did not run for."""
    tail_seconds: float = 0.0
    """Part of it in which slots were empty, of engines that draft of known texts."""
    tail_saved_seconds: float = 0.0
    """About what longer drafts spared of that: iterations that drafts of the usual length would have taken more."""
    lookup_seconds: float = 0.0
    """Part of it spent on texts that are known already: finding drafts in them, following them, remembering them."""

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "EngineStats":
        """From `to_dict`; counters that an earlier version kept, and this one has not, are left out."""
        return cls(**{f.name: kept[f.name] for f in fields(cls) if f.name in kept})

    def add_rows(self, totals: Sequence[int]) -> None:
        """Rows are done, whose `COUNTERS` add up to these; their iterations were counted as they went."""
        for counter, total in zip(COUNTERS, totals, strict=True):
            if counter is not RowNumbers.iterations:
                setattr(self, counter.name, getattr(self, counter.name) + total)

    def __add__(self, other: Self) -> "EngineStats":
        return EngineStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def verified_tokens(self) -> int:
        """Tokens that went through the verifier while decoding: each row's last one and its draft."""
        return self.row_iterations + self.drafted_tokens

    @property
    def tokens_per_iteration(self) -> float:
        """Output tokens per row and verifier forward; 1 is plain decoding."""
        return self.output_tokens / self.row_iterations if self.row_iterations else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def rollback_rate(self) -> float:
        """Share of drafting row-iterations with a rejection."""
        return self.rollbacks / self.drafting_row_iterations if self.drafting_row_iterations else 0.0

    @property
    def lookup_share(self) -> float:
        """Of the time of an iteration, what known texts take."""
        return self.lookup_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def slot_occupancy(self) -> float:
        """Share of slots that held a row, over all iterations; a run's last rows leave slots empty, and count too.

        No part of a run is left out: where its input ran dry depends on when shards arrived, and differs every time.
        """
        live = self.row_iterations + self.idle_row_iterations
        return live / self.slot_iterations if self.slot_iterations else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and Arrow."""
        return asdict(self)
