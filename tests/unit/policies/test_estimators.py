"""What estimators beyond confidence learn: from other signals, and how sure they are."""

import numpy as np
import pytest

from cmasd.policies.acceptance import Calibration
from cmasd.policies.base import Float64, Observation, Rule, beyond
from cmasd.policies.estimators import ESTIMATORS, BayesianCalibration, SignalsCalibration

MOST = 3


def drawn(rng: np.random.Generator, rows: int, told_by: str) -> tuple[Observation, Float64]:
    """Drafts of MOST tokens, all sent, and their true acceptance: by the confidence, or by the entropy alone."""
    signals_BK4 = rng.uniform(0.02, 0.98, (rows, MOST, 4))
    true_BK = signals_BK4[..., 0] if told_by == "confidence" else signals_BK4[..., 1]
    accepted_B = np.logical_and.accumulate(rng.random((rows, MOST)) < true_BK, axis=1).sum(1)
    full_B = np.full(rows, MOST)
    components_BK3 = signals_BK4[..., 1:]
    return Observation(
        full_B, accepted_B, signals_BK4[..., 0], full_B, 1.0, True, components_BK3=components_BK3
    ), true_BK


def rule_of(calibration: Calibration) -> Rule:
    never = np.full(MOST, -np.inf)
    numbers = calibration.slope, calibration.offsets_K
    return Rule(never, never, slope=numbers[0], offsets_K=numbers[1], weights_2=calibration.weights_2)


def error(calibration: Calibration, told_by: str) -> float:
    """Mean distance of what its rule thinks from the truth, on drafts that it has not seen."""
    fresh, true_BK = drawn(np.random.default_rng(99), 400, told_by)
    return float(abs(rule_of(calibration).acceptance(fresh.confidence_BK, fresh.components_BK3) - true_BK).mean())


def taught(kind: str, told_by: str, batches: int = 60, seed: int = 1) -> Calibration:
    rng, calibration = np.random.default_rng(seed), ESTIMATORS[kind](MOST)
    for _ in range(batches):
        calibration.observe([drawn(rng, 16, told_by)[0] for _ in range(2)])
    return calibration


@pytest.mark.parametrize("kind", sorted(ESTIMATORS))
def test_every_estimator_learns_what_confidence_tells(kind: str) -> None:
    assert error(taught(kind, "confidence"), "confidence") < 0.06


def test_signals_learn_what_confidence_does_not_tell() -> None:
    assert error(taught("logistic", "entropy"), "entropy") > 0.15
    assert error(taught("signals", "entropy"), "entropy") < 0.06


def test_remembered_rows_survive_as_the_rule_says() -> None:
    """What lengths are chosen by is what drafts are ended by."""
    rng, calibration = np.random.default_rng(3), SignalsCalibration(MOST)
    one, _ = drawn(rng, 64, "entropy")
    calibration.observe([one])
    survival_NK, _ = calibration.survival()
    assert calibration.weights_2 is not None
    assert abs(calibration.weights_2[0]) > 0.05
    assert survival_NK == pytest.approx(rule_of(calibration).statistics(one.confidence_BK, one.components_BK3))


def test_a_token_without_logits_is_estimated_by_confidence_and_position() -> None:
    calibration, nothing_BK3 = taught("signals", "entropy"), np.full((2, MOST, 3), np.nan)
    confidence_BK, rule = np.array([[0.9, 0.5, np.nan]] * 2), rule_of(calibration)
    assert (rule.acceptance(confidence_BK, nothing_BK3) == rule.acceptance(confidence_BK)).all()
    assert (beyond(confidence_BK, nothing_BK3) == 0).all()
    unknown, _ = drawn(np.random.default_rng(0), 2, "entropy")
    without = Observation(unknown.lengths_B, unknown.accepted_B, confidence_BK, unknown.drafted_B, 1.0, is_typical=True)
    calibration.observe([without])
    assert np.isfinite(calibration.offsets_K).all()


def test_a_single_token_is_thought_of_as_many_are() -> None:
    rule, (one, _) = rule_of(taught("signals", "entropy")), drawn(np.random.default_rng(5), 1, "entropy")
    assert one.components_BK3 is not None
    p_BK = rule.acceptance(one.confidence_BK, one.components_BK3)
    for place in range(MOST):
        components = one.components_BK3[0, place].tolist()
        assert rule.share(one.confidence_BK[0, place], place, components) == pytest.approx(p_BK[0, place])


def test_the_more_is_judged_the_surer_it_is() -> None:
    few, many = (taught("bayesian", "confidence", batches) for batches in (1, 40))
    assert isinstance(few, BayesianCalibration)
    assert isinstance(many, BayesianCalibration)
    deviations = [[one.deviation(0.0, place) for place in range(MOST)] for one in (few, many)]
    assert all(later < earlier for earlier, later in zip(*deviations, strict=True))
    assert deviations[1] == sorted(deviations[1]), "fewer drafts reach later places"


def test_what_nobody_has_seen_is_thought_nearer_to_a_half() -> None:
    """Four drafts whose first token was accepted: certain is nothing yet."""
    ones_B, confidence_BK = np.ones(4, dtype=np.int64), np.full((4, MOST), 0.9)
    seen = Observation(ones_B, ones_B, confidence_BK, ones_B, 1.0, is_typical=True)
    bayesian, plain = BayesianCalibration(MOST), Calibration(MOST)
    for one in (bayesian, plain):
        one.observe([seen])
    sure, unsure = rule_of(plain).acceptance(confidence_BK)[0], rule_of(bayesian).acceptance(confidence_BK)[0]
    assert (unsure > 0.5).all()
    assert (unsure < sure).all()


@pytest.mark.parametrize("kind", sorted(ESTIMATORS))
def test_more_drafts_at_once_than_are_remembered(kind: str) -> None:
    calibration, (one, _) = ESTIMATORS[kind](MOST), drawn(np.random.default_rng(2), 700, "confidence")
    calibration.observe([one])
    survival_NK, _ = calibration.survival()
    assert survival_NK.shape == (512, MOST)
    assert np.isfinite(survival_NK).all()
