"""What is learned from verdicts: which tokens count, the calibration of confidence, and the rows that it remembers."""

import math

import numpy as np
import pytest

from cmasd.policies.acceptance import Calibration
from cmasd.policies.base import Float64, Observation

SLOPE, OFFSETS_2 = 0.5, np.array([1.0, -0.5])
"""Of the made-up drafter: its log-odds are twice too wide, and its second token is worse than its first."""


def judged(
    confidence_BK: Float64, lengths: list[int], accepted: list[int], drafted: list[int] | None = None
) -> Observation:
    counts = [np.array(lengths), np.array(accepted), np.array(drafted or lengths)]
    return Observation(counts[0], counts[1], confidence_BK, counts[2], seconds=1.0, is_typical=True)


def true_acceptance(confidence_BK: Float64) -> Float64:
    p_BK: Float64 = 1 / (1 + np.exp(-SLOPE * np.log(confidence_BK / (1 - confidence_BK)) - OFFSETS_2))
    return p_BK


def drawn(rng: np.random.Generator, rows: int, most: int = 2) -> Observation:
    """Acceptance at the true probabilities; confidences that nobody judged are spoilt."""
    confidence_BK = rng.uniform(0.01, 0.99, (rows, 2))
    taken_BK = rng.random((rows, 2)) < true_acceptance(confidence_BK)
    accepted_B = np.logical_and.accumulate(taken_BK, axis=1)[:, :most].sum(1)
    confidence_BK[accepted_B == 0, 1] = 0.999
    return judged(confidence_BK, [most] * rows, accepted_B.tolist(), [2] * rows)


def test_before_anything_is_judged_it_is_hopeful() -> None:
    survival_NK, usual_K = Calibration(3).survival()
    assert (usual_K > 0.5).all()
    assert survival_NK[0] == pytest.approx(usual_K.cumprod())


def test_survival_starts_as_the_product_of_confidences() -> None:
    calibration = Calibration(2)
    calibration.observe([judged(np.array([[0.9, 0.5], [0.2, 0.999]]), [0, 0], [0, 0], [2, 2])])
    survival_NK, usual_K = calibration.survival()
    assert survival_NK == pytest.approx(np.array([[0.9, 0.45], [0.2, 0.2]]), abs=1e-3)
    assert usual_K == pytest.approx([0.55, 0.75], abs=1e-3)


def test_of_tokens_that_were_not_drafted_the_usual_is_assumed() -> None:
    """One row stopped after its first token, and no row drafted a third."""
    calibration = Calibration(3)
    confidence_BK = np.array([[0.9, 0.8, 0.0], [0.5, 0.0, 0.0]])
    calibration.observe([judged(confidence_BK, [0, 0], [0, 0], drafted=[2, 1])])
    survival_NK, usual_K = calibration.survival()
    assert usual_K == pytest.approx([0.7, 0.8, 0.8])
    assert survival_NK == pytest.approx(np.array([[0.9, 0.72, 0.576], [0.5, 0.4, 0.32]]))


def test_what_is_known_of_drafts_ends_with_the_most_that_was_sent() -> None:
    """Confidences are cut there; what lies behind is as usual, and not as likely as not."""
    calibration = Calibration(3)
    calibration.observe([judged(np.array([[0.9], [0.9]]), [0, 0], [0, 0], drafted=[3, 1])])
    survival_NK, usual_K = calibration.survival()
    assert usual_K == pytest.approx([0.9] * 3)
    assert survival_NK == pytest.approx(np.array([[0.9, 0.81, 0.729]] * 2))


def test_a_row_that_drafted_nothing_had_nothing_to_draft() -> None:
    calibration = Calibration(2)
    calibration.observe([judged(np.array([[0.9, 0.8], [0.9, 0.8]]), [0, 0], [0, 0], drafted=[2, 0])])
    survival_NK, usual_K = calibration.survival()
    assert survival_NK == pytest.approx(np.array([[0.9, 0.72], [0.0, 0.0]]))
    assert usual_K == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("most", [1, 2])
def test_it_is_calibrated_towards_the_truth(most: int) -> None:
    """Also where only the first token was ever sent: what nobody judged means nothing."""
    rng, calibration = np.random.default_rng(1), Calibration(2)
    probe_BK = np.array([[c, c] for c in (0.05, 0.3, 0.7, 0.95)])
    true_B = true_acceptance(probe_BK)[:, 0]
    before = abs(probe_BK[:, 0] - true_B).max()
    for _ in range(64):
        calibration.observe([drawn(rng, 16, most) for _ in range(4)])
    p_B = 1 / (
        1 + np.exp(-calibration.slope * np.log(probe_BK[:, 0] / (1 - probe_BK[:, 0])) - calibration.offsets_K[0])
    )
    assert abs(p_B - true_B).max() < 0.1 < before / 3
    if most == 2:
        assert calibration.offsets_K == pytest.approx(OFFSETS_2, abs=0.35)
    else:
        assert calibration.offsets_K[1] == pytest.approx(calibration.offsets_K[0]), (
            "as that before, as far as one knows"
        )


def test_a_drafter_without_confidence_is_judged_by_position_alone() -> None:
    rng, calibration, nothing_BK = np.random.default_rng(0), Calibration(2), np.full((64, 2), np.nan)
    for _ in range(32):
        first_B = rng.random(64) < 0.8
        accepted_B = first_B * (1 + (rng.random(64) < 0.3))
        calibration.observe([judged(nothing_BK, [2] * 64, accepted_B.tolist())])
    _, usual_K = calibration.survival()
    assert usual_K == pytest.approx([0.8, 0.3], abs=0.06)


def test_old_verdicts_are_forgotten() -> None:
    calibration, confidence_BK = Calibration(1), np.full((100, 1), 0.5)
    for accepted in (0, 1):
        for _ in range(20):
            calibration.observe([judged(confidence_BK, [1] * 100, [accepted] * 100)])
        _, usual_K = calibration.survival()
        assert abs(usual_K[0] - accepted) < 0.05


def test_narrow_and_wide_drafts_are_learned_from_together() -> None:
    calibration = Calibration(3)
    one, other = np.full((2, 1), 0.6), np.full((1, 3), 0.8)
    calibration.observe([judged(one, [0, 0], [0, 0], [1, 1]), judged(other, [0], [0], [3])])
    _, usual_K = calibration.survival()
    assert usual_K == pytest.approx([2 / 3, 0.8, 0.8])


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_certainty_does_not_break_the_fit(confidence: float) -> None:
    """Confidence 0 and 1 have infinite log-odds, and outcomes that are all alike have no finite fit."""
    calibration, confidence_BK = Calibration(3), np.full((8, 3), confidence)
    for _ in range(100):
        calibration.observe([judged(confidence_BK, [3] * 8, [int(3 * confidence)] * 8)])
    _, usual_K = calibration.survival()
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in usual_K)
    assert usual_K[0] == pytest.approx(confidence, abs=0.01)
