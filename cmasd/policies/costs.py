"""What an iteration costs, in seconds, by live rows and drafted tokens.

A table measured at start-up on the real models (`cmasd.engine.costs` fills it) gives the shape; what iterations really
take while running gives the level: the machine's load changes, and the engine adds work of its own.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

KEPT = 15
"""Latest iterations of a kind; the mean of their middle counts, since what disturbs an iteration lengthens it, while
some drafts do cost more than others."""
CUT = 6
"""One in so many of them at either end is left out of that mean."""
ENOUGH = 3
"""Iterations of a kind before they count more than the table."""
FORGET = 0.1
"""Share of the level's old value that a new iteration replaces."""


@dataclass(frozen=True)
class StepTable:
    """Seconds of one forward."""

    rows: tuple[int, ...]
    """Row counts, ascending."""
    verify: tuple[tuple[float, ...], ...]
    """By row count, then by window: [i][t] feeds t + 1 tokens to each of rows[i] rows."""
    draft: tuple[float, ...]
    """One forward of the drafter, by row count; zeros without a drafting model."""
    one_pass: bool = False
    """Whether that forward drafts all tokens, or one."""

    def seconds(self, rows: int, drafted: int) -> float:
        """Drafting `drafted` tokens for each row, then verifying them; between row counts by interpolation."""
        verify = np.interp(rows, self.rows, [row[drafted] for row in self.verify])
        forwards = min(drafted, 1) if self.one_pass else drafted
        return float(verify + forwards * np.interp(rows, self.rows, self.draft))


@dataclass
class IterationCosts:
    """The table, corrected by experience."""

    table: StepTable
    _seen: dict[tuple[int, int], deque[float]] = field(default_factory=dict)
    _middles: dict[tuple[int, int], float] = field(default_factory=dict)
    _from_table: dict[tuple[int, int], float] = field(default_factory=dict)
    _levels: dict[bool, float] = field(default_factory=dict)
    """Measured over table, for plain and for drafting iterations."""

    def seconds(self, rows: int, drafted: int) -> float:
        """Expected seconds of an iteration."""
        kind = _bucket(rows), drafted
        if kind not in self._middles and self.knows(rows, drafted):
            self._middles[kind] = _middle(self._seen[kind])
        if kind in self._middles:
            return self._middles[kind]
        level = self._levels.get(drafted > 0) or max(self._levels.values(), default=1.0)
        return level * self._expected(rows, drafted)

    def knows(self, rows: int, drafted: int) -> bool:
        """Whether enough iterations like it were measured."""
        return len(self._seen.get((_bucket(rows), drafted), ())) >= ENOUGH

    def observe(self, rows: int, drafted: int, seconds: float) -> None:
        """An iteration took this long."""
        kind = _bucket(rows), drafted
        self._seen.setdefault(kind, deque(maxlen=KEPT)).append(seconds)
        self._middles.pop(kind, None)
        level = seconds / self._expected(rows, drafted)
        old = self._levels.get(drafted > 0, level)
        self._levels[drafted > 0] = old + FORGET * (level - old)

    def forget(self, drafting: bool) -> None:
        """What was seen of drafting, or of plain, iterations was long ago: only those to come count."""
        for kind in [kind for kind in self._seen if (kind[1] > 0) == drafting]:
            del self._seen[kind]
            self._middles.pop(kind, None)
        self._levels.pop(drafting, None)

    def _expected(self, rows: int, drafted: int) -> float:
        """By the table, interpolated once."""
        if (rows, drafted) not in self._from_table:
            self._from_table[rows, drafted] = self.table.seconds(rows, drafted)
        return self._from_table[rows, drafted]


def _middle(seconds: Sequence[float]) -> float:
    """The trimmed mean of at least three."""
    cut = max(1, len(seconds) // CUT)
    return fmean(sorted(seconds)[cut : len(seconds) - cut])


def _bucket(rows: int) -> int:
    """Row counts that cost about the same: the next power of two."""
    return 1 << (rows - 1).bit_length()
