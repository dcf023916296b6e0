"""Maps come near the truth that samples were drawn from."""

from typing import Any

import numpy as np
import pytest
import torch

from cmasd.confidence import CalibrationMap
from cmasd.errors import RunFolderError
from cmasd.evaluation.calibration.fit import AS_IS, fit, fit_isotonic, fit_logistic
from cmasd.evaluation.calibration.reliability import (
    ScoredTokens,
)
from tests.unit.evaluation.calibration.drawn import judged_from


def drawn(tokens: int, truth: CalibrationMap, seed: int = 0) -> ScoredTokens:
    """Uniform scores; each token is accepted with the probability that the map gives its score."""
    rng = np.random.default_rng(seed)
    score_N = np.sort(rng.random(tokens))
    accepted_N = rng.random(tokens) < truth(torch.from_numpy(score_N)).numpy()
    return ScoredTokens(score_N, np.ones(tokens), accepted_N.astype(float))


def by_hand(rows: list[tuple[float, float, float]]) -> ScoredTokens:
    score, tokens, accepted = np.array(rows).T
    return ScoredTokens(score, tokens, accepted)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.4, -0.8), (2.5, 1.5), (0.0, 0.3)])
def test_platt_finds_slope_and_offset(a: float, b: float) -> None:
    found = fit_logistic(drawn(60_000, CalibrationMap("platt", a=a, b=b)), with_offset=True)
    assert [found.a, found.b] == pytest.approx([a, b], abs=0.06)


def test_temperature_has_no_offset() -> None:
    found = fit_logistic(drawn(60_000, CalibrationMap("platt", a=0.4)), with_offset=False)
    assert found.a == pytest.approx(0.4, abs=0.02)
    assert found.b == 0.0


def test_a_score_that_says_the_opposite_becomes_the_accepted_share() -> None:
    falling = by_hand([(0.2, 50, 40), (0.8, 50, 20)])
    found = fit_logistic(falling, with_offset=True)
    assert [found.a, found.b] == pytest.approx([0.0, np.log(0.6 / 0.4)])
    assert fit_logistic(falling, with_offset=False) == CalibrationMap("platt", a=0.0, b=0.0)


@pytest.mark.parametrize("accepted", [0.0, 50.0])
def test_a_sample_of_one_kind_does_not_break_a_fit(accepted: float) -> None:
    sample = by_hand([(0.2, 50, accepted), (0.8, 50, accepted)])
    for found in (fit_logistic(sample, with_offset=True), fit_isotonic(sample)):
        mapped = sample.mapped(found).score_J
        assert np.isfinite(mapped).all()
        assert abs(mapped.mean() - accepted / 50) < 0.1


def test_isotonic_never_falls_and_comes_near_any_monotone_truth() -> None:
    truth = CalibrationMap("isotonic", x=(0.0, 0.4, 0.6, 1.0), y=(0.05, 0.1, 0.9, 0.95))
    found = fit_isotonic(drawn(60_000, truth))
    assert list(found.x) == sorted(set(found.x))
    assert list(found.y) == sorted(found.y)
    assert len(found.x) <= 64
    grid = torch.linspace(0.02, 0.98, 200, dtype=torch.float64)
    assert (found(grid) - truth(grid)).abs().max() < 0.06


def test_isotonic_pools_what_falls() -> None:
    found = fit_isotonic(by_hand([(0.1, 10, 6), (0.3, 10, 2), (0.5, 10, 4), (0.9, 10, 9)]))
    assert found.y == pytest.approx((0.4, 0.9))
    assert found.x == pytest.approx((0.3, 0.9))
    falling = fit_isotonic(by_hand([(0.1, 10, 9), (0.9, 10, 1)]))
    assert falling == CalibrationMap("isotonic", x=(0.0, 1.0), y=(0.5, 0.5))


def test_the_better_score_comes_first_and_its_held_out_figures_improve() -> None:
    sharp = CalibrationMap("isotonic", x=(0.0, 0.69, 0.71, 1.0), y=(0.02, 0.05, 0.95, 0.98))
    best, other, fine = fit(
        judged_from({"margin": CalibrationMap("platt", a=0.3, b=-1), "softmax": sharp, "entropy": AS_IS}), "run"
    )
    assert [one.score for one in (best, other, fine)] == ["softmax", "entropy", "margin"]
    assert best.method == "isotonic"
    assert best.before.ece > 0.1
    assert best.after.ece < 0.03
    assert best.after.auc == pytest.approx(best.before.auc, abs=2e-3)
    assert other.after.ece <= other.before.ece + 0.01
    for one in (best, other, fine):
        assert len(one.positions_before) == len(one.positions_after) == 2
        assert sum(quality.tokens for quality in one.positions_after) == one.after.tokens
        assert sum(group.tokens for group in one.after.curve) == one.after.tokens


def test_scores_that_are_calibrated_already_stay_about_as_they_are() -> None:
    [one] = fit(judged_from({"max_prob": AS_IS}), "run")
    assert one.after.ece < 0.02
    assert abs(one.after.log_loss_nats - one.before.log_loss_nats) < 2e-3


def test_positions_without_tokens_are_null_in_json() -> None:
    judged = judged_from({"max_prob": AS_IS})
    counts = judged.counts["max_prob"]
    for total in (counts.tokens_PKJ, counts.accepted_PKJ, counts.sums_PKJ):
        total[:, 1] = 0
    plain: Any = fit(judged, "run")[0].to_dict()
    assert plain["positions_after"][1]["tokens"] == 0
    assert plain["positions_after"][1]["ece"] is None
    assert plain["positions_after"][0]["ece"] < 0.1


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(
        RunFolderError, match=r"runs/x: holds too few judged draft tokens .*got 40; expected at least 200"
    ):
        fit(judged_from({"max_prob": AS_IS}, tokens=40), "runs/x")
