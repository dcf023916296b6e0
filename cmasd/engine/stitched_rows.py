"""What a stitched step leaves behind in its rows: tokens, counters and traces; lengths advance at the very end.

As `commit.py` and `trace.py`, for any of the live rows. A token of the small model counts as no iteration, and has
neither gap nor log-probability, because the large model has not seen it.

Shapes: B live rows, R of them, K draft, T = K + 1.
"""

import torch
from torch import Tensor

from cmasd.core import Logits
from cmasd.drafters import Context
from cmasd.drafters.base import is_sent
from cmasd.engine.slots import SlotState
from cmasd.engine.trace import Outcome, chosen, iteration_row, token_rows
from cmasd.signals import FROM_SMALL, NAN, TokenTrace


def keep_small(state: SlotState, context: Context, rows_R: Tensor, token_R: Tensor, scores_R3: Tensor) -> None:
    """One token of the small model for each row, with its entropy, margin and softmax."""
    places_R = context.lengths_B[rows_R]
    context.tokens_BL[rows_R, places_R] = token_R
    if state.token_trace is None:
        return
    values_R8 = torch.full((len(rows_R), TokenTrace.width()), NAN, device=token_R.device)
    values_R8[:, 0], values_R8[:, 2:5], values_R8[:, 5] = FROM_SMALL, scores_R3.float(), 0.0
    values_R8[:, TokenTrace.draft_position.place] = 0.0
    state.token_trace[rows_R, places_R - context.prompt_lengths_B[rows_R]] = values_R8


def keep_large(
    state: SlotState, context: Context, rows_R: Tensor, outcome: Outcome, logits: Logits, own_R3: Tensor
) -> None:
    """What the large model accepted and added; `own_R3`: entropy, margin and softmax behind the accepted tokens."""
    steps_T = torch.arange(outcome.emitted_BT.shape[1], device=rows_R.device)
    places_RT = context.lengths_B[rows_R][:, None] + steps_T
    context.tokens_BL[rows_R[:, None], places_RT] = outcome.emitted_BT
    iteration_R = state.counters[rows_R, 0]
    _tally(state, rows_R, outcome)
    if state.iteration_trace is not None and outcome.draft.tokens_BK.shape[1]:
        state.iteration_trace[rows_R, iteration_R] = iteration_row(outcome)
    if state.token_trace is None:
        return
    values_RT8 = token_rows(state.plain_token, outcome, *chosen(logits.padded_BTV, outcome.emitted_BT))
    numbers_R = torch.arange(len(rows_R), device=rows_R.device)
    values_RT8[numbers_R, outcome.verdict.accepted_B, 2:5] = own_R3.float()
    state.token_trace[rows_R[:, None], places_RT - context.prompt_lengths_B[rows_R][:, None]] = values_RT8


def _tally(state: SlotState, rows_R: Tensor, outcome: Outcome) -> None:
    lengths_R, kept_R, ran_R = outcome.draft.lengths_B, outcome.kept_B, outcome.ran_B
    counted = [ran_R, lengths_R, kept_R, (lengths_R > 0).long(), outcome.rejected_B.long()]
    state.counters[rows_R] += torch.stack(counted, dim=-1)
    if not outcome.draft.tokens_BK.shape[1]:
        return
    drafted_R = ran_R * (lengths_R > 0)
    state.lengths_2K.scatter_add_(1, torch.stack([lengths_R, kept_R]), drafted_R.expand(2, -1))
    state.confidence_sum[rows_R] += outcome.draft.confidence_BK.where(is_sent(outcome.draft), 0.0).sum(-1)
