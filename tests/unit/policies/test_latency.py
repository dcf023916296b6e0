"""Prices of forwards: a line is found again, nothing costs less than nothing, and a row pays for what it read."""

import numpy as np
import pytest

from cmasd.policies.latency import ForwardPrice, Latency, PricePoint
from cmasd.policies.router import FEATURES, Decisions


def test_a_line_is_found_again() -> None:
    true = ForwardPrice(0.5, 0.25, 0.002)
    points = [PricePoint(t, p, true.step + true.token * t + true.place * p) for t in (1, 2, 5) for p in (0, 16, 100)]
    found = ForwardPrice.fit(points)
    assert vars(found) == pytest.approx(vars(true))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([PricePoint(1, 16, 2.0), PricePoint(1, 100, 2.0)], ForwardPrice(2.0, 0.0, 0.0)),
        ([PricePoint(1, 16, 2.0), PricePoint(1, 116, 1.0)], ForwardPrice(1.5, 0.0, 0.0)),
        (
            [PricePoint(1, 16, 2.0), PricePoint(3, 16, 4.0), PricePoint(1, 116, 1.0), PricePoint(3, 116, 3.0)],
            ForwardPrice(0.5, 1.0, 0.0),
        ),
    ],
)
def test_what_would_cost_less_than_nothing_costs_nothing(points: list[PricePoint], expected: ForwardPrice) -> None:
    assert vars(ForwardPrice.fit(points)) == pytest.approx(vars(expected), abs=1e-9)


def row(is_large: list[bool], places: list[int], read: list[int]) -> Decisions:
    count = len(is_large)
    flags, zeros = np.zeros(count, bool), np.zeros(count, np.int64)
    numbers = np.array(places), zeros, np.array(is_large), flags, flags, np.array(read)
    return Decisions(zeros, *numbers, np.zeros((count, len(FEATURES))))


def test_a_row_pays_for_the_steps_of_both_and_for_what_they_read() -> None:
    prices = Latency(small=ForwardPrice(1.0, 0.0, 0.1), large=ForwardPrice(10.0, 1.0, 0.01))
    small_alone = row([False, False], [5, 6], [1, 1])
    assert prices.stitched(small_alone, prompt=5) == pytest.approx(2 * 1.0 + 0.1 * (4 + 5))
    both = row([False, False, True], [5, 6, 6], [1, 1, 2])
    large = 10.0 + 1.0 * 2 + 0.01 * 4
    assert prices.stitched(both, prompt=5) == pytest.approx(2.0 + 0.1 * (4 + 5) + 1.0 * 5 + large)
    assert prices.alone(prompt=5, said=2) == pytest.approx(5.0 + 2 * 11.0 + 0.01 * (5 + 6))
    assert Latency.of(prices.as_dict()) == prices
