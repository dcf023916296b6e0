"""Costs of a corpus, with intervals that hold the truth."""

import math

import numpy as np
import pytest

from cmasd.evaluation.compare.corpus_cost import accelerator_hours, mean_estimate, widest
from cmasd.evaluation.speed.timing import Measured


def test_intervals_are_students() -> None:
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.high == pytest.approx(2 + 4.302653 / math.sqrt(3))
    assert estimate.relative_ci == pytest.approx(4.302653 / math.sqrt(3) / 2)
    assert mean_estimate([5.0]).relative_ci == math.inf
    for count, student in {2: 12.706, 7: 2.4469, 16: 2.1314, 31: 2.0423}.items():
        spread = [10.0 + (-1) ** i for i in range(count - count % 2)] + [10.0] * (count % 2)
        expected = student * math.sqrt(np.var(spread, ddof=1) / count)
        assert mean_estimate(spread).high - 10 == pytest.approx(expected, rel=1e-4)


def test_the_interval_holds_the_true_cost_in_95_of_100_corpora() -> None:
    random = np.random.default_rng(1)
    drawn = [mean_estimate(list(random.normal(10, 2, 4))) for _ in range(2000)]
    held = np.mean([one.low <= 10 <= one.high for one in drawn])
    assert 0.935 < held < 0.965


def test_hours_of_the_whole_corpus() -> None:
    one, other = Measured([36.0, 36.0], [1, 1]), Measured([36.0, 72.0], [1, 1])
    hours = accelerator_hours(one, chunk_rows=10, corpus_rows=5000)
    assert (hours.low, hours.value, hours.high) == (5.0, 5.0, 5.0)
    assert widest([one, other]) == pytest.approx(mean_estimate([36.0, 72.0]).relative_ci)
