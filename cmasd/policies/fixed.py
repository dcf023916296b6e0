"""Draft lengths that ignore confidence: none (plain AR decoding), or k (SpecDec, arXiv 2203.16487)."""

import torch
from torch import Tensor

from cmasd.policies.base import Policy


class FixedPolicy(Policy):
    """k tokens in every iteration."""

    looks = False
    plans_ahead = True

    def __init__(self, max_draft_tokens: int) -> None:
        self.max_draft_tokens = max_draft_tokens

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        """Always."""
        return torch.ones(len(confidence_BJ), dtype=torch.bool, device=confidence_BJ.device)


class PlainPolicy(FixedPolicy):
    """l = 0 for all rows: AR decoding in the same engine."""

    def __init__(self) -> None:
        super().__init__(max_draft_tokens=0)
