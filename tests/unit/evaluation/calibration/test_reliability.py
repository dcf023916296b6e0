"""Figures are those of their definitions."""

import numpy as np
import pytest

from cmasd.evaluation.calibration.reliability import (
    Group,
    ScoredTokens,
    area_under_curve,
    expected_calibration_error,
    falls,
    log_loss,
    reliability_curve,
)

RNG = np.random.default_rng(0)


def by_hand(rows: list[tuple[float, float, float]]) -> ScoredTokens:
    score, tokens, accepted = np.array(rows).T
    return ScoredTokens(score, tokens, accepted)


def test_expected_calibration_error_by_hand() -> None:
    sample = by_hand([(0.05, 10, 2), (0.95, 30, 24), (1.0, 10, 10)])
    assert expected_calibration_error(sample) == pytest.approx((10 * 0.15 + 40 * abs(38.5 / 40 - 34 / 40)) / 50)
    assert [(group.low, group.tokens) for group in reliability_curve(sample)] == [(0.0, 10), (0.9, 40)]


def test_area_under_curve_is_the_share_of_ordered_pairs() -> None:
    score = np.round(RNG.random(60), 1)
    accepted = (RNG.random(60) < score).astype(float)
    yes, no = score[accepted == 1], score[accepted == 0]
    pairs = [(a > r) + 0.5 * (a == r) for a in yes for r in no]
    assert area_under_curve(ScoredTokens(score, np.ones(60), accepted)) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(by_hand([(0.5, 3, 3)])))


def test_log_loss_by_hand() -> None:
    sample = by_hand([(0.8, 10, 7), (0.25, 4, 1)])
    expected = -(7 * np.log(0.8) + 3 * np.log(0.2) + np.log(0.25) + 3 * np.log(0.75)) / 14
    assert log_loss(sample) == pytest.approx(expected)


def test_a_fall_is_named_beyond_noise_alone() -> None:
    low, high, few = Group(0.1, 1000, 0.15, 0.6), Group(0.2, 1000, 0.25, 0.5), Group(0.3, 40, 0.35, 0.0)
    assert falls([low, high, few]) == [(low, high)]
    assert falls([low, Group(0.2, 100, 0.25, 0.5)]) == [], "two standard errors"
    assert falls([high, few], least_tokens=10) == [(high, few)]
    assert falls([Group(0.1, 1000, 0.15, 0.5), Group(0.2, 1000, 0.25, 0.6)]) == []
