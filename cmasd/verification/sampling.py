"""Speculative sampling (Leviathan, arXiv 2211.17192; Chen, arXiv 2302.01318).

Accept y with probability min(1, P_v(y)/P_d(y)); after the first rejection draw from
norm(max(0, P_v - P_d)). The output has the distribution of AR sampling from the verifier.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits, Verdict
from cmasd.verification.base import Verification, prefix_length


class SamplingVerification(Verification):
    """Lossless in distribution. The draws depend on batch composition, so runs differ token by token."""

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self.seed = seed
        self._generator: torch.Generator | None = None

    @classmethod
    def of(cls, config: VerificationConfig, eos_ids: Sequence[int]) -> Self:
        """As configured."""
        return cls(config.temperature, config.seed)

    def generator(self, device: torch.device) -> torch.Generator:
        """The seeded source of every draw of this engine."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def draw(self, probs_BV: Tensor) -> Tensor:
        """(B,) tokens drawn from (B, V) probabilities."""
        return torch.multinomial(probs_BV, 1, generator=self.generator(probs_BV.device)).squeeze(1)

    def coins(self, like_BK: Tensor) -> Tensor:
        """(B, K) numbers between 0 and 1, one for each draft token."""
        return torch.rand(like_BK.shape, generator=self.generator(like_BK.device), device=like_BK.device)

    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """A drafter without probabilities (lookup) counts as certain of its token."""
        logits_BTV = logits.padded_BTV
        probs_BTV = torch.softmax(logits_BTV.float() / self.temperature, dim=-1)
        tokens_BK1 = draft.tokens_BK[..., None]
        drafted_BKV = draft.probs_BKV
        if drafted_BKV is None:
            drafted_BKV = torch.zeros_like(probs_BTV[:, :-1]).scatter_(2, tokens_BK1, 1.0)
        ours_BK = probs_BTV[:, :-1].gather(2, tokens_BK1).squeeze(2)
        theirs_BK = drafted_BKV.gather(2, tokens_BK1).squeeze(2)
        accepted_B = prefix_length(self.coins(ours_BK) * theirs_BK < ours_BK, draft.lengths_B)
        next_B = self.draw(self._residual(probs_BTV, drafted_BKV, accepted_B, draft.lengths_B))
        return Verdict(accepted_B, next_B, torch.full_like(draft.confidence_BK, torch.nan))

    def try_ways(self, probs_V: Tensor, tokens: list[int], drafted: list[Tensor | None]) -> tuple[int | None, Tensor]:
        """Which of several ways to go on is accepted, None for none; and what is left of the verifier's distribution.

        `drafted`: what each was drawn from (V,), but for those before it, which were not drawn twice; None: it was
        certain.
        """
        for way, (token, drafted_V) in enumerate(zip(tokens, drafted, strict=True)):
            theirs_V = torch.zeros_like(probs_V)
            if drafted_V is None:
                theirs_V[token] = 1.0
            else:
                theirs_V.copy_(drafted_V)
                theirs_V[tokens[:way]] = 0.0
                theirs_V /= theirs_V.sum()
            coin = torch.rand((), generator=self.generator(probs_V.device), device=probs_V.device)
            if coin * theirs_V[token] < probs_V[token]:
                return way, probs_V
            left_V = (probs_V - theirs_V).clamp_min(0)
            probs_V = left_V / left_V.sum() if bool(left_V.sum() > 0) else probs_V
        return None, probs_V

    def _residual(self, probs_BTV: Tensor, drafted_BKV: Tensor, accepted_B: Tensor, lengths_B: Tensor) -> Tensor:
        rows_B = torch.arange(len(accepted_B), device=accepted_B.device)
        ours_BV = probs_BTV[rows_B, accepted_B]
        if drafted_BKV.shape[1] == 0:
            return ours_BV
        theirs_BV = drafted_BKV[rows_B, accepted_B.clamp_max(drafted_BKV.shape[1] - 1)]
        left_BV = (ours_BV - theirs_BV).clamp_min(0)
        rejected_B1 = ((accepted_B < lengths_B) & (left_BV.sum(-1) > 0))[:, None]
        return torch.where(rejected_B1, left_BV, ours_BV)
