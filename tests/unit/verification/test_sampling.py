"""Speculative sampling of one token: acceptance and residual, by frequency."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits
from tests.unit.verification.drafts import rule_of

ROWS = 40_000
VERIFIER = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
DRAFTER = torch.tensor([0.2, 0.5, 0.0, 0.2, 0.1])


def one_token_draft(tokens_B: Tensor, probs_V: Tensor | None) -> Draft:
    rows = len(tokens_B)
    confidence_BK = torch.full((rows, 1), 0.5)
    probs_BKV = None if probs_V is None else probs_V.expand(rows, 1, -1)
    lengths_B = torch.ones(rows, dtype=torch.int64)
    return Draft(tokens_B[:, None], lengths_B, confidence_BK, confidence_BK[..., None].expand(-1, -1, 3), probs_BKV)


def verifier_logits(temperature: float) -> Tensor:
    """(rows, 2, V) logits that are `VERIFIER` at this temperature, twice."""
    return (VERIFIER.log() * temperature).expand(ROWS, 2, -1)


def emitted(draft: Draft, temperature: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(first token that comes out, whether the draft was accepted), both (rows,)."""
    rule = rule_of(VerificationConfig(kind="sampling", temperature=temperature, seed=seed))
    verdict = rule.verify(draft, Logits.rectangle(verifier_logits(temperature)))
    accepted_B = verdict.accepted_B.bool()
    return torch.where(accepted_B, draft.tokens_BK[:, 0], verdict.next_B), accepted_B


def frequencies(tokens_B: Tensor) -> Tensor:
    return torch.bincount(tokens_B, minlength=len(VERIFIER)) / len(tokens_B)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_output_has_the_verifiers_distribution(temperature: float) -> None:
    drawn_B = torch.multinomial(DRAFTER, ROWS, replacement=True, generator=torch.Generator().manual_seed(3))
    tokens_B, accepted_B = emitted(one_token_draft(drawn_B, DRAFTER), temperature)
    torch.testing.assert_close(frequencies(tokens_B), VERIFIER, atol=0.01, rtol=0)
    overlap = torch.minimum(VERIFIER, DRAFTER).sum().item()
    assert accepted_B.float().mean().item() == pytest.approx(overlap, abs=0.01)


def test_a_token_without_distribution_is_taken_as_certain() -> None:
    tokens_B, accepted_B = emitted(one_token_draft(torch.full((ROWS,), 1), None))
    torch.testing.assert_close(frequencies(tokens_B), VERIFIER, atol=0.01, rtol=0)
    assert accepted_B.float().mean().item() == pytest.approx(VERIFIER[1].item(), abs=0.01)


def test_after_a_rejection_the_residual_is_drawn() -> None:
    """norm(max(0, P_v - P_d)): here only tokens 0 and 2 are likelier under the verifier."""
    drawn_B = torch.multinomial(DRAFTER, ROWS, replacement=True, generator=torch.Generator().manual_seed(5))
    tokens_B, accepted_B = emitted(one_token_draft(drawn_B, DRAFTER))
    left = (VERIFIER - DRAFTER).clamp_min(0)
    torch.testing.assert_close(frequencies(tokens_B[~accepted_B]), left / left.sum(), atol=0.01, rtol=0)


def test_after_a_full_acceptance_the_bonus_is_the_verifiers() -> None:
    """A drafter equal to the verifier is never rejected, and the bonus is drawn from the verifier alone."""
    drawn_B = torch.multinomial(VERIFIER, ROWS, replacement=True, generator=torch.Generator().manual_seed(6))
    draft = one_token_draft(drawn_B, VERIFIER)
    verdict = rule_of(VerificationConfig(kind="sampling")).verify(draft, Logits.rectangle(verifier_logits(1.0)))
    assert verdict.accepted_B.sum() == ROWS
    torch.testing.assert_close(frequencies(verdict.next_B), VERIFIER, atol=0.01, rtol=0)


def test_tokens_past_a_rows_length_are_not_judged() -> None:
    """The drafter's distribution there must not leak into the verifier's draw."""
    draft = one_token_draft(torch.full((ROWS,), 3), DRAFTER)
    draft = replace(draft, lengths_B=torch.zeros(ROWS, dtype=torch.int64))
    verdict = rule_of(VerificationConfig(kind="sampling")).verify(draft, Logits.rectangle(verifier_logits(1.0)))
    assert verdict.accepted_B.sum() == 0
    torch.testing.assert_close(frequencies(verdict.next_B), VERIFIER, atol=0.01, rtol=0)


def test_the_seed_decides_the_draws() -> None:
    draft = one_token_draft(torch.arange(ROWS) % 5, DRAFTER)
    first, again, other = (emitted(draft, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
