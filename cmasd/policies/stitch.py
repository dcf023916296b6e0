"""R-Stitch (arXiv 2507.17307): which of two models speaks, by entropy; and in a batch, when the large one runs.

A speaker is sure where its entropy H is at most tau * ln V. Where the small model is not, its token is dropped and the
large one speaks, until that is sure, or for one token at a time (R2R's way, arXiv 2505.21600, with `tau_large` 1). All
of that is a row's own affair. When the large model runs is not, but changes no token: a step over few rows costs about
as much as over many, so rows that need it wait for each other as long as that raises the expected tokens per second,
and `max_wait` steps of the small model at most. A row that is alone never waits, which is the paper's algorithm.

Shapes: B rows, W numbers of rows that might wait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from cmasd.config.tree import Config
from cmasd.policies.base import Policy, Rule
from cmasd.policies.costs import StepTable
from cmasd.policies.router import DecisionLog, Router

MEMORY = 64
"""Steps after which what was counted weighs half as much."""


@dataclass
class SwitchHabits:
    """How rows have gone between the two models, lately; in what it says a guess counts as much as a few tokens."""

    small: float = 0.0
    """Tokens of the small model."""
    dropped: float = 0.0
    """Of those, the ones that it was not sure of."""
    large: float = 0.0
    """Rows that the large model spoke for."""
    returned: float = 0.0
    """Of those, the ones that the small model took over again."""
    read: float = 0.0
    """Tokens that the large model read for them."""

    @property
    def dropping(self) -> float:
        """Share of the small model's tokens that are dropped."""
        return (self.dropped + 1) / (self.small + 10)

    @property
    def returning(self) -> float:
        """Share of the rows that the large model hands back."""
        return (self.returned + 1) / (self.large + 2)

    @property
    def reading(self) -> float:
        """Tokens that the large model reads for a row."""
        return (self.read + 16) / (self.large + 2)

    def forget(self) -> None:
        """A step's worth."""
        for name, value in vars(self).items():
            setattr(self, name, value * 0.5 ** (1 / MEMORY))


@dataclass(frozen=True)
class Chance:
    """Who speaks by the toss of a coin: the router that knows nothing."""

    seed: int
    dropped: float
    """Share of the small model's tokens that it is called unsure of."""
    returned: float
    """Share of the large model's that it is called sure of."""


class StitchPolicy(Policy):
    """Nobody drafts by a rule here: `cmasd.engine.stitch` asks who speaks, and when."""

    wants_costs = True

    @classmethod
    def of(cls, config: Config) -> Self:
        """As configured."""
        stitch, chance = config.stitch, None
        if stitch.random:
            dropped, returned = stitch.random
            chance = Chance(config.verification.seed, dropped, returned)
        router = None if stitch.router is None else Router.of(stitch.router)
        most = config.drafter.max_draft_tokens
        return cls(stitch.tau, most, stitch.speculate, stitch.max_wait, chance, router, stitch.tau_large)

    def __init__(
        self,
        tau: float,
        max_draft_tokens: int,
        speculates: bool,
        max_wait: int,
        chance: Chance | None = None,
        router: Router | None = None,
        tau_large: float | None = None,
    ) -> None:
        self.tau = tau
        self.tau_large = tau_large
        """Of the large model's tokens; None: as `tau`."""
        self.chance = chance
        """In place of tau; None: by entropy."""
        self.router = router
        """In place of tau, which it has of its own; None: by entropy, or by chance."""
        self.log: DecisionLog | None = None
        """Where decisions are written down; None: nowhere."""
        self.max_draft_tokens = max_draft_tokens
        self.speculates = speculates
        """Whether what the small model is not sure of is checked in place of being dropped."""
        self._max_wait = max_wait
        self._costs: StepTable | None = None
        self._habits = SwitchHabits()
        self._gathered: dict[int, int] = {}
        self._steps = 0

    def plan(self, rows: int) -> Rule | None:
        """No row drafts."""
        return None

    @property
    def starts_large(self) -> bool:
        """Whether the small model never speaks."""
        return self.tau == 0 and self.chance is None and self.router is None

    def is_sure(self, certainty_B: Tensor, is_large: bool) -> Tensor:
        """(B,) bool, of 1 - H/ln V of a model's tokens; with tau = 0 nobody ever is."""
        tau = self.tau if self.tau_large is None or not is_large else self.tau_large
        return (1 - certainty_B <= tau) & (self.tau > 0)

    @property
    def costs(self) -> StepTable | None:
        """What forwards cost here; None until that is known."""
        return self._costs

    def learn_costs(self, costs: StepTable) -> None:
        """What forwards cost here; until then nobody waits."""
        self._costs = costs

    def learn(self, small: int, dropped: int, large: int, returned: int, read: int) -> None:
        """One step, in the words of `SwitchHabits`."""
        habits = self._habits
        habits.forget()
        habits.small, habits.dropped = habits.small + small, habits.dropped + dropped
        habits.large, habits.returned = habits.large + large, habits.returned + returned
        habits.read += read
        self._steps += 1
        if self._steps % MEMORY == 0:
            self._gathered = {}

    def is_due(self, ready: int, others: int, waited: int) -> bool:
        """Whether the large model runs now for the rows that are ready, the longest of which has waited so many steps
        while others went on.
        """
        if ready == 0 or others == 0 or waited >= self._max_wait:
            return ready > 0
        return ready >= self._gather(ready + others)

    def _gather(self, rows: int) -> int:
        if self._costs is None:
            return 1
        if rows not in self._gathered:
            self._gathered[rows] = best_gathering(rows, self._habits, self._costs.draft_seconds, self._large_seconds)
        return self._gathered[rows]

    def _large_seconds(self, rows: int, tokens: float) -> float:
        """Beyond the table's longest window as its windows go on growing."""
        assert self._costs is not None, "costs are known"
        longest = self.max_draft_tokens + 1
        seconds = self._costs.verify_seconds(rows, tokens)
        if (beyond := tokens - rows * longest) <= 0:
            return seconds
        growth = (seconds - self._costs.verify_seconds(rows, rows)) / (rows * max(1, longest - 1))
        return seconds + max(0.0, growth) * beyond


def best_gathering(
    rows: int,
    habits: SwitchHabits,
    small_seconds: Callable[[int], float],
    large_seconds: Callable[[int, float], float],
) -> int:
    """How many of the rows should wait before the large model runs: as many as give the most tokens per second.

    With w waiting when it runs, q w of them return and w (1 - q) stay, so w (1 - q/2) wait on average and the others
    speak; they lose p of their number per step, so that it takes q w / (p * others) steps until w wait again.
    """
    p, q = habits.dropping, habits.returning
    waiting_W = np.arange(1, rows + 1)
    others_W = rows - waiting_W * (1 - q / 2)
    steps_W = q * waiting_W / (p * others_W)
    tokens_W = waiting_W + steps_W * (1 - p) * others_W
    small_W = np.array([small_seconds(max(1, round(others))) for others in others_W.tolist()])
    large_W = np.array([large_seconds(waiting, waiting * habits.reading) for waiting in waiting_W.tolist()])
    return int(waiting_W[np.argmax(tokens_W / (large_W + steps_W * small_W))])
