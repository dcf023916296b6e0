"""What is learned from verdicts: which tokens count, the rates by position, and the calibration of confidence."""

import math

import pytest
import torch
from torch import Tensor

from cmasd.core import Draft, Verdict
from cmasd.policies.acceptance import (
    PRIOR_ACCEPTED,
    PRIOR_JUDGED,
    REFIT_EVERY,
    SAMPLES,
    Acceptance,
)
from tests.unit.policies.iterations import iteration


def rate(accepted: int, judged: int) -> float:
    return (accepted + PRIOR_ACCEPTED) / (judged + PRIOR_JUDGED)


def test_rates_count_up_to_the_first_rejection() -> None:
    """Rows: all three accepted; rejected at the second; one drafted and rejected; nothing drafted, for want of room."""
    acceptance = Acceptance(3)
    acceptance.observe(*iteration(torch.full((4, 3), 0.5), lengths=[3, 3, 1, 0], accepted=[3, 1, 0, 0]))
    assert acceptance.rates().tolist() == pytest.approx([rate(2, 4), rate(1, 2), rate(1, 1)])


def test_a_draft_that_ends_its_row_gives_one_token_less() -> None:
    """Both tokens of two rows are accepted, three are asked for: one row goes on, the other's second token ends it."""
    acceptance = Acceptance(3)
    acceptance.observe(*iteration(torch.full((2, 3), 0.5), lengths=[3, 2], accepted=[2, 2]))
    assert acceptance.rates().tolist() == pytest.approx([rate(2, 2), rate(1, 2), rate(0, 1)])


def test_before_anything_is_judged_the_rates_are_hopeful() -> None:
    assert Acceptance(2).rates().tolist() == [PRIOR_ACCEPTED / PRIOR_JUDGED] * 2


def test_survival_starts_as_the_product_of_confidences() -> None:
    confidence_BJ = torch.tensor([[0.9, 0.5], [0.2, 1.0]])
    survival_BJ = Acceptance(4).survival(confidence_BJ)
    assert survival_BJ.tolist() == [pytest.approx(row, abs=2e-3) for row in ([0.9, 0.45], [0.2, 0.2])]


def test_a_drafter_without_confidence_is_judged_by_position_alone() -> None:
    """NaN counts as 1/2; the positions' own offsets then carry all that is known."""
    torch.manual_seed(0)
    acceptance, nothing_BK = Acceptance(2), torch.full((64, 2), torch.nan)
    assert acceptance.survival(nothing_BK[:1]).tolist() == [[0.5, 0.25]]
    for _ in range(REFIT_EVERY):
        first_B = (torch.rand(64) < 0.8).long()
        accepted_B = first_B * (1 + (torch.rand(64) < 0.3).long())
        acceptance.observe(*iteration(nothing_BK, [2] * 64, accepted_B.tolist()))
    survival_J = acceptance.survival(nothing_BK[:1])[0].tolist()
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
    generator, acceptance = torch.Generator().manual_seed(1), Acceptance(2)
    probe_BJ = torch.tensor([[c, c] for c in (0.05, 0.3, 0.7, 0.95)])
    true_BJ = torch.stack([true_probability(probe_BJ[:, j], j) for j in range(2)], dim=1).cumprod(1)

    def error() -> float:
        return float(abs(acceptance.survival(probe_BJ) - true_BJ.numpy()).max())

    before = error()
    for _ in range(2 * REFIT_EVERY):
        acceptance.observe(*miscalibrated(64, generator, after_rejection))
    assert error() < 0.05 < before / 3


def test_old_judgements_are_forgotten() -> None:
    acceptance, confidence_BK = Acceptance(1), torch.full((512, 1), 0.5)
    for accepted in (0, 1):
        for _ in range(SAMPLES // 512):
            acceptance.observe(*iteration(confidence_BK, [1] * 512, [accepted] * 512))
    assert acceptance.rates().tolist() == pytest.approx([rate(SAMPLES, SAMPLES)])


def test_the_ring_counts_what_it_holds() -> None:
    acceptance, generator = Acceptance(3), torch.Generator().manual_seed(2)
    kept: list[tuple[int, bool]] = []
    for rows in (5, SAMPLES, 7, 300, SAMPLES // 2 + 1, 2 * SAMPLES):
        accepted_B = torch.randint(0, 4, (rows,), generator=generator)
        acceptance.observe(*iteration(torch.full((rows, 3), 0.5), [3] * rows, accepted_B.tolist()))
        for accepted in accepted_B.tolist():
            kept += [(position, position < accepted) for position in range(min(accepted + 1, 3))]
        kept = kept[-SAMPLES:]
        for position, found in enumerate(acceptance.rates()):
            verdicts = [was_accepted for place, was_accepted in kept if place == position]
            assert found == pytest.approx(rate(sum(verdicts), len(verdicts)))


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_certainty_does_not_break_the_fit(confidence: float) -> None:
    """Confidence 0 and 1 have infinite log-odds, and outcomes that are all alike have no finite fit."""
    acceptance, confidence_BK = Acceptance(3), torch.full((8, 3), confidence)
    for _ in range(3 * REFIT_EVERY):
        acceptance.observe(*iteration(confidence_BK, [3] * 8, [int(3 * confidence)] * 8))
    survival_J = acceptance.survival(confidence_BK[:1])[0].tolist()
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in survival_J)
    assert survival_J[0] == pytest.approx(confidence, abs=0.01)
