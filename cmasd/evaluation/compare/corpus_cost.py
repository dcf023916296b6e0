"""From seconds of a sample to accelerator-hours and money for a whole corpus, with intervals.

Chunks of a stratified sample are like draws from the corpus, so the mean of their seconds per row, with Student's
interval, times the rows of the corpus is its cost on one accelerator. That is of decoding alone: start-up, reading and
writing come on top, while slots that run empty at the end of each chunk are counted although a long run has no such
ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from cmasd.evaluation.speed.timing import Measured

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class CostFigure:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def relative_ci(self) -> float:
        """Half the interval over the figure; infinite where the interval is unknown."""
        return (self.high - self.value) / self.value

    def times(self, factor: float) -> "CostFigure":
        """The same in another unit."""
        return CostFigure(self.value * factor, self.low * factor, self.high * factor)


def mean_estimate(values: Sequence[float]) -> CostFigure:
    """The mean of independent positive values; its interval is without end for a single one."""
    mean, count = fmean(values), len(values)
    half = float(stats.t.ppf(0.975, count - 1) * stats.sem(values)) if count > 1 else math.inf
    return CostFigure(mean, max(0.0, mean - half), mean + half)


def accelerator_hours(measured: Measured, chunk_rows: int, corpus_rows: float) -> CostFigure:
    """Of the whole corpus on one accelerator."""
    return mean_estimate(measured.seconds).times(corpus_rows / chunk_rows / SECONDS_PER_HOUR)


def widest(measured: Sequence[Measured]) -> float:
    """The widest relative interval of a cost among several engines."""
    return max(mean_estimate(one.seconds).relative_ci for one in measured)
