"""Draft while it raises the expected tokens per second; decode plainly where nothing does.

Three parts: `lengths` makes the best rule of the costs and of the confidences seen lately (each row ends its own draft,
DSpark, arXiv 2607.05147); `speeds` says how fast plain decoding and drafting by that rule are, as measured, and how
sure that is; `explorer` decides which of them decodes, and when the other is looked at. Here they are brought together.

An iteration takes less than a millisecond where models are small. So iterations are learned from in batches, a plan
stays until the next, and what that takes is counted as time spent looking, which says how long to rest in between.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from cmasd.policies.acceptance import Calibration
from cmasd.policies.base import Observation, Policy, Rule
from cmasd.policies.costs import Curve, StepTable
from cmasd.policies.explorer import BURST, Explorer, Ledger
from cmasd.policies.lengths import Choice, choose, expected
from cmasd.policies.speeds import Batch, Measured, Speed, overhead_seconds

BATCH = 32
"""Iterations that are learned from at once where nothing is looked at: their mean is within 2 % where one has 10."""


class Arm(IntEnum):
    """A way of decoding. Another drafter would be a fourth, with a table and a calibration of its own."""

    PLAIN = 0
    DRAFTING = 1
    TREES = 2
    """By the same rule, of which every path of a tree is worth its seconds; where few rows leave the verifier idle."""


@dataclass
class Range:
    """Row counts that cost about the same: up to a power of two, from the one before."""

    lowest: float
    highest: float
    """Wider than that, so that rows which come and go at its edge change nothing."""
    curve: Curve
    explorer: Explorer
    choice: Choice
    rule: Rule
    gain: float
    """Of the log of the speed, that is expected of it."""
    seconds: float
    """Of an iteration, lately."""
    nodes: int = 0
    """Of a row's tree at most; 0: no trees with so many rows."""
    latest: dict[int, Measured] = field(default_factory=dict)
    """Of each arm."""

    @property
    def rules(self) -> list[Rule | None]:
        """Of each arm."""
        return [None, self.rule, replace(self.rule, nodes=self.nodes)]


class GoodputPolicy(Policy):
    """The best rule, or none."""

    def __init__(
        self,
        max_draft_tokens: int,
        explore_share: float = 0.01,
        clock: Callable[[], float] = time.thread_time,
        tree_nodes: int = 0,
    ) -> None:
        """`clock`: seconds of this thread, for what learning takes. `tree_nodes`: of one row; more rows share them."""
        self.max_draft_tokens = max_draft_tokens
        self.tree_nodes = tree_nodes
        self.costs: StepTable | None = None
        """Of the drafter; set by the engine, which can measure."""
        self.looks = True
        """Whether rules go by confidence; set by the engine, where nobody may look at a draft while it is made."""
        self.calibration = Calibration(max_draft_tokens)
        self._ledger = Ledger(explore_share)
        self._clock = clock
        self._ranges: dict[int, Range] = {}
        self._lowest, self._highest = 0.0, -1.0
        self._range: Range | None = None
        """That of the plan, which is for so many rows."""
        self._rule: Rule | None = None
        self._planned = self._left = self._watched = 0
        """Iterations that the plan is for; those to come; the last ones, which are learned from."""
        self._is_new = True
        """Whether the arm was another before."""
        self._iteration = 0
        self._rest_until = 0.0
        """Seconds of all iterations, before which nothing is learned from the arm in force."""
        self._pending: list[Observation] = []

    def learn_costs(self, table: StepTable) -> None:
        """What forwards cost; before the first plan."""
        self.costs = table
        self._ranges, self._range, self._left = {}, None, 0

    def plan(self, rows: int) -> Rule | None:
        """The same object until something was learned."""
        if self._left > 0 and self._lowest <= rows <= self._highest:
            return self._rule
        return self._replan(rows)

    def observe(self, seen: Observation) -> None:
        """Learn from it later, if at all; its arrays must not change."""
        self._ledger.total += seen.seconds
        self._left -= 1
        if self._left < self._watched or (not seen.is_typical and len(self._pending) < BATCH):
            self._pending.append(seen)

    def _replan(self, rows: int) -> Rule | None:
        self._iteration += self._planned - self._left
        self._learn()
        before, self._range = self._range, self._range_of(rows)
        self._lowest, self._highest = self._range.lowest, self._range.highest
        explorer = self._range.explorer
        last = explorer.now
        arm = explorer.decide(self._iteration, self._range.seconds)
        self._is_new = arm != last or before is not self._range
        self._rule = self._range.rules[arm]
        is_losing = arm != explorer.force and explorer.speeds[arm].mean <= explorer.speeds[explorer.force].mean
        self._watched = BURST if is_losing or explorer.speeds[arm].variance >= 1.0 else BATCH
        rest = max(0.0, self._rest_until - self._ledger.total)
        resting = 0.0 if arm != explorer.force else rest / self._range.seconds
        if arm == explorer.force == Arm.PLAIN:
            resting = max(resting, explorer.hopeless_for(self._iteration))
        self._planned = self._left = self._watched + int(min(resting, 2.0**31))
        return self._rule

    def _range_of(self, rows: int) -> Range:
        power = (rows - 1).bit_length()
        if power not in self._ranges:
            assert self.costs is not None, "the engine sets the costs before the first plan"
            curve = self.costs.curve(rows)
            choice = choose(*self.calibration.survival(), curve, self.looks)
            gain = float(np.log(choice.speed * curve.plain))
            speeds = self._speeds_near(power, gain)
            lengths = range(1, self.max_draft_tokens + 1)
            can_win = any((1 + k) * curve.plain > self.costs.seconds(rows, k) for k in lengths)
            is_best = speeds[Arm.DRAFTING].mean > speeds[Arm.PLAIN].mean
            force = Arm.DRAFTING if can_win and is_best and self._ranges else Arm.PLAIN
            nodes = self.tree_nodes >> power
            arms: list[int] = list(Arm) if nodes > 1 else [Arm.PLAIN, Arm.DRAFTING]
            explorer = Explorer(self._ledger, speeds, force, force, candidates=arms if can_win else [])
            rule = choice.rule(self.calibration.slope, self.calibration.offsets_K)
            edges = 0.375 * 2**power, 1.25 * 2**power
            self._ranges[power] = Range(*edges, curve, explorer, choice, rule, gain, curve.plain, nodes)
        return self._ranges[power]

    def _speeds_near(self, power: int, gain: float) -> list[Speed]:
        """Of plain decoding and of drafting with a new number of rows: as much faster than expected as with others.

        Trees are as fast as chains, as far as anyone knows.
        """
        known = [other for other, place in self._ranges.items() if Arm.DRAFTING in place.latest]
        if not known:
            return [Speed(0.0), Speed(gain), Speed(gain)]
        near = self._ranges[min(known, key=lambda other: abs(other - power))]
        plain, drafting, _ = near.explorer.speeds
        gain += drafting.mean - near.gain
        return [Speed(plain.mean), Speed(gain), Speed(gain)]

    def _learn(self) -> None:
        """From the iterations that were watched, unless what that took before says to rest."""
        drafting = self._rule is not None
        seen = [one for one in self._pending if one.drafted_B.any() == drafting]
        self._pending = []
        if not seen or self._range is None or self.costs is None:
            return
        explorer = self._range.explorer
        if explorer.now == explorer.force and self._ledger.total < self._rest_until:
            return
        started = self._clock()
        batch = Batch(seen, self.costs, self._range.curve)
        batch.is_timed_I[0] &= not self._is_new
        self._range.seconds = float(np.median(batch.seconds_I))
        is_look = explorer.now != explorer.force
        self._ledger.charge(batch.lost(explorer.speeds[explorer.force].mean) if is_look else batch.lost_by_change())
        measured = batch.measured()
        if measured is not None:
            explorer.speeds[explorer.now].learn(measured, self._iteration)
            self._range.latest[explorer.now] = measured
        if drafting:
            self.calibration.observe(seen)
            self._choose(self._range)
        self._rest_until = self._ledger.total + self._ledger.rest(self._clock() - started)

    def _choose(self, place: Range) -> None:
        """A rule by what is known now."""
        survival_NK, usual_K = self.calibration.survival()
        curve = place.curve
        if {Arm.PLAIN, Arm.DRAFTING} <= place.latest.keys():
            curve = curve.slower(overhead_seconds(place.latest[Arm.PLAIN], place.latest[Arm.DRAFTING]))
        choice = choose(survival_NK, usual_K, curve, self.looks)
        tokens_L, seconds_L = expected(survival_NK, place.choice.go_on_K[None], place.choice.keep_K[None], curve)
        for arm in (Arm.DRAFTING, Arm.TREES):
            place.explorer.speeds[arm].doubt_more(float(np.log(choice.speed * seconds_L[0] / tokens_L[0])))
        place.choice, place.gain = choice, float(np.log(choice.speed * curve.plain))
        place.rule = choice.rule(self.calibration.slope, self.calibration.offsets_K)
