"""Whether drafts are chains or trees, where few rows leave the verifier idle: whichever makes tokens faster, measured.

While drafting is in force both shapes take turns as arms do (`explorer`): the other is looked at where it could be the
faster one and that costs little, and is compared with the shape in force just before. A tree goes by the chain's rule,
path by path, for what a token is worth does not depend on what stands beside it.
"""

from dataclasses import dataclass, replace

from cmasd.policies.base import Rule
from cmasd.policies.explorer import Explorer, Ledger
from cmasd.policies.speeds import ArmMeasured, Plain, Speed

CHAIN, TREE = range(2)
LEAST_NODES = 2


@dataclass
class Shapes:
    """For one range of row counts."""

    nodes: int
    """Of a row's tree at most."""
    lead: Speed
    """Of trees over chains, the log."""
    explorer: Explorer
    latest: ArmMeasured | None = None
    """Of the shape in force, in the iterations just before."""

    @classmethod
    def of(cls, nodes: int, ledger: Ledger) -> "Shapes":
        """As fast as each other, as far as anyone knows."""
        lead = Speed(0.0)
        arms = [CHAIN, TREE] if nodes >= LEAST_NODES else []
        return cls(nodes, lead, Explorer(ledger, [Plain(), lead], candidates=arms))

    @property
    def is_look(self) -> bool:
        """Whether the shape that drafts is looked at, and not in force."""
        return self.explorer.now != self.explorer.force

    def rule(self, chain: Rule) -> Rule:
        """For the shape that drafts."""
        return replace(chain, nodes=self.nodes) if self.explorer.now == TREE else chain

    def turn(self, iteration: int, iteration_seconds: float, may_look: bool) -> None:
        """What is next to draft."""
        self.explorer.decide(iteration, iteration_seconds, may_look=may_look and self.latest is not None)
        self.latest = None if not self.is_look else self.latest

    def learn(self, measured: ArmMeasured, iteration: int) -> None:
        """How fast the shape that drafted was."""
        before = self.latest
        if not self.is_look:
            self.latest = measured
        elif before is not None:
            gained = (measured.worth - measured.level) - (before.worth - before.level)
            noise = sum(one.worth_noise + one.level_noise for one in (measured, before))
            self.lead.learn(gained if self.explorer.now == TREE else -gained, noise, iteration)

    def rest(self) -> None:
        """Nobody drafts for now, and what was measured before is no measure any more."""
        self.explorer.now, self.latest = self.explorer.force, None
