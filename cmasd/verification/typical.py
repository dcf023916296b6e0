"""Typical acceptance (Medusa, arXiv 2401.10774): P_v(y) > min(epsilon, delta * exp(-H(P_v))). Lossy."""

from collections.abc import Sequence
from typing import Self

import torch

from cmasd.confidence.largest import argmax
from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits, Verdict
from cmasd.verification.base import Verification, pick, prefix_length


class TypicalVerification(Verification):
    """Accepts more where the verifier itself is undecided."""

    needs_host = False

    @classmethod
    def of(cls, config: VerificationConfig, eos_ids: Sequence[int]) -> Self:
        """As configured."""
        return cls(config.epsilon, config.delta)

    def __init__(self, epsilon: float, delta: float) -> None:
        self.epsilon = epsilon
        self.delta = delta

    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """The verifier's argmax is always acceptable, so greedy drafts that agree never fail."""
        logits_BTV = logits.padded_BTV
        best_BT = argmax(logits_BTV)
        log_probs_BKV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
        entropy_BK = -(log_probs_BKV.exp() * log_probs_BKV.clamp_min(-1e4)).sum(-1)
        threshold_BK = (self.delta * torch.exp(-entropy_BK)).clamp_max(self.epsilon)
        probability_BK = log_probs_BKV.gather(-1, draft.tokens_BK[..., None]).squeeze(-1).exp()
        acceptable_BK = (probability_BK > threshold_BK) | (draft.tokens_BK == best_BT[:, :-1])
        accepted_B = prefix_length(acceptable_BK, draft.lengths_B)
        tau_BK = torch.full_like(draft.confidence_BK, torch.nan)
        return Verdict(accepted_B, pick(best_BT, accepted_B), tau_BK)
