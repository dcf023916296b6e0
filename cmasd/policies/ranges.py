"""What the goodput policy knows of numbers of rows that cost about the same, and what of it outlives a run.

Lists are often shorter than learning takes: an iteration of a large model takes a fifth of a second, and each number of
rows is looked at anew as a list ends. So a run begins with what the one before has learned on this machine of this pair
and these settings, as if that had been some hundred iterations ago: leads with their doubts, which grow meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Self

from cmasd.policies.base import Rule
from cmasd.policies.costs import Curve
from cmasd.policies.explorer import Explorer
from cmasd.policies.lengths import LengthChoice
from cmasd.policies.shapes import Shapes
from cmasd.policies.speeds import ArmMeasured, Lead, Speed

AGE = 400
"""Iterations from one run to the next, as far as doubt goes: a speed may have moved by a tenth."""


class Arm(IntEnum):
    """A way of decoding. Another drafter would be a third, with a table and a calibration of its own."""

    PLAIN = 0
    DRAFTING = 1


@dataclass(frozen=True)
class Known:
    """Of drafting, in one range of row counts, by the end of a run."""

    worth: Speed
    level: Speed
    beside: float
    """See `Lead`."""
    pays: bool
    """Whether drafting was in force."""

    @classmethod
    def of(cls, kept: Sequence[float]) -> Self:
        """From `kept`; raises ValueError for anything else."""
        worth, worth_doubt, level, level_doubt, beside, pays = map(float, kept)
        return cls(Speed(worth, worth_doubt, -AGE), Speed(level, level_doubt, -AGE), beside, bool(pays))

    def kept(self, iteration: int) -> list[float]:
        """What `of` takes."""
        doubts = [round(one.doubt(iteration), 6) for one in (self.worth, self.level)]
        level = round(self.level.mean, 4)
        return [round(self.worth.mean, 4), doubts[0], level, doubts[1], round(self.beside, 4), float(self.pays)]

    @property
    def lead(self) -> Lead:
        """To go on learning from."""
        return Lead(replace(self.worth), replace(self.level), beside=self.beside)


@dataclass
class Range:
    """Row counts that cost about the same: up to a power of two, from the one before."""

    lowest: float
    highest: float
    """Wider than that, so that rows which come and go at its edge change nothing."""
    curve: Curve
    explorer: Explorer
    choice: LengthChoice
    rule: Rule
    gain: float
    """Of the log of the speed by the table, that is expected of the rule that was measured last."""
    seconds: float
    """Of an iteration, lately."""
    lead: Lead
    """Of drafting."""
    shapes: Shapes
    """Of drafts."""
    was_known: bool = False
    """Whether an earlier run has compared the arms."""
    latest: ArmMeasured | None = None
    """Of the arm in force."""
    is_fresh: bool = False
    """Whether that was measured in the iterations just before."""
    pair: dict[int, ArmMeasured] = field(default_factory=dict)
    """Of both arms, when they were compared."""
    usual: float = 0.0
    """Rows, at most times. Arms are compared there: as a list ends its long rows are left, which take longer than the
    table says, and an arm measured then would be compared with another's full batches."""

    @property
    def least_rows(self) -> float:
        """With fewer no arms are compared."""
        return 0.9 * self.usual

    @property
    def is_compared(self) -> bool:
        """Whether the arms were, here or before."""
        return self.was_known or bool(self.pair)

    @property
    def known(self) -> Known:
        """For a later run."""
        return Known(self.lead.worth, self.lead.level, self.lead.beside, self.explorer.force == Arm.DRAFTING)
