"""Greedy verification rules against loops written straight from the formulas."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from cmasd.config.speculation import VerificationConfig
from cmasd.core import Logits
from cmasd.verification import Verification
from tests.unit.verification.drafts import (
    VOCABULARY,
    Acceptable,
    gap_nats,
    log_prob,
    random_case,
    rank,
    reference,
    rule_of,
)

SEEDS = range(6)
Form = Literal["prose", "printed"]
Kind = Literal["exact", "relaxed", "modulated", "typical", "sampling"]


def check(rule: Verification, acceptable: Acceptable, seed: int, near: float = 0.5) -> int:
    """Compare on random rows; returns how many tokens were accepted."""
    draft, logits_BTV = random_case(seed, near=near)
    verdict = rule.verify(draft, Logits.rectangle(logits_BTV))
    accepted, following = reference(draft, logits_BTV, acceptable)
    assert verdict.accepted_B.tolist() == accepted
    assert verdict.next_B.tolist() == following
    assert verdict.tau_BK.shape == draft.tokens_BK.shape
    assert 0 < sum(accepted) < int(draft.lengths_B.sum()), "the case says nothing about the rule"
    return sum(accepted)


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_takes_the_argmax_alone(seed: int) -> None:
    rule = rule_of(VerificationConfig(kind="exact"))
    check(rule, lambda logits_V, token, confidence: token == int(logits_V.argmax()), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "tau"), [(5, 3.0), (2, 3.0), (12, 1.0), (100, 2.0), (3, 0.1)])
def test_relaxed(beta: int, tau: float, seed: int) -> None:
    rule = rule_of(VerificationConfig(kind="relaxed", beta=beta, tau=tau))
    check(
        rule,
        lambda logits_V, token, confidence: rank(logits_V, token) < beta and gap_nats(logits_V, token) <= tau,
        seed,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("tau_base", "gamma"), [(0.5, 1.0), (0.0, 4.0), (1.0, 0.0)])
@pytest.mark.parametrize("form", ["prose", "printed"])
def test_modulated(form: Form, tau_base: float, gamma: float, seed: int) -> None:
    config = VerificationConfig(kind="modulated", beta=4, tau_base=tau_base, gamma=gamma, tau_form=form)

    def tau(confidence: float) -> float:
        return tau_base + gamma * (confidence if form == "prose" else 1 - confidence)

    def acceptable(logits_V: torch.Tensor, token: int, confidence: float) -> bool:
        return rank(logits_V, token) < 4 and gap_nats(logits_V, token) <= tau(confidence)

    rule = rule_of(config)
    check(rule, acceptable, seed)
    draft, logits_BTV = random_case(seed)
    verdict = rule.verify(draft, Logits.rectangle(logits_BTV))
    expected_BK = tau_base + gamma * (draft.confidence_BK if form == "prose" else 1 - draft.confidence_BK)
    torch.testing.assert_close(verdict.tau_BK, expected_BK)
    for row, count in enumerate(verdict.accepted_B.tolist()):
        for j in range(count):
            token = int(draft.tokens_BK[row, j])
            assert gap_nats(logits_BTV[row, j], token) <= float(verdict.tau_BK[row, j]) + 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 0.09), (0.05, 0.9), (1.0, 1.0)])
def test_typical(epsilon: float, delta: float, seed: int) -> None:
    def acceptable(logits_V: torch.Tensor, token: int, confidence: float) -> bool:
        logs = [log_prob(logits_V, other) for other in range(VOCABULARY)]
        entropy = -sum(math.exp(log) * log for log in logs)
        likely = math.exp(logs[token]) > min(epsilon, delta * math.exp(-entropy))
        return likely or token == int(logits_V.argmax())

    check(rule_of(VerificationConfig(kind="typical", epsilon=epsilon, delta=delta)), acceptable, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "config",
    [
        VerificationConfig(kind="relaxed", tau=0.0),
        VerificationConfig(kind="relaxed", beta=1, tau=50.0),
        VerificationConfig(kind="modulated", beta=1, tau_base=50.0, gamma=50.0),
        VerificationConfig(kind="modulated", tau_base=0.0, gamma=0.0),
        VerificationConfig(kind="modulated", tau_base=0.0, gamma=0.0, tau_form="printed"),
    ],
)
def test_lossy_rules_without_tolerance_are_exact(config: VerificationConfig, seed: int) -> None:
    draft, logits_BTV = random_case(seed)
    exact = rule_of(VerificationConfig(kind="exact")).verify(draft, Logits.rectangle(logits_BTV))
    other = rule_of(config).verify(draft, Logits.rectangle(logits_BTV))
    assert other.accepted_B.tolist() == exact.accepted_B.tolist()
    assert other.next_B.tolist() == exact.next_B.tolist()


def test_the_two_forms_relax_at_opposite_ends() -> None:
    """A sure draft with a gap of 1 nat passes under `prose`, an unsure one under `printed`."""
    logits_BTV = torch.tensor([[[2.0, 1.0, -9.0], [0.0, 1.0, 0.0]]]).repeat(2, 1, 1)
    draft, _ = random_case(0, rows=2, longest=1)
    draft = replace(
        draft,
        tokens_BK=torch.ones(2, 1, dtype=torch.int64),
        lengths_B=torch.ones(2, dtype=torch.int64),
        confidence_BK=torch.tensor([[0.9], [0.1]]),
    )
    accepted = {}
    for form in ("prose", "printed"):
        config = VerificationConfig(kind="modulated", tau_base=0.2, gamma=1.0)
        rule = rule_of(replace(config, tau_form=form))
        accepted[form] = rule.verify(draft, Logits.rectangle(logits_BTV)).accepted_B.tolist()
    assert accepted == {"prose": [1, 0], "printed": [0, 1]}


def test_a_draft_without_confidence_gets_the_base_tolerance() -> None:
    draft, logits_BTV = random_case(1)
    draft = replace(draft, confidence_BK=torch.full_like(draft.confidence_BK, torch.nan))
    for form in ("prose", "printed"):
        config = VerificationConfig(kind="modulated", tau_base=0.75, gamma=2.0)
        verdict = rule_of(replace(config, tau_form=form)).verify(draft, Logits.rectangle(logits_BTV))
        assert (verdict.tau_BK == 0.75).all()


@pytest.mark.parametrize("kind", ["exact", "relaxed", "modulated", "typical", "sampling"])
def test_no_draft_gives_one_token_of_the_verifier(kind: Kind) -> None:
    draft, logits_BTV = random_case(2, longest=0)
    verdict = rule_of(replace(VerificationConfig(), kind=kind)).verify(draft, Logits.rectangle(logits_BTV))
    assert verdict.accepted_B.tolist() == [0] * 40
    if kind != "sampling":
        assert verdict.next_B.tolist() == logits_BTV[:, 0].argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["relaxed", "modulated", "typical", "sampling"])
def test_banned_tokens_are_never_accepted(kind: Kind) -> None:
    """A logit of -inf is a probability of zero, whatever the tolerance."""
    draft, logits_BTV = random_case(3, near=0.5)
    banned_BK = torch.rand(draft.tokens_BK.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masked_BKV = logits_BTV[:, :-1].scatter(2, draft.tokens_BK[..., None], -torch.inf)
    logits_BTV[:, :-1] = torch.where(banned_BK[..., None], masked_BKV, logits_BTV[:, :-1])
    config = VerificationConfig(beta=100, tau=1e6, tau_base=1e6, epsilon=0.0, delta=0.0)
    verdict = rule_of(replace(config, kind=kind)).verify(draft, Logits.rectangle(logits_BTV))
    for row, count in enumerate(verdict.accepted_B.tolist()):
        assert not banned_BK[row, :count].any()
    assert verdict.accepted_B.sum() > 0


@pytest.mark.parametrize(
    "config", [VerificationConfig(kind="relaxed", tau=0.0), VerificationConfig(kind="relaxed", beta=1)]
)
def test_ties_end_in_the_token_that_plain_decoding_takes(config: VerificationConfig) -> None:
    """In half precision several tokens share the highest logit; the verifier's own is the first of them."""
    draft, _ = random_case(4, rows=30, near=0.0)
    levels = torch.randint(0, 3, (30, 5, VOCABULARY), generator=torch.Generator().manual_seed(4))
    logits_BTV = levels.to(torch.bfloat16)
    verdict = rule_of(config).verify(draft, Logits.rectangle(logits_BTV))
    first_B = logits_BTV.argmax(-1)[torch.arange(30), verdict.accepted_B]
    assert verdict.next_B.tolist() == first_B.tolist()
