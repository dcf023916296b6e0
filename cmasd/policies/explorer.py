"""Which arm decodes next: the one in force, or one that is looked at because it could be better.

One number governs it: the share of all time that may be lost by looking. A ledger holds the seconds lost so far; an
arm that could be best, as far as anyone knows, is looked at while the ledger is under that share. How long arms rest,
how long a look goes on, how sure a change must be and when knowledge is stale all follow from the arms' speeds and how
sure they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cmasd.policies.speeds import DRIFT, Belief

BURST = 7
"""Iterations that are timed of a look at least."""
SETTLING = 0.03
"""Seconds, and as many iterations as a burst at most, after a change of arm that are not timed (one iteration always is
not): one has to catch up, and small weights that the other arm did not read come into the processor's cache over
several. On two cores the first took 2.5 times as long as the tenth; large weights are in no cache at any time."""


def settling(iteration_seconds: float) -> int:
    """Iterations after a change that are not timed."""
    return min(BURST, 1 + int(SETTLING / iteration_seconds))


@dataclass
class Ledger:
    """Where time went that made no tokens, over all row counts."""

    share: float
    """Of all seconds, that may be lost."""
    total: float = 0.0
    """Seconds of all iterations."""
    lost: float = 0.0
    """By arms that were looked at and were not the best."""
    thought: float = 0.0
    """By learning."""
    allowance: float = 0.0
    """That may be lost beyond the share."""

    def affords(self, seconds: float) -> bool:
        """Whether so many more may be lost."""
        return self.lost + seconds <= max(0.0, self.share * self.total - self.thought) + self.allowance

    def rest(self, thought: float) -> float:
        """Seconds until as many may be spent on learning again: half of the share, looks have the other."""
        self.thought += thought
        return 2 * thought / self.share if self.share else math.inf

    def charge(self, seconds: float) -> None:
        """Lost, or won where negative; what was won beyond all losses is no credit."""
        self.lost = max(0.0, self.lost + seconds)


@dataclass
class Explorer:
    """For one range of row counts."""

    ledger: Ledger
    speeds: Sequence[Belief]
    """Of each arm."""
    force: int = 0
    """The arm in force, which is thought best."""
    now: int = 0
    """The arm that decodes: that one, or one that is looked at."""
    candidates: Sequence[int] = field(default_factory=list)
    """Arms that could win if every draft token were accepted."""
    home: int | None = None
    """The arm that needs no proof: when it was looked at, it is in force unless the other is surely faster."""
    patience: int = BURST
    """Iterations whose time may be lost beyond the share when an arm is looked at first, so that it comes early."""
    looked_at: set[int] = field(default_factory=set)
    """Arms, here or in an earlier run."""

    def decide(self, iteration: int, iteration_seconds: float, may_look: bool = True) -> int:
        """The arm of the next iterations; those before have been learned from.

        `may_look`: whether the arm in force was measured just now, which another is compared with.
        """
        if self.now != self.force and self._lead(self.now) > self._proof(iteration):
            self.force = self.now
        others = [arm for arm in self.candidates if arm != self.force]
        challenger = max(others, key=lambda arm: self._hope(arm, iteration), default=self.force)
        look = may_look and self.now == self.force
        look = look and self._is_worth_a_look(challenger, iteration, iteration_seconds)
        self.now = challenger if look else self.force
        return self.now

    def forget(self) -> None:
        """That arms were looked at: the next look is a first one again."""
        self.looked_at.clear()

    def hopeless_for(self, iteration: int) -> float:
        """Iterations until another arm could be best, if nothing is measured before."""
        known = self.speeds[self.force].doubt(iteration)
        rivals = [arm for arm in self.candidates if arm != self.force]
        gaps = [min(0.0, self._lead(arm) / 2) ** 2 - self.speeds[arm].doubt(iteration) - known for arm in rivals]
        return max(0.0, min(gaps, default=math.inf)) / (2 * DRIFT**2)

    def _is_worth_a_look(self, arm: int, iteration: int, iteration_seconds: float) -> bool:
        """Whether it could be best, and that costs little."""
        if arm == self.force or self.ledger.share == 0:
            return False
        if arm not in self.looked_at:
            self.looked_at |= {arm, self.force}
            self.ledger.allowance += self.patience * iteration_seconds
            return True
        lost = BURST * max(0.0, 1 - math.exp(self._lead(arm))) * iteration_seconds
        return self._hope(arm, iteration) > 0 and self.ledger.affords(lost)

    def _proof(self, iteration: int) -> float:
        """The lead that the arm which was looked at needs to be in force."""
        unsure = self._unsure(self.now, iteration)
        return -unsure if self.now == self.home else unsure

    def _lead(self, arm: int) -> float:
        """Of the log of its speed, before the arm in force."""
        return self.speeds[arm].mean - self.speeds[self.force].mean

    def _unsure(self, arm: int, iteration: int) -> float:
        """Standard error of that."""
        return math.sqrt(self.speeds[arm].doubt(iteration) + self.speeds[self.force].doubt(iteration))

    def _hope(self, arm: int, iteration: int) -> float:
        """The lead that it could have, two standard errors up: an arm that is never looked at stays misjudged."""
        return self._lead(arm) + 2 * self._unsure(arm, iteration)
