"""The draft length of CM-ASD as printed: k_j = clip(floor(alpha * Cbar * k_max), k_min, k_max).

The paper takes Cbar over "the next k positions". With a drafter that works token by token those
confidences exist only once drafted, so Cbar is the mean over the tokens drafted so far, and
drafting ends when their number reaches the length which that mean allows.
"""

import torch
from torch import Tensor

from cmasd.policies.base import Policy


class PaperPolicy(Policy):
    """arXiv 2508.15371, section 3.2."""

    def __init__(self, alpha: float, min_draft_tokens: int, max_draft_tokens: int) -> None:
        self.alpha = alpha
        self.min_draft_tokens = min_draft_tokens
        self.max_draft_tokens = max_draft_tokens

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        """While fewer tokens are drafted than the running mean allows."""
        allowed_B = torch.floor(self.alpha * confidence_BJ.mean(-1) * self.max_draft_tokens)
        return confidence_BJ.shape[1] < allowed_B.clamp(self.min_draft_tokens, self.max_draft_tokens)
