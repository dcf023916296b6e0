"""Judged draft tokens, counted by who proposed them, by their place in the draft and by how sure the drafter was.

The accepted tokens of an iteration are judged and the first rejected one; what the verifier says of those behind it
means nothing. Counts are whole numbers that add up over rows, kept beside the totals in each output file's footer.
What the telemetry level does not hold is left empty: places need `iteration`, the others `token`.

Shapes: N judged tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cmasd.signals import FROM_COPY, FROM_DRAFT, FROM_MEMORY, FROM_PREVIOUS, FROM_SMALL, FROM_VERIFIER

Values = NDArray[Any]
Counts = tuple[tuple[int, int], ...]
"""Judged and accepted tokens, by a small whole number."""
SOURCES = {FROM_DRAFT: "model", FROM_COPY: "copy", FROM_MEMORY: "memory", FROM_PREVIOUS: "previous run"}
"""By `TokenTrace.source`."""
PARTS = 10
"""Of confidence, each as wide."""


@dataclass(frozen=True)
class Acceptance:
    """`a + b` is over the rows of both."""

    by_source: Counts = ()
    """By `TokenTrace.source`."""
    by_position: Counts = ()
    """By place in the draft, the first one at 0."""
    by_confidence: Counts = ()
    """By tenths of it; tokens of which nobody knows it are left out."""

    def __add__(self, other: Self) -> "Acceptance":
        return Acceptance(*(_added(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Sequence[int]]]) -> "Acceptance":
        """From what JSON makes of it."""
        return cls(**{name: tuple((judged, accepted) for judged, accepted in of) for name, of in values.items()})

    @classmethod
    def of(cls, table: pa.Table) -> "Acceptance":
        """Of a table in the output schema."""
        if "iteration_accepted" not in table.column_names:
            return cls()
        accepted_I, source_I = _flat(table, "iteration_accepted"), _flat(table, "iteration_rejected_source")
        is_rejected_I = source_I != FROM_VERIFIER
        reached = _count(accepted_I)[::-1].cumsum()[::-1][1:]
        by_position = _counts(reached, _count(accepted_I[is_rejected_I]))
        if "token_source" not in table.column_names:
            return cls(by_position=by_position)
        source_T, confidence_T = _flat(table, "token_source"), _flat(table, "token_confidence")
        is_draft_T = ~np.isin(source_T, (FROM_VERIFIER, FROM_SMALL))
        rejected = _flat(table, "iteration_rejected_confidence")[is_rejected_I]
        return cls(
            _counts(_count(source_T[is_draft_T]), _count(source_I[is_rejected_I])),
            by_position,
            _counts(_count(_tenths(confidence_T[is_draft_T])), _count(_tenths(rejected))),
        )

    def shown(self) -> dict[str, Any]:
        """For `summary.json`: of each source, place and part of confidence, what was judged and what was accepted."""
        names = [SOURCES.get(source, str(source)) for source in range(len(self.by_source))]
        places = [str(place + 1) for place in range(len(self.by_position))]
        parts = [f"{part / PARTS:.1f}-{(part + 1) / PARTS:.1f}" for part in range(len(self.by_confidence))]
        return {
            "source": _shares(names, self.by_source),
            "position": _shares(places, self.by_position),
            "confidence": _shares(parts, self.by_confidence),
        }


def _flat(table: pa.Table, name: str) -> Values:
    """All entries of a list column."""
    values: Values = pc.list_flatten(table[name]).to_numpy()
    return values


def _tenths(confidence_N: Values) -> Values:
    known = confidence_N[~np.isnan(confidence_N)]
    tenths: Values = np.minimum(known * PARTS, PARTS - 1)
    return tenths


def _count(number_N: Values) -> Values:
    counts: Values = np.bincount(number_N.astype(np.int64))
    return counts


def _counts(accepted: Values, rejected: Values) -> Counts:
    """By number, as far as either goes."""
    pairs = zip_longest(accepted.tolist(), rejected.tolist(), fillvalue=0)
    return tuple((yes + no, yes) for yes, no in pairs)


def _added(one: Counts, other: Counts) -> Counts:
    pairs = zip_longest(one, other, fillvalue=(0, 0))
    return tuple((judged + more, accepted + too) for (judged, accepted), (more, too) in pairs)


def _shares(names: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    return [
        {"of": name, "judged": judged, "accepted": accepted, "share": round(accepted / judged, 4)}
        for name, (judged, accepted) in zip(names, counts, strict=True)
        if judged
    ]
