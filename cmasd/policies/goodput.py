"""Draft while it raises the expected tokens per second; decode plainly where nothing does.

Three parts: `lengths` makes the best rule of the costs and of the confidences seen lately (each row ends its own draft,
DSpark, arXiv 2607.05147); `speeds` says how fast plain decoding and drafting by that rule are, as measured, and how
sure that is; `explorer` decides which of them decodes, and when the other is looked at. Here they are brought together.

An iteration takes less than a millisecond where models are small. So iterations are learned from in batches, a plan
stays until the next, and what that takes is counted as time spent looking, which says how long to rest in between.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from cmasd.config.speculation import HOPE
from cmasd.config.tree import Config
from cmasd.policies.acceptance import REMEMBERED
from cmasd.policies.base import Observation, Policy, Rule
from cmasd.policies.costs import StepTable
from cmasd.policies.estimators import ESTIMATORS
from cmasd.policies.explorer import BURST, Explorer, Ledger, settling
from cmasd.policies.lengths import LengthChoice, choose
from cmasd.policies.ranges import Arm, Known, Range
from cmasd.policies.shapes import Shapes
from cmasd.policies.speeds import ArmMeasured, Belief, Lead, PairedBatch, Plain, Speed, beyond_table, overhead_seconds

BATCH = 32
"""Iterations that are learned from at once where nothing is looked at: their mean is within 2 % where one has 10."""


class GoodputPolicy(Policy):
    """The best rule, or none."""

    needs_host = False
    wants_costs = True

    def __init__(
        self,
        max_draft_tokens: int,
        explore_share: float = 0.01,
        clock: Callable[[], float] = time.thread_time,
        tree_nodes: int = 0,
        estimator: str = "logistic",
        hope: float = HOPE,
    ) -> None:
        """`clock`: seconds of this thread, for what learning takes. `tree_nodes`: of one row; more rows share them.

        `hope`: acceptance that is assumed of each token before any was judged. Who hopes for much is patient: lists
        begin with their longest rows, of which the least came out as in an earlier run, and what pays for all others
        would be given up by the first two.
        """
        self.max_draft_tokens = max_draft_tokens
        self.tree_nodes = tree_nodes
        self.costs: StepTable | None = None
        """Of the drafter; set by the engine, which can measure."""
        self.looks = True
        """Whether rules go by the confidence of each row."""
        self.calibration = ESTIMATORS[estimator](max_draft_tokens, hope)
        self.wants_signals = self.calibration.wants_signals
        self._ledger = Ledger(explore_share)
        self._patience = round(1.5 / (1 - hope))
        """Iterations, half as many again as accepted tokens in a row are hoped for; see `Explorer`."""
        self._clock = clock
        self._ranges: dict[int, Range] = {}
        self._known: dict[int, Known] = {}
        """By an earlier run, of ranges as above: by their powers of two."""
        self._lowest, self._highest = 0.0, -1.0
        self._range: Range | None = None
        """That of the plan, which is for so many rows."""
        self._rule: Rule | None = None
        self._planned = self._left = self._watched = 0
        """Iterations that the plan is for; those to come; the last ones, which are learned from."""
        self._unsettled = 0
        """Of the iterations that are watched, those that come after a change of arm and are not timed."""
        self._iteration = 0
        self._rest_until = 0.0
        """Seconds of all iterations, before which nothing is learned from the arm in force."""
        self._pending: list[Observation] = []
        self._drafting_seconds = self._beside_seconds = 0.0
        """Of iterations with drafts, and what these needed beside them, since the beginning."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """As configured."""
        drafter, policy = config.drafter, config.policy
        return cls(
            drafter.max_draft_tokens,
            policy.explore_share,
            tree_nodes=drafter.tree_nodes,
            estimator=policy.estimator,
            hope=drafter.hope,
        )

    def look_no_more(self) -> None:
        """See `Policy.look_no_more`: all rows draft as many tokens."""
        self.looks = self.wants_signals = False

    def learn_costs(self, table: StepTable) -> None:
        """See `Policy.learn_costs`."""
        self.costs = table
        self._ranges, self._range, self._left = {}, None, 0

    def learned(self) -> dict[str, Any]:
        """See `Policy.learned`."""
        known = self._known | {power: place.known for power, place in self._ranges.items() if place.is_compared}
        leads = {str(power): one.kept(self._iteration) for power, one in known.items()}
        return {"drafts": self.calibration.latest(), "leads": leads} if leads else {}

    def begin_with(self, learned: dict[str, Any]) -> None:
        """See `Policy.begin_with`."""
        known = {int(power): Known.of(kept) for power, kept in learned["leads"].items()}
        self.calibration.recall(learned["drafts"])
        self._known = known

    def plan(self, rows: int) -> Rule | None:
        """The same object until something was learned."""
        if self._left > 0 and self._lowest <= rows <= self._highest:
            return self._rule
        return self._replan(rows)

    def observe(self, seen: Observation) -> None:
        """Learn from it later, if at all; its arrays must not change."""
        self._ledger.total += seen.seconds
        self._left -= 1
        self._beside_seconds += seen.beside
        if self._rule is not None:
            self._drafting_seconds += seen.seconds
        if self._left < self._watched or (not seen.is_typical and len(self._pending) < BATCH):
            self._pending.append(seen)

    def _replan(self, rows: int) -> Rule | None:
        self._iteration += self._planned - self._left
        self._learn()
        before, self._range = self._range, self._range_of(rows)
        place, explorer = self._range, self._range.explorer
        self._lowest, self._highest = place.lowest, place.highest
        place.usual = max(rows, place.usual - (place.usual - rows) / BATCH)
        last, force = explorer.now, explorer.force
        may_look = place.is_fresh and rows >= place.least_rows
        arm = explorer.decide(self._iteration, place.seconds, may_look)
        if explorer.force != force:
            place.latest = place.pair.get(explorer.force)
        shape = place.shapes.explorer.now
        if arm == explorer.force == Arm.DRAFTING:
            place.shapes.turn(self._iteration, place.seconds, may_look)
        else:
            place.shapes.rest()
        place.is_fresh = False
        is_new = arm != last or before is not place or place.shapes.explorer.now != shape
        self._rule = place.shapes.rule(place.rule) if arm == Arm.DRAFTING else None
        is_losing = arm != explorer.force and explorer.speeds[arm].mean <= explorer.speeds[explorer.force].mean
        unsettled = settling(place.seconds) if any(place.curve.draft_R) else 1  # texts take no cache from weights
        self._unsettled = unsettled if is_new else 0
        least = BURST + self._unsettled
        self._watched = least if is_losing or place.latest is None or place.shapes.is_look else BATCH
        if arm != explorer.force and not place.pair and self._unsettled == 1:  # more looks, not longer ones
            self._watched = max(least, min(self._watched, int(BATCH * place.curve.plain / place.choice.seconds)))
        is_news = arm == Arm.DRAFTING and self._is_news(BATCH * rows)
        rest = 0.0 if is_news else max(0.0, self._rest_until - self._ledger.total)
        resting = 0.0 if arm != explorer.force or place.shapes.is_look else rest / place.seconds
        if arm == explorer.force == Arm.PLAIN and place.latest is not None:
            resting = max(resting, explorer.hopeless_for(self._iteration))
        self._planned = self._left = self._watched + int(min(resting, 2.0**31))
        return self._rule

    def _range_of(self, rows: int) -> Range:
        power = (rows - 1).bit_length()
        if power not in self._ranges:
            assert self.costs is not None, "the engine sets the costs before the first plan"
            curve = self.costs.curve(rows)
            survival_NK, usual_K = self.calibration.survival()
            choice = choose(survival_NK, usual_K, curve.slower(self._overhead_near(power)), self.looks)
            gain = choice.gain(survival_NK, curve)
            known = self._known.get(power)
            lead, pays = self._lead_near(power, gain) if known is None else (known.lead, known.pays)
            lengths = range(1, self.max_draft_tokens + 1)
            can_win = any((1 + k) * curve.plain > self.costs.seconds(rows, k) for k in lengths)
            # Behind plain iterations a drafter would catch up for a list's last rows.
            is_ready = self._rule is not None or not any(curve.draft_R) or not self._ranges
            force = Arm.DRAFTING if can_win and pays and is_ready else Arm.PLAIN
            candidates = list(Arm) if can_win else []
            beliefs: list[Belief] = [Plain(), lead]
            explorer = Explorer(self._ledger, beliefs, force, force, candidates, Arm.PLAIN, self._patience)
            rule = self._rule_of(choice)
            shapes = Shapes.of(0 if not self.looks else self.tree_nodes >> power, self._ledger)
            edges = 0.375 * 2**power, 1.25 * 2**power
            place = Range(*edges, curve, explorer, choice, rule, gain, curve.plain, lead, shapes)
            if known is not None:
                explorer.looked_at.update(Arm)
                place.was_known = True
            self._ranges[power] = place
        return self._ranges[power]

    def _rule_of(self, choice: LengthChoice) -> Rule:
        """By what is thought of acceptance now."""
        return choice.rule(self.calibration.slope, self.calibration.offsets_K, self.calibration.weights_2)

    def _lead_near(self, power: int, gain: float) -> tuple[Lead, bool]:
        """Of drafting with a new number of rows: as much faster than expected as with others, where that is known; and
        whether that is faster.
        """
        known = [other for other, place in self._ranges.items() if place.is_compared]
        if not known:
            return Lead(Speed(gain)), False
        near = self._ranges[min(known, key=lambda other: abs(other - power))]
        lead = Lead(Speed(gain + near.lead.worth.mean - near.gain), Speed(near.lead.level.mean))
        return lead, lead.mean > 0

    def _overhead_near(self, power: int) -> float:
        """Seconds, by the table, that the engine adds to each iteration of about as many rows; 0 before it is known."""
        known = [other for other, place in self._ranges.items() if place.latest is not None]
        return self._overhead(self._ranges[min(known, key=lambda other: abs(other - power))]) if known else 0.0

    @staticmethod
    def _overhead(place: Range) -> float:
        """The same of this range; before arms were compared, all that plain iterations take beyond the table."""
        if place.pair:
            return overhead_seconds(place.pair[Arm.PLAIN], place.pair[Arm.DRAFTING])
        return 0.0 if place.latest is None else beyond_table(place.latest)

    def _learn(self) -> None:
        """From the iterations that were watched, unless what that took before says to rest."""
        drafting = self._rule is not None
        seen = [one for one in self._pending if one.asked == drafting]
        self._pending = []
        if not seen or self._range is None or self.costs is None:
            return
        place, explorer = self._range, self._range.explorer
        is_look, shapes = explorer.now != explorer.force, place.shapes
        is_news = drafting and self._is_news(sum(len(one.lengths_B) for one in seen))
        if not (is_look or shapes.is_look or is_news) and self._ledger.total < self._rest_until:
            return
        started = self._clock()
        batch = PairedBatch(seen, self.costs, place.curve)
        batch.is_timed_I[: self._unsettled] = False
        place.seconds = float(np.median(batch.seconds_I))
        measured = batch.measured(place.least_rows, latest=0 if is_look else 2 * BURST)
        if shapes.is_look and shapes.latest is not None:
            self._ledger.charge(batch.lost(shapes.latest.worth - shapes.latest.level))
        elif is_look and place.latest is not None:
            beside = sum(one.beside for one in seen)
            self._ledger.charge(beside + batch.lost(place.latest.worth - place.latest.level))
        else:
            self._ledger.charge(batch.lost_by_change())
        if measured is not None and drafting and not is_look:
            shapes.learn(measured, self._iteration)
        is_first = place.latest is None
        if measured is not None and not shapes.is_look:
            self._measure(place, measured, is_look)
        if drafting:
            self.calibration.observe(seen)
        if drafting or (is_first and place.latest is not None):
            self._choose(place)
        total = self._ledger.total  # no rest is longer than all that was before it
        self._rest_until = total + min(total, self._ledger.rest(self._clock() - started))

    def _is_news(self, rows: int) -> bool:
        """Whether so many drafts say enough to learn from them at once: what a few said before is soon overruled, and
        lists of short rows are over before their share of time would let anybody learn again.
        """
        return self.calibration.rows < REMEMBERED and 4 * rows >= self.calibration.rows

    def _measure(self, place: Range, measured: ArmMeasured, is_look: bool) -> None:
        """What the range thinks of drafting, by iterations of either arm."""
        arm, force, lead = place.explorer.now, place.explorer.force, place.lead
        if arm == Arm.DRAFTING:
            lead.worth.learn(measured.worth, measured.worth_noise, self._iteration)
            lead.beside = math.log1p(self._beside_seconds / self._drafting_seconds)
        if not is_look:
            place.latest, place.is_fresh = measured, True
            if place.pair:
                lead.moved = measured.level - place.pair[force].level
        elif place.latest is not None:
            place.pair = {force: place.latest, arm: measured}
            plain, drafting = place.pair[Arm.PLAIN], place.pair[Arm.DRAFTING]
            noise = plain.level_noise + drafting.level_noise
            lead.level.learn(drafting.level - plain.level, noise, self._iteration)
            lead.moved = 0.0

    def _choose(self, place: Range) -> None:
        """A rule by what is known now."""
        survival_NK, usual_K = self.calibration.survival()
        curve = place.curve.slower(self._overhead(place))
        choice = choose(survival_NK, usual_K, curve, self.looks)
        place.lead.worth.doubt_more(choice.gain(survival_NK, curve) - place.choice.gain(survival_NK, curve))
        place.gain = place.choice.gain(survival_NK, place.curve)
        if place.lead.worth.is_new:
            place.gain = place.lead.worth.mean = choice.gain(survival_NK, place.curve)
            place.lead.level.mean = place.gain - choice.gain(survival_NK, curve)
        place.choice = choice
        place.rule = self._rule_of(choice)
