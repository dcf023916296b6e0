"""Lossy acceptance within a tolerance: y in Top_beta(P_v) and log P_v(top1) - log P_v(y) <= tau.

Relaxed: tau is constant (SpecDec, arXiv 2203.16487). Modulated: tau_t follows the confidence C_t
(CM-ASD, arXiv 2508.15371). The paper prints tau_base + gamma*(1 - C), which relaxes where the
drafter is unsure; its prose says the opposite. Both forms are here by name.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cmasd.confidence.largest import argmax
from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits, Verdict
from cmasd.verification.base import Verification, pick, prefix_length


class RelaxedVerification(Verification):
    """Constant tolerance; beta = 1 or tau = 0 accepts nothing but (ties with) the argmax."""

    needs_host = False

    def __init__(self, beta: int, tau: float) -> None:
        self.beta = beta
        self.tau = tau

    @classmethod
    def of(cls, config: VerificationConfig, eos_ids: Sequence[int]) -> Self:
        """As configured."""
        return cls(config.beta, config.tau)

    def tolerance(self, confidence_BK: Tensor) -> Tensor:
        """(B, K) nats."""
        return torch.full_like(confidence_BK, self.tau)

    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """The gap needs no softmax: a difference of logits is a difference of log-probabilities."""
        logits_BTV = logits.padded_BTV
        top_BTn, where_BTn = logits_BTV.float().topk(min(self.beta, logits_BTV.shape[-1]), dim=-1)
        best_BT = argmax(logits_BTV)  # topk orders ties at will
        found_BKn = where_BTn[:, :-1] == draft.tokens_BK[..., None]
        gap_BK = (top_BTn[:, :-1, :1] - top_BTn[:, :-1]).masked_fill(~found_BKn, torch.inf).amin(-1)
        tau_BK = self.tolerance(draft.confidence_BK)
        accepted_B = prefix_length(gap_BK <= tau_BK, draft.lengths_B)
        return Verdict(accepted_B, pick(best_BT, accepted_B), tau_BK)


class ModulatedVerification(RelaxedVerification):
    """Tolerance from confidence; a draft without confidence (NaN) gets tau_base."""

    def __init__(self, beta: int, tau_base: float, gamma: float, form: str) -> None:
        super().__init__(beta, tau_base)
        self.gamma = gamma
        self.form = form

    @classmethod
    def of(cls, config: VerificationConfig, eos_ids: Sequence[int]) -> Self:
        """As configured."""
        return cls(config.beta, config.tau_base, config.gamma, config.tau_form)

    def tolerance(self, confidence_BK: Tensor) -> Tensor:
        """tau_base + gamma*C (prose), or tau_base + gamma*(1 - C) (printed)."""
        weight_BK = confidence_BK if self.form == "prose" else 1 - confidence_BK
        return self.tau + self.gamma * weight_BK.nan_to_num(0.0)
