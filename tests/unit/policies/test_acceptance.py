"""What is learned from verdicts: which tokens count, the rates by position, and the calibration of confidence."""

import math

import pytest
import torch
from torch import Tensor

from cmasd.core import Draft, Verdict
from cmasd.policies.acceptance import (
    MEMORY,
    PRIOR_ACCEPTED,
    PRIOR_JUDGED,
    REFIT_EVERY,
    Calibration,
    Rates,
)
from tests.unit.policies.iterations import iteration


def rate(accepted: int, judged: int) -> float:
    return (accepted + PRIOR_ACCEPTED) / (judged + PRIOR_JUDGED)


def test_rates_count_up_to_the_first_rejection() -> None:
    """Rows: all three accepted; rejected at the second; one drafted and rejected; nothing drafted, for want of room."""
    rates = Rates(3)
    rates.observe(*iteration(torch.full((4, 3), 0.5), lengths=[3, 3, 1, 0], accepted=[3, 1, 0, 0]))
    assert rates.rates().tolist() == pytest.approx([rate(2, 4), rate(1, 2), rate(1, 1)])


def test_a_draft_that_ends_its_row_gives_one_token_less() -> None:
    """Both tokens of two rows are accepted, three are asked for: one row goes on, the other's second token ends it."""
    rates = Rates(3)
    rates.observe(*iteration(torch.full((2, 3), 0.5), lengths=[3, 2], accepted=[2, 2]))
    assert rates.rates().tolist() == pytest.approx([rate(2, 2), rate(1, 2), rate(0, 1)])


def test_before_anything_is_judged_the_rates_are_hopeful() -> None:
    assert Rates(2).rates().tolist() == [PRIOR_ACCEPTED / PRIOR_JUDGED] * 2


def test_survival_starts_as_the_product_of_confidences() -> None:
    confidence_BJ = torch.tensor([[0.9, 0.5], [0.2, 1.0]])
    survival_BJ = Calibration(4).survival(confidence_BJ)
    assert survival_BJ.tolist() == [pytest.approx(row, abs=2e-3) for row in ([0.9, 0.45], [0.2, 0.2])]


def test_a_drafter_without_confidence_is_judged_by_position_alone() -> None:
    """NaN counts as 1/2; the positions' own offsets then carry all that is known."""
    torch.manual_seed(0)
    calibration, nothing_BK = Calibration(2), torch.full((64, 2), torch.nan)
    assert calibration.survival(nothing_BK[:1]).tolist() == [[0.5, 0.25]]
    for _ in range(REFIT_EVERY):
        first_B = (torch.rand(64) < 0.8).long()
        accepted_B = first_B * (1 + (torch.rand(64) < 0.3).long())
        calibration.observe(*iteration(nothing_BK, [2] * 64, accepted_B.tolist()))
    survival_J = calibration.survival(nothing_BK[:1])[0].tolist()
    assert survival_J == pytest.approx([0.8, 0.24], abs=0.04)


SLOPE, OFFSETS = 0.5, (1.0, -0.5)
"""Of the made-up drafter: its log-odds are twice too wide, and its second token is worse than its first."""


def true_probability(confidence_B: Tensor, position: int) -> Tensor:
    return torch.sigmoid(SLOPE * torch.logit(confidence_B) + OFFSETS[position])


def miscalibrated(rows: int, generator: torch.Generator, after_rejection: bool) -> tuple[Draft, Verdict]:
    """Acceptance drawn at the true probabilities; `after_rejection` spoils the confidences that nobody judged."""
    confidence_BK = torch.rand(rows, 2, generator=generator) * 0.98 + 0.01
    chance_BK = torch.stack([true_probability(confidence_BK[:, j], j) for j in range(2)], dim=1)
    taken_BK = torch.rand(rows, 2, generator=generator) < chance_BK
    accepted_B = taken_BK.long().cumprod(1).sum(1)
    if after_rejection:
        confidence_BK[accepted_B == 0, 1] = 0.999
    return iteration(confidence_BK, [2] * rows, accepted_B.tolist())


@pytest.mark.parametrize("after_rejection", [False, True])
def test_survival_is_calibrated_towards_the_truth(after_rejection: bool) -> None:
    generator, calibration = torch.Generator().manual_seed(1), Calibration(2)
    probe_BJ = torch.tensor([[c, c] for c in (0.05, 0.3, 0.7, 0.95)])
    true_BJ = torch.stack([true_probability(probe_BJ[:, j], j) for j in range(2)], dim=1).cumprod(1)

    def error() -> float:
        return float(abs(calibration.survival(probe_BJ) - true_BJ.numpy()).max())

    before = error()
    for _ in range(2 * REFIT_EVERY):
        calibration.observe(*miscalibrated(64, generator, after_rejection))
    assert error() < 0.05 < before / 3


def test_old_verdicts_fade() -> None:
    """After as many rows as it remembers, e times as much counts what came last as what came before."""
    rates, confidence_BK = Rates(1), torch.full((128, 1), 0.5)
    for accepted in (0, 1):
        for _ in range(MEMORY // 128):
            rates.observe(*iteration(confidence_BK, [1] * 128, [accepted] * 128))
            rates.rates()
    new, old = rates.rates()[0], 1 - rates.rates()[0]
    assert new / old == pytest.approx(math.e, rel=0.05)


def test_all_but_the_latest_can_be_forgotten() -> None:
    """A thousand rejections then weigh as much as four, and a few stay a few."""
    rates = Rates(2)
    rates.observe(*iteration(torch.full((1000, 2), 0.5), [2] * 1000, [0] * 1000))
    for _ in range(2):
        rates.forget(4)
    rates.observe(*iteration(torch.full((1, 2), 0.5), [2], [2]))
    assert rates.rates().tolist() == pytest.approx([rate(1, 5), rate(1, 1)], rel=2e-3)


def test_the_order_and_grouping_of_verdicts_do_not_matter() -> None:
    """Drafts of different lengths, learned from together or one by one."""
    generator, together, alone = torch.Generator().manual_seed(2), Rates(3), Rates(3)
    for drafted in (3, 1, 2, 3, 2):
        accepted_B = torch.randint(0, drafted + 1, (5,), generator=generator)
        one = iteration(torch.full((5, drafted), 0.5), [drafted] * 5, accepted_B.tolist())
        together.observe(*one)
        alone.observe(*one)
        alone.rates()
    assert together.rates().tolist() == pytest.approx(alone.rates().tolist(), abs=0.01)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_certainty_does_not_break_the_fit(confidence: float) -> None:
    """Confidence 0 and 1 have infinite log-odds, and outcomes that are all alike have no finite fit."""
    calibration, confidence_BK = Calibration(3), torch.full((8, 3), confidence)
    for _ in range(3 * REFIT_EVERY):
        calibration.observe(*iteration(confidence_BK, [3] * 8, [int(3 * confidence)] * 8))
    survival_J = calibration.survival(confidence_BK[:1])[0].tolist()
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in survival_J)
    assert survival_J[0] == pytest.approx(confidence, abs=0.01)
