"""What forwards cost on this machine, in seconds, by live rows and tokens.

A table measured at start-up on the real models (`cmasd.engine.measured_costs` fills it). Iterations pay for each token
that is verified, once, and for the drafter's forwards over the rows that still go on; what they really take while
running, the engine's own work included, is learned apart (`cmasd.policies.speeds`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cmasd.policies.base import Float64


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

    @classmethod
    def of(cls, read: dict[str, Any]) -> "StepTable":
        """From JSON; raises KeyError or TypeError for anything but a table."""
        verify = tuple(tuple(row) for row in read["verify"])
        return cls(tuple(read["rows"]), verify, tuple(read["draft"]), bool(read["one_pass"]))

    def verify_seconds(self, rows: int, tokens: float) -> float:
        """`tokens` in all, of `rows` rows; between row counts and between windows by interpolation."""
        window_T = self._windows(rows)
        return float(np.interp(tokens / rows - 1, np.arange(len(window_T)), window_T))

    def draft_seconds(self, rows: int) -> float:
        """One forward of the drafter."""
        return float(np.interp(rows, self.rows, self.draft))

    def seconds(self, rows: int, drafted: int) -> float:
        """Drafting `drafted` tokens for each row, then verifying them."""
        forwards = min(drafted, 1) if self.one_pass else drafted
        return self.verify_seconds(rows, rows * (1 + drafted)) + forwards * self.draft_seconds(rows)

    def curve(self, rows: int) -> "Curve":
        """All that an iteration of so many rows can cost; what disturbs a measurement lengthens it, so the least."""
        window_T = self._windows(rows)
        window_T = np.minimum.accumulate(window_T[::-1])[::-1]
        more_N = np.arange(rows * (len(window_T) - 1) + 1) / rows
        verify_N = np.interp(more_N, np.arange(len(window_T)), window_T)
        draft_R = np.interp(np.arange(rows + 1), self.rows, self.draft)
        draft_R[0] = 0.0
        return Curve(rows, verify_N, draft_R, self.one_pass)

    def _windows(self, rows: int) -> Float64:
        """(T,) seconds of windows of 1, 2, ... tokens for each of so many rows."""
        return np.array([np.interp(rows, self.rows, column) for column in zip(*self.verify, strict=True)])


@dataclass(frozen=True)
class Curve:
    """The table at one row count, to be looked up by the thousand."""

    rows: int
    verify_N: Float64
    """By verified tokens beyond one a row; never falls."""
    draft_R: Float64
    """One forward of the drafter, by the rows that still go on; none costs nothing."""
    one_pass: bool

    def slower(self, seconds: float) -> "Curve":
        """By so much for every iteration."""
        return replace(self, verify_N=self.verify_N + seconds)

    @property
    def plain(self) -> float:
        """Seconds without a draft."""
        return float(self.verify_N[0])
