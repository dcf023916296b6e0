"""Draft on while the whole draft is likely to survive: prod_{i<=j} c_i >= threshold.

SpecDec++ (arXiv 2405.19715) and the confidence threshold of assisted generation are cases of it.
The token that falls under the threshold was drafted but is not sent to the verifier.
"""

from typing import Self

import numpy as np

from cmasd.config.tree import Config
from cmasd.policies.base import Policy, Rule


class SurvivalPolicy(Policy):
    """Stops at the first j whose survival probability is under the threshold."""

    def __init__(self, threshold: float, max_draft_tokens: int, nodes: int = 0) -> None:
        self.max_draft_tokens = max_draft_tokens
        least_K = np.full(max_draft_tokens, threshold)
        self._rule = Rule(least_K, least_K, nodes=nodes)

    @classmethod
    def of(cls, config: Config) -> Self:
        """As configured."""
        return cls(config.policy.threshold, config.drafter.max_draft_tokens, config.drafter.tree_nodes)

    def plan(self, rows: int) -> Rule | None:
        """Always the same."""
        return self._rule
