"""Draft lengths against the formulas, as a drafter that asks after each token would get them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.config import Config, from_dict
from cmasd.policies import Policy, build_policy

CONFIDENCES = st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8)


def config(kind: str, **policy: float) -> Config:
    drafter = {"min_draft_tokens": 2, "max_draft_tokens": 8}
    return from_dict({"policy": {"kind": kind, **policy}, "drafter": drafter})


def asked(policy: Policy, confidences: list[float]) -> tuple[int, int]:
    """(tokens drafted, tokens sent) for one row."""
    scores_1K = torch.tensor([confidences])
    drafted = 1
    while drafted < policy.max_draft_tokens and bool(policy.go_on(scores_1K[:, :drafted])):
        drafted += 1
    return drafted, int(policy.keep(scores_1K[:, :drafted], torch.tensor([drafted])))


def test_plain_never_drafts() -> None:
    assert build_policy(config("plain")).max_draft_tokens == 0


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0])
def test_fixed_drafts_k_max(confidence: float) -> None:
    assert asked(build_policy(config("fixed")), [confidence] * 8) == (8, 8)


@settings(max_examples=25)
@given(CONFIDENCES, st.sampled_from([0.3, 1.0, 2.5]))
def test_paper_stops_at_the_length_that_the_mean_allows(confidences: list[float], alpha: float) -> None:
    """k_j = clip(floor(alpha * Cbar * k_max), k_min, k_max), Cbar over the tokens drafted so far."""
    drafted, sent = asked(build_policy(config("paper", alpha=alpha)), confidences)
    assert drafted == sent
    assert 2 <= drafted <= 8

    def allowed(count: int) -> tuple[int, int]:
        """Bounds of the formula's value around rounding of the mean."""
        mean = math.fsum(confidences[:count]) / count
        low, high = (math.floor(alpha * (mean + nudge) * 8) for nudge in (-1e-6, 1e-6))
        return min(max(low, 2), 8), min(max(high, 2), 8)

    for count in range(1, drafted):
        assert count < allowed(count)[1]
    if drafted < 8:
        assert drafted >= allowed(drafted)[0]


@pytest.mark.parametrize(("mean", "length"), [(0.0, 2), (0.3, 2), (0.5, 4), (0.8, 6), (1.0, 8)])
def test_paper_with_constant_confidence_is_the_printed_formula(mean: float, length: int) -> None:
    assert asked(build_policy(config("paper")), [mean] * 8) == (length, length)


@settings(max_examples=25)
@given(CONFIDENCES, st.sampled_from([0.0, 0.0625, 0.375, 0.875, 1.0]))
def test_survival_sends_the_prefix_that_survives(confidences: list[float], threshold: float) -> None:
    """Tokens are sent while prod c_i >= threshold; the one that falls under it was drafted in vain."""
    drafted, sent = asked(build_policy(config("survival", threshold=threshold)), confidences)
    products = torch.tensor(confidences).cumprod(0).tolist()
    survivors = 0
    while survivors < 8 and products[survivors] >= threshold:
        survivors += 1
    assert sent == survivors
    assert drafted == min(survivors + 1, 8)


@settings(max_examples=25)
@given(CONFIDENCES, CONFIDENCES, st.sampled_from(["fixed", "paper", "survival"]), st.integers(1, 7))
def test_a_decision_reads_no_later_confidence(one: list[float], other: list[float], kind: str, at: int) -> None:
    """Non-anticipating: what is decided about token `at` is the same whatever comes after it."""
    policy = build_policy(config(kind, threshold=0.1))
    changed = one[:at] + other[at:]
    assert bool(policy.go_on(torch.tensor([one[:at]]))) == bool(policy.go_on(torch.tensor([changed[:at]])))
    kept = [int(policy.keep(torch.tensor([scores]), torch.tensor([8]))) for scores in (one, changed)]
    assert min(kept[0], at) == min(kept[1], at)


@pytest.mark.parametrize("kind", ["fixed", "paper", "survival"])
def test_rows_are_decided_one_by_one(kind: str) -> None:
    policy = build_policy(config(kind, threshold=0.2))
    scores_BK = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)).sqrt()
    drafted_B = torch.randint(0, 9, (50,), generator=torch.Generator().manual_seed(1))
    together = policy.keep(scores_BK, drafted_B), policy.go_on(scores_BK[:, :3])
    for row in range(50):
        alone = slice(row, row + 1)
        assert int(together[0][row]) == int(policy.keep(scores_BK[alone], drafted_B[alone]))
        assert bool(together[1][row]) == bool(policy.go_on(scores_BK[alone, :3]))
    assert (together[0] <= drafted_B).all()
