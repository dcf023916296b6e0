"""Draft lengths against the formulas, as a drafter that asks after each token would get them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.config import Config, from_dict
from cmasd.policies import Policy, build_policy
from cmasd.policies.base import Rule

CONFIDENCES = st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8)
SLOPE, OFFSETS = 0.5, (1.0, -0.5, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0)
RULES: dict[str, Rule] = {
    "product": Rule(np.linspace(0.2, 0.6, 8), np.full(8, 0.1), "product", SLOPE, np.array(OFFSETS)),
    "mean": Rule(np.linspace(0.2, 0.9, 8), np.full(8, 0.4), "mean"),
}


def config(kind: str, **policy: float) -> Config:
    drafter = {"min_draft_tokens": 2, "max_draft_tokens": 8}
    return from_dict({"policy": {"kind": kind, **policy}, "drafter": drafter})


def rule_of(kind: str, **policy: float) -> Rule:
    rule = RULES.get(kind) or build_policy(config(kind, **policy)).plan(rows=1)
    assert rule is not None
    return rule


def asked(rule: Rule, confidences: list[float]) -> tuple[int, int]:
    """(tokens drafted, tokens sent) for one row."""
    scores_1K = torch.tensor([confidences])
    drafted = 1
    while drafted < rule.most and bool(rule.goes_on(scores_1K[:, :drafted])):
        drafted += 1
    return drafted, int(rule.lengths(scores_1K[:, :drafted], torch.tensor([drafted])))


def test_plain_never_drafts() -> None:
    policy: Policy = build_policy(config("plain"))
    assert policy.max_draft_tokens == 0
    assert policy.plan(rows=3) is None


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0, math.nan])
def test_fixed_drafts_k_max(confidence: float) -> None:
    assert asked(rule_of("fixed"), [confidence] * 8) == (8, 8)
    assert not rule_of("fixed").looks


@settings(max_examples=25)
@given(CONFIDENCES, st.sampled_from([0.3, 1.0, 2.5]))
def test_paper_stops_at_the_length_that_the_mean_allows(confidences: list[float], alpha: float) -> None:
    """k_j = clip(floor(alpha * Cbar * k_max), k_min, k_max), Cbar over the tokens drafted so far."""
    drafted, sent = asked(rule_of("paper", alpha=alpha), confidences)
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
    assert asked(rule_of("paper"), [mean] * 8) == (length, length)


@settings(max_examples=25)
@given(CONFIDENCES, st.sampled_from([0.0, 0.0625, 0.375, 0.875, 1.0]))
def test_survival_sends_the_prefix_that_survives(confidences: list[float], threshold: float) -> None:
    """Tokens are sent while prod c_i >= threshold; the one that falls under it was drafted in vain."""
    drafted, sent = asked(rule_of("survival", threshold=threshold), confidences)
    products = np.array(confidences).cumprod().tolist()
    survivors = 0
    while survivors < 8 and products[survivors] >= threshold:
        survivors += 1
    assert sent == survivors
    assert drafted == min(survivors + 1, 8)


@settings(max_examples=25)
@given(CONFIDENCES)
def test_a_rule_with_a_calibration_follows_the_product_of_calibrated_acceptances(confidences: list[float]) -> None:
    rule, survival, drafted, sent = RULES["product"], 1.0, 0, 0
    goes_on, fits = True, True
    for place, confidence in enumerate(confidences):
        if not goes_on:
            break
        known = min(max(confidence, 1e-3), 1 - 1e-3)
        survival /= 1 + math.exp(-SLOPE * math.log(known / (1 - known)) - OFFSETS[place])
        drafted += 1
        fits = fits and survival >= 0.1
        sent += fits
        goes_on = survival >= rule.go_on_K[place]
    assert asked(rule, confidences) == (drafted, sent)


ALL = ["fixed", "paper", "survival", *RULES]


@settings(max_examples=25)
@given(CONFIDENCES, CONFIDENCES, st.sampled_from(ALL), st.integers(1, 7))
def test_a_decision_reads_no_later_confidence(one: list[float], other: list[float], kind: str, at: int) -> None:
    """Non-anticipating: what is decided about token `at` is the same whatever comes after it."""
    rule = rule_of(kind, **({"threshold": 0.1} if kind not in RULES else {}))
    changed = one[:at] + other[at:]
    assert bool(rule.goes_on(torch.tensor([one[:at]]))) == bool(rule.goes_on(torch.tensor([changed[:at]])))
    sent = [int(rule.lengths(torch.tensor([scores]), torch.tensor([8]))) for scores in (one, changed)]
    assert min(sent[0], at) == min(sent[1], at)


@settings(max_examples=25)
@given(CONFIDENCES, st.sampled_from(ALL))
def test_of_a_draft_of_one_pass_as_much_is_sent_as_token_by_token(confidences: list[float], kind: str) -> None:
    rule = rule_of(kind)
    assert int(rule.lengths(torch.tensor([confidences]), torch.tensor([8]))) == asked(rule, confidences)[1]


@pytest.mark.parametrize("kind", ALL)
def test_rows_are_decided_one_by_one(kind: str) -> None:
    rule = rule_of(kind, **({"threshold": 0.2} if kind not in RULES else {}))
    scores_BK = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)).sqrt()
    drafted_B = torch.randint(0, 9, (50,), generator=torch.Generator().manual_seed(1))
    together = rule.lengths(scores_BK, drafted_B), rule.goes_on(scores_BK[:, :3])
    for row in range(50):
        alone = slice(row, row + 1)
        assert int(together[0][row]) == int(rule.lengths(scores_BK[alone], drafted_B[alone]))
        assert bool(together[1][row]) == bool(rule.goes_on(scores_BK[alone, :3]))
    assert (together[0] <= drafted_B).all()


def test_a_rule_knows_whether_it_looks() -> None:
    blind: dict[str, Any] = {"go_on_K": np.array([-np.inf, np.inf]), "keep_K": np.full(2, -np.inf)}
    assert not Rule(**blind).looks, "the last is never asked"
    assert Rule(**{**blind, "keep_K": np.array([-np.inf, 0.5])}).looks
    assert Rule(**{**blind, "go_on_K": np.array([0.5, np.inf])}).looks
