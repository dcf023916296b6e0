"""One iteration for all live rows: draft, verify, accept, commit.

Either the host looks at the device where it must, as when a rule ends each row's draft, or all is done at a shape that
was decided beforehand (`Extent`), and nothing in it waits. Lengths are then still to advance, which is the engine's.

Shapes: B live rows, K draft, T = K + 1 window, V vocabulary.
"""

import time
from dataclasses import dataclass, field

from torch import Tensor

from cmasd.core import Draft, Logits, Verdict
from cmasd.drafters import Context, Drafter
from cmasd.drafters.base import empty_draft
from cmasd.engine.commit import Committer
from cmasd.engine.slots import SlotState
from cmasd.engine.trace import Outcome, trace
from cmasd.engine.tree_windows import Trees
from cmasd.generation.constraints import Constraints
from cmasd.policies import Rule
from cmasd.runner.base import Extent, Runner
from cmasd.telemetry.stats import EngineStats
from cmasd.verification import Verification


@dataclass(frozen=True)
class Iteration:
    """What one has computed."""

    sent: Draft
    """To the verifier."""
    draft: Draft
    """That, or of a tree the path that was judged."""
    logits: Logits
    verdict: Verdict
    outcome: Outcome


@dataclass
class Iterations:
    """Of the rows in slots 0..rows-1."""

    state: SlotState
    verifier: Runner
    drafter: Drafter | None
    verification: Verification
    constraints: Constraints
    keep: Committer
    trees: Trees
    stats: EngineStats
    record_gaps: bool
    """Whether the log-probability gaps of accepted tokens go into the trace."""
    asked: bool = field(default=False, init=False)
    """Whether the drafter was, in the latest iteration."""
    _empty: dict[int, Draft] = field(default_factory=dict, init=False)

    def run(self, rows: int, rule: Rule | None, extent: Extent | None = None) -> Iteration:
        """Draft, verify, accept and commit, for slots 0..rows-1; lengths are still to advance.

        With an `extent` by the device alone; rows that have finished are left as they are.
        """
        context = self.state.context(rows)
        open_B = None if extent is None else context.lengths_B < context.limits_B
        draft = self._draft(context, rows, rule) if extent is None else self._draft_at(context, extent)
        if draft.parents_BK is not None:
            judged = self.trees.verify(context, draft, self.state.window(draft))
            self.trees.tally(draft, judged.draft)
            path, logits, verdict = judged.draft, judged.logits, judged.verdict
            self.stats.drafter_tokens += int(draft.drafted_B.sum() - path.drafted_B.sum())
            return Iteration(draft, path, logits, verdict, self._commit(context, path, verdict, logits, open_B))
        logits = self._verify(context, draft) if extent is None else self._verify_at(context, draft, extent)
        verdict = self.verification.verify(draft, logits)
        return Iteration(draft, draft, logits, verdict, self._commit(context, draft, verdict, logits, open_B))

    def whole(self, extent: Extent) -> tuple[Draft, Verdict]:
        """An iteration over the slots of an extent, to its very end."""
        one = self.run(extent.rows, None, extent)
        self.state.grow(one.outcome.count_B, one.outcome.ended_B)
        return one.draft, one.verdict

    def _draft(self, context: Context, rows: int, rule: Rule | None) -> Draft:
        """What the rule lets rows draft, as far as they may grow."""
        self.asked = rule is not None
        if self.drafter is None or rule is None:
            return self._no_draft(context, rows)
        started = time.perf_counter()
        room_B = self.state.room(rows, rule.most)
        self.asked = max(room_B.tolist()) > 0
        if not self.asked:
            return self._no_draft(context, rows)
        draft = self.drafter.draft(context, room_B, rule)
        longest = max(draft.lengths_B.tolist())
        is_made = longest > 0 or max(draft.drafted_B.tolist()) > 0
        draft = draft.cut(longest) if is_made else self._no_draft(context, rows)
        self.stats.draft_seconds += time.perf_counter() - started
        return draft

    def _draft_at(self, context: Context, extent: Extent) -> Draft:
        """As many tokens for every row as the extent has."""
        if self.drafter is None or extent.window == 1:
            return empty_draft(context)
        room_B, rule = self.state.room(extent.rows, extent.window - 1), Rule.always(extent.window - 1)
        return self.drafter.draft(context, room_B, rule, extent)

    def _no_draft(self, context: Context, rows: int) -> Draft:
        """Nothing drafted for any row: K = 0. Made once per number of rows, for plain decoding's sake."""
        if rows not in self._empty:
            self._empty = {rows: empty_draft(context)}
        return self._empty[rows]

    def _verify(self, context: Context, draft: Draft) -> Logits:
        """The verifier's, after each row's last token and after each draft token that is sent."""
        window = self.state.window(draft)
        logits = Logits(self.verifier.run(window), window.firsts_R1, window.longest)
        if self.constraints.rests(context.tokens_BL, window.starts_R, context.prompt_lengths_B):
            return logits
        return self._constrained(context, logits.padded_BTV, window.starts_R, window.padded(window.tokens_N))

    def _verify_at(self, context: Context, draft: Draft, extent: Extent) -> Logits:
        """The same of a shape decided beforehand."""
        window_BT, starts_B = self.state.rectangle(draft)
        logits_BTV = self.verifier.forward(window_BT, starts_B, extent=extent)
        return self._constrained(context, logits_BTV, starts_B, window_BT)

    def _constrained(self, context: Context, logits_BTV: Tensor, starts_B: Tensor, window_BT: Tensor) -> Logits:
        return Logits.rectangle(
            self.constraints.apply(
                logits_BTV, context.tokens_BL, starts_B, context.prompt_lengths_B, context.limits_B, window_BT
            )
        )

    def _commit(
        self, context: Context, draft: Draft, verdict: Verdict, logits: Logits, open_B: Tensor | None = None
    ) -> Outcome:
        """What the iteration leaves behind in rows that are open (B,), by default all; their lengths are as before."""
        outcome = self.keep(context, draft, verdict, open_B)
        trace(self.state, context, outcome, logits, self.record_gaps)
        if self.drafter is not None:
            self.drafter.commit(context, verdict.accepted_B)
        return outcome
