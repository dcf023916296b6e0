"""Draft lengths that ignore confidence: none (plain AR decoding), or k (SpecDec, arXiv 2203.16487)."""

from typing import Self

from cmasd.config.tree import Config
from cmasd.policies.base import Policy, Rule


class FixedPolicy(Policy):
    """k tokens in every iteration; none with k = 0."""

    needs_host = False

    def __init__(self, max_draft_tokens: int, nodes: int = 0) -> None:
        self.max_draft_tokens = max_draft_tokens
        self._rule = Rule.always(max_draft_tokens, nodes) if max_draft_tokens else None

    @classmethod
    def of(cls, config: Config) -> Self:
        """As configured."""
        return cls(config.drafter.max_draft_tokens, config.drafter.tree_nodes)

    def plan(self, rows: int) -> Rule | None:
        """Always the same."""
        return self._rule


class PlainPolicy(FixedPolicy):
    """l = 0 for all rows: AR decoding in the same engine."""

    def __init__(self) -> None:
        super().__init__(max_draft_tokens=0)

    @classmethod
    def of(cls, config: Config) -> Self:
        """As configured."""
        return cls()
