"""The end of a job, where no row waits and slots run empty: drafts that cost nothing may be longer there.

The verifier then sees no more tokens than it does when all slots are taken and each row drafts as much as it usually
may; so the width that nobody uses is spent on the rows that are left, which keep the job waiting. Only where a policy
goes by confidence (`goodput`, `survival`), and as far as tokens are likely to be accepted.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cmasd.config.tree import Config
from cmasd.policies import Rule
from cmasd.telemetry.stats import EngineStats

MOST_DRAFTED = 64
"""Tokens of a row in an iteration."""
LIKELY = 0.3
"""Least survival of what is drafted beyond the usual."""

Numbers = NDArray[np.float64]


def most_drafted(config: Config) -> int:
    """Tokens that a row may ever draft."""
    usual = 0 if config.policy.kind == "plain" else config.drafter.max_draft_tokens
    grows = config.drafter.free and config.policy.kind in ("goodput", "survival")
    return max(usual, MOST_DRAFTED) if grows else usual


class Tail:
    """Of one engine whose drafter knows texts."""

    def __init__(self, config: Config, slots: int) -> None:
        self.most, usual = most_drafted(config), config.drafter.max_draft_tokens
        self._slots = slots
        self._usual = usual
        """Tokens that a row drafts at most where all slots are taken."""
        self._known: tuple[Rule, int, Rule] | None = None
        """The latest rule, its new length, and what was made of it."""

    def longer(self, rule: Rule | None, rows: int) -> Rule | None:
        """The rule for so many live rows."""
        most = min(self.most, self._slots * (1 + self._usual) // rows - 1)
        if rule is None or rule.nodes or rule.most < self._usual or most <= rule.most:
            return rule
        if self._known is None or self._known[0] is not rule or self._known[1] != most:
            self._known = rule, most, lengthened(rule, most)
        return self._known[2]

    def count(self, stats: EngineStats, accepted: list[int], seconds: float) -> None:
        """An iteration of so many rows and seconds, and what it would have taken if drafts had been as usual."""
        if len(accepted) == self._slots:
            return
        beyond = sum(max(0, one - self._usual) for one in accepted)
        stats.tail_seconds += seconds
        stats.tail_saved_seconds += seconds * beyond / (len(accepted) * (1 + self._usual))


def lengthened(rule: Rule, most: int) -> Rule:
    """Of `most` tokens: behind its last place as there, and nothing that is unlikely."""

    def padded(values_K: Numbers, least: float = -np.inf) -> Numbers:
        beyond = np.full(most - len(values_K), max(float(values_K[-1]), least))
        return np.concatenate([values_K, beyond])

    go_on_K = rule.go_on_K[:-1] if rule.most > 1 else np.full(1, -np.inf)  # the last is never asked
    offsets_K = None if rule.offsets_K is None else padded(rule.offsets_K)
    return replace(rule, go_on_K=padded(go_on_K), keep_K=padded(rule.keep_K, LIKELY), offsets_K=offsets_K)
