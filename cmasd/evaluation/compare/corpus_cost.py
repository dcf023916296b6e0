"""From seconds of a sample to accelerator-hours and money for a whole corpus, with intervals.

Chunks of a stratified sample are like draws from the corpus, so the mean of their seconds per row, with Student's
interval, times the rows of the corpus is its cost on one accelerator. That is of decoding alone: start-up, reading and
writing come on top, while slots that run empty at the end of each chunk are counted although a long run has no such
ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from cmasd.evaluation.speed.timing import Measured

SECONDS_PER_HOUR = 3600
STUDENT_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""Quantiles of Student's t at 0.975 by degrees of freedom, where the expansion below is off by more than 0.1 %."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def relative_ci(self) -> float:
        """Half the interval over the figure; infinite where the interval is unknown."""
        return (self.high - self.value) / self.value

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent positive values; its interval is without end for a single one."""
    mean, count = fmean(values), len(values)
    half = student_95(count - 1) * stdev(values) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(mean, max(0.0, mean - half), mean + half)


def student_95(freedom: int) -> float:
    """Student's t at 0.975, by the Cornish-Fisher expansion where it is close."""
    z = NormalDist().inv_cdf(0.975)
    close = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    close += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return STUDENT_95.get(freedom, close)


def accelerator_hours(measured: Measured, chunk_rows: int, corpus_rows: float) -> Estimate:
    """Of the whole corpus on one accelerator."""
    return mean_estimate(measured.seconds).times(corpus_rows / chunk_rows / SECONDS_PER_HOUR)


def widest(measured: Sequence[Measured]) -> float:
    """The widest relative interval of a cost among several engines."""
    return max(mean_estimate(one.seconds).relative_ci for one in measured)
