"""The draft length of CM-ASD as printed: k_j = clip(floor(alpha * Cbar * k_max), k_min, k_max).

The paper takes Cbar over "the next k positions". With a drafter that works token by token those
confidences exist only once drafted, so Cbar is the mean over the tokens drafted so far, and
drafting ends when their number reaches the length which that mean allows.
"""

from typing import Self

import numpy as np

from cmasd.config.tree import Config
from cmasd.policies.base import Policy, Rule


class PaperPolicy(Policy):
    """arXiv 2508.15371, section 3.2."""

    def __init__(self, alpha: float, min_draft_tokens: int, max_draft_tokens: int, nodes: int = 0) -> None:
        self.max_draft_tokens = max_draft_tokens
        # floor(alpha * mean * k_max) > j  <=>  mean >= (j + 1) / (alpha * k_max)
        drafted_K = np.arange(1, max_draft_tokens + 1)
        least_K = (drafted_K + 1) / (alpha * max_draft_tokens) if alpha > 0 else np.full(max_draft_tokens, np.inf)
        go_on_K = np.where(drafted_K < min_draft_tokens, -np.inf, least_K)
        self._rule = Rule(go_on_K, np.full(max_draft_tokens, -np.inf), statistic="mean", nodes=nodes)

    @classmethod
    def of(cls, config: Config) -> Self:
        """As configured."""
        drafter = config.drafter
        return cls(config.policy.alpha, drafter.min_draft_tokens, drafter.max_draft_tokens, drafter.tree_nodes)

    def plan(self, rows: int) -> Rule | None:
        """Always the same."""
        return self._rule
