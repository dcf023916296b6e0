"""What an iteration leaves behind in its rows: tokens and counters, all but lengths, which advance at the very end.

In tensor operations, or in one call where there is a kernel: for few rows these two dozen operations took as long as a
third of the verifier's forward.

Shapes: B live rows, K draft, T = K + 1 window.
"""

import torch
from torch import Tensor

from cmasd.core import Draft, Verdict
from cmasd.drafters import Context
from cmasd.drafters.base import is_one_of, is_sent
from cmasd.engine.slots import SlotState
from cmasd.engine.trace import Outcome
from cmasd.kernels import kernels_for
from cmasd.signals import COUNTERS, RowNumbers


class Committer:
    """Keeps the accepted prefix and the verifier's token."""

    def __init__(self, state: SlotState, eos_ids: Tensor) -> None:
        self._state = state
        self._eos_ids = eos_ids
        self._kernels = kernels_for(eos_ids)
        self._steps = torch.arange(state.lengths_2K.shape[1], device=eos_ids.device)
        self._ones = torch.ones(len(state.keys), dtype=torch.int64, device=eos_ids.device)

    def __call__(self, context: Context, draft: Draft, verdict: Verdict, open_B: Tensor | None = None) -> Outcome:
        """For rows that are open (B,): by default all."""
        if self._kernels is None or open_B is not None:
            is_plain = draft.tokens_BK.shape[1] == 0
            return (self._plain if is_plain else self._drafted)(context, draft, verdict, open_B)
        emitted_BT, count_B, ended_B = self._kernels.commit(
            *(draft.tokens_BK, draft.lengths_B, draft.confidence_BK, verdict.accepted_B, verdict.next_B, self._eos_ids),
            *(self._state.numbers, context.tokens_BL, self._state.lengths_2K, self._state.confidence_sum),
        )
        return Outcome(draft, verdict, emitted_BT, count_B, ended_B)

    def _plain(self, context: Context, draft: Draft, verdict: Verdict, open_B: Tensor | None) -> Outcome:
        rows, next_B = len(verdict.next_B), verdict.next_B
        count_B, ended_B = self._ones[:rows], is_one_of(next_B, self._eos_ids)
        if open_B is not None:
            count_B, ended_B = count_B * open_B, ended_B & open_B
        context.tokens_BL.scatter_(1, context.lengths_B[:, None], next_B[:, None])
        self._state.numbers[:rows, RowNumbers.iterations.place] += count_B
        return Outcome(draft, verdict, next_B[:, None], count_B, ended_B)

    def _drafted(self, context: Context, draft: Draft, verdict: Verdict, open_B: Tensor | None) -> Outcome:
        position_T = self._steps[: draft.tokens_BK.shape[1] + 1]
        emitted_BT = torch.cat([draft.tokens_BK, verdict.next_B[:, None]], dim=1)
        emitted_BT = emitted_BT.scatter(1, verdict.accepted_B[:, None], verdict.next_B[:, None])
        is_eos_BT = is_one_of(emitted_BT, self._eos_ids) & (position_T <= verdict.accepted_B[:, None])
        ended_B = is_eos_BT.any(-1)
        count_B = torch.where(ended_B, is_eos_BT.long().argmax(-1), verdict.accepted_B) + 1
        if open_B is not None:
            count_B, ended_B = count_B * open_B, ended_B & open_B
        context.tokens_BL.scatter_(1, context.lengths_B[:, None] + position_T, emitted_BT)
        outcome = Outcome(draft, verdict, emitted_BT, count_B, ended_B)
        self._tally(outcome)
        return outcome

    def _tally(self, outcome: Outcome) -> None:
        state, rows, lengths_B = self._state, len(outcome.count_B), outcome.draft.lengths_B
        kept_B, ran_B = outcome.kept_B, outcome.ran_B
        counted = {
            RowNumbers.iterations: ran_B,
            RowNumbers.drafted_tokens: lengths_B,
            RowNumbers.accepted_tokens: kept_B,
            RowNumbers.drafting_row_iterations: lengths_B > 0,
            RowNumbers.rollbacks: outcome.rejected_B,
        }
        state.counters[:rows] += torch.stack([counted[counter] for counter in COUNTERS], dim=-1)
        state.lengths_2K.scatter_add_(1, torch.stack([lengths_B, kept_B]), ran_B.expand(2, -1))
        state.confidence_sum[:rows] += outcome.draft.confidence_BK.where(is_sent(outcome.draft), 0.0).sum(-1)
