"""How fast a way of decoding (an arm) is, measured, with how sure that is.

The load of a machine changes, and rows that are left at a list's end are not those it began with. So an arm's speed is
its lead over plain decoding, in two parts that Kalman filters follow. Its worth is the tokens of a row over what its
iterations cost by the table, in plain ones: no load changes that, and it is measured whenever the arm decodes. Its
level is what they really take over that, and over the same of plain ones: measured by pairs, an arm that is looked at
and the one in force just before. Variances grow with time, since texts and machines change, which says when to look.

Shapes: I iterations, M their rows, one after the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cmasd.policies.base import Float64, Int64, Observation
from cmasd.policies.costs import Curve, StepTable

DRIFT = 0.005
"""Of the log of a speed from one iteration to the next, in either direction: a fifth in 1,600 iterations."""


@dataclass
class Speed:
    """What is thought of a number that is followed."""

    mean: float
    """Of the log; before anything was measured, by table and calibration."""
    variance: float = 1.0
    """As of iteration `seen_at`; before anything was measured it may be 3 times more or less."""
    seen_at: int = 0

    @property
    def is_new(self) -> bool:
        """Whether nothing was measured yet."""
        return self.variance == 1.0 and self.seen_at == 0

    def doubt(self, iteration: int) -> float:
        """Variance by now."""
        return min(1.0, self.variance + DRIFT**2 * (iteration - self.seen_at))

    def learn(self, value: float, noise: float, iteration: int) -> None:
        """A measurement and its variance, weighed by how sure it is."""
        doubt = self.doubt(iteration)
        gain = doubt / (doubt + noise)
        self.mean += gain * (value - self.mean)
        self.variance, self.seen_at = (1 - gain) * doubt, iteration

    def doubt_more(self, change: float) -> None:
        """By what has changed, and has yet to be seen."""
        self.variance = min(1.0, self.variance + change**2)


class Belief(Protocol):
    """A log of a speed, and how sure it is."""

    @property
    def mean(self) -> float: ...

    def doubt(self, iteration: int) -> float:
        """Variance by now."""


@dataclass
class Lead:
    """Of an arm over plain decoding."""

    worth: Speed
    level: Speed = field(default_factory=lambda: Speed(0.0))
    moved: float = 0.0
    """Log of what iterations of the arm in force take now, over what they took when arms were compared: another load,
    or another cost of one of them."""

    beside: float = 0.0
    """Log of the seconds that it takes with what it needs beside iterations (a drafter reads prompts), over theirs."""

    @property
    def mean(self) -> float:
        return self.worth.mean - self.level.mean - self.beside

    def doubt(self, iteration: int) -> float:
        """Variance by now."""
        return min(1.0, self.worth.doubt(iteration) + self.level.doubt(iteration) + self.moved**2)


@dataclass(frozen=True)
class Plain:
    """Plain decoding leads itself by nothing."""

    mean: float = 0.0

    def doubt(self, iteration: int) -> float:
        """None."""
        return 0.0 * iteration


@dataclass(frozen=True)
class ArmMeasured:
    """Of some iterations of one arm."""

    worth: float
    """The log."""
    worth_noise: float
    """Its variance."""
    level: float
    """Seconds, over those by the table; the log of it."""
    level_noise: float
    """Its variance."""
    seconds: float
    """By the table, of an iteration."""


def overhead_seconds(plain: ArmMeasured, drafting: ArmMeasured) -> float:
    """By the table: what the engine adds to each iteration, by the line through what the two arms take.

    No more than a plain iteration, since what was measured long ago may have been another load.
    """
    taken, drafting_taken = (math.exp(one.level) * one.seconds for one in (plain, drafting))
    rise = drafting.seconds - plain.seconds
    if rise <= 0 or drafting_taken <= taken:
        return 0.0
    return min(max(0.0, taken * rise / (drafting_taken - taken) - plain.seconds), plain.seconds)


def beyond_table(plain: ArmMeasured) -> float:
    """The same before drafts were seen: all that plain iterations take beyond the table, be it a load's.

    Then the first drafts are rather too long, of which more is learned.
    """
    return min(max(0.0, math.exp(plain.level) - 1), 1.0) * plain.seconds


class PairedBatch:
    """Iterations of one arm and about as many rows, side by side."""

    def __init__(self, seen: Sequence[Observation], table: StepTable, curve: Curve) -> None:
        self.rows_I = np.array([len(one.lengths_B) for one in seen])
        starts_I = self.rows_I.cumsum() - self.rows_I
        self.accepted_M = np.concatenate([one.accepted_B for one in seen])
        self.sent = max(int(one.lengths_B.max()) for one in seen)
        """Tokens of any row, at most."""
        self.tokens_I = self.rows_I + np.add.reduceat(self.accepted_M, starts_I)
        self.seconds_I = np.array([one.seconds for one in seen])
        self.is_timed_I = np.array([one.is_typical for one in seen])
        """The first after a change of arm are not: what they need is in no cache. Where most are not, that is usual."""
        self.is_timed_I |= self.is_timed_I.sum() < len(seen) / 2
        self.plain_I = np.interp(self.rows_I, table.rows, [window[0] for window in table.verify])
        """Seconds of plain decoding by the table."""
        self.expected_I = self.plain_I * _slowdown(seen, self.rows_I, starts_I, curve)
        """Seconds by the table of what was drafted and sent."""

    def measured(self, least_rows: float = 0.0, latest: int = 0) -> ArmMeasured | None:
        """None where too few were timed to say.

        The level is that of iterations with `least_rows` or more, and of so many of the latest of them; 0: of all.
        """
        timed_T = np.flatnonzero(self.is_timed_I & (self.rows_I >= least_rows))[-latest:]
        level_I = self.seconds_I[timed_T] / self.expected_I[timed_T]
        count = len(level_I)
        if count < 3:
            return None
        level_I = without_outliers(level_I)
        level, tokens = level_I.mean(), self.tokens_I.sum() / self.rows_I.sum()
        slowdown = (self.expected_I / self.plain_I).mean()
        level_noise = ((level_I - level) ** 2).sum() / (count * (count - 2)) / level**2
        worth_noise = 0.0
        if self.sent:  # few rows that were alike by chance may have been none and all, too
            spread = ((1 + self.accepted_M - tokens) ** 2).sum() + self.sent**2 / 2
            worth_noise = spread / len(self.accepted_M) ** 2 / tokens**2
        worth = math.log(tokens / slowdown)
        seconds = float(self.expected_I[timed_T].mean())
        return ArmMeasured(worth, float(worth_noise), math.log(level), float(level_noise), seconds)

    def lost(self, best: float) -> float:
        """Seconds beyond those that its tokens would have taken at a speed of e^best plain ones by the table."""
        worth_I = self.tokens_I / self.rows_I * self.plain_I / math.exp(best)
        return float((self._undisturbed() - worth_I).sum())

    def lost_by_change(self) -> float:
        """Seconds of the iterations that were not timed, beyond what others like them took."""
        level_I = self._undisturbed() / self.expected_I
        if self.is_timed_I.all() or not self.is_timed_I.any():
            return 0.0
        beyond_I = (level_I - level_I[self.is_timed_I].mean()) * self.expected_I
        return float(beyond_I[~self.is_timed_I].sum())

    def _undisturbed(self) -> Float64:
        """(I,) seconds."""
        level_I = self.seconds_I / self.expected_I
        for alike_I in (self.is_timed_I, ~self.is_timed_I):
            if alike_I.any():
                level_I[alike_I] = without_outliers(level_I[alike_I])
        seconds_I: Float64 = level_I * self.expected_I
        return seconds_I


def without_outliers(level_I: Float64) -> Float64:
    """What disturbs an iteration lengthens it, whatever its arm: kept within three deviations of the median."""
    median = np.median(level_I)
    deviation = 1.5 * np.median(np.abs(level_I - median))
    kept: Float64 = level_I.clip(median - 3 * deviation, median + 3 * deviation)
    return kept


def _slowdown(seen: Sequence[Observation], rows_I: Int64, starts_I: Int64, curve: Curve) -> Float64:
    """(I,): seconds by the table, over those of a plain iteration."""
    drafted_M = np.concatenate([one.drafted_B for one in seen])
    if not drafted_M.any():
        return np.ones(len(rows_I))
    scale_I = curve.rows / rows_I
    sent_M = np.concatenate([one.lengths_B if one.nodes_B is None else one.nodes_B for one in seen])
    sent_I = np.add.reduceat(sent_M, starts_I) * scale_I
    seconds_I = curve.verify_N[sent_I.round().astype(int).clip(0, len(curve.verify_N) - 1)]
    most = 1 if curve.one_pass else int(drafted_M.max())
    for place in range(most):
        still_I = np.add.reduceat((drafted_M > place).astype(int), starts_I) * scale_I
        seconds_I = seconds_I + curve.draft_R[still_I.round().astype(int).clip(0, curve.rows)]
    slowdown_I: Float64 = seconds_I / curve.plain
    return slowdown_I
