"""What each iteration leaves behind in the slots: counters always, gaps when lossy, traces as the telemetry level asks.

Everything is written for all live rows at once, into the slot tensors; `results.py` reads it out when a row ends.
Nothing here decides anything: tokens are the same at every telemetry level. In tensor operations, or in one call where
there is a kernel: some thirty operations for a draft were eight percent of an iteration.

Shapes: B live rows, K draft, T = K + 1 window, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmasd.confidence.largest import top_and_mass
from cmasd.core import Draft, Logits, Verdict
from cmasd.drafters import Context
from cmasd.drafters.base import is_sent
from cmasd.engine.slots import SlotState
from cmasd.kernels import kernels_for
from cmasd.signals import FROM_DRAFT, FROM_VERIFIER, NAN, IterationTrace, RowNumbers, TokenTrace


@dataclass(frozen=True)
class Outcome:
    """One iteration of all live rows, judged."""

    draft: Draft
    verdict: Verdict
    emitted_BT: Tensor
    """(B, T) int64: the draft, with the verifier's own token in the place after the accepted prefix."""
    count_B: Tensor
    """(B,) int64: tokens that the row gains, cut after an end of sequence; 0 where it has finished before."""
    ended_B: Tensor
    """(B,) bool: the last of these ends the sequence."""

    @property
    def ran_B(self) -> Tensor:
        """(B,) int64: 1, or 0 for rows that had finished before."""
        return self.count_B.clamp_max(1)

    @property
    def kept_B(self) -> Tensor:
        """(B,) accepted draft tokens that stay in the output."""
        return self.verdict.accepted_B.minimum(self.count_B)

    @property
    def rejected_B(self) -> Tensor:
        """(B,) bool: a draft token was rejected before the row ended."""
        accepted_B = self.verdict.accepted_B
        return (accepted_B < self.draft.lengths_B) & (accepted_B < self.count_B)

    @property
    def scores_BK4(self) -> Tensor:
        """(B, K, 4) confidence, entropy, margin, softmax."""
        return torch.cat([self.draft.confidence_BK[..., None], self.draft.components_BK3], dim=-1)


def trace(state: SlotState, context: Context, outcome: Outcome, logits: Logits, record_gaps: bool) -> None:
    """Record one iteration; called after it is counted, before the rows' lengths advance."""
    if state.top is not None:
        _keep_top(*state.top, context, logits.padded_BTV)
    draft, verdict, kernels = outcome.draft, outcome.verdict, kernels_for(logits.values_NV)
    is_kept = draft.tokens_BK.shape[1] and state.iteration_trace is not None  # plain ones hold their initial values
    if not (is_kept or record_gaps or state.token_trace is not None):
        return
    if kernels is not None:
        kernels.trace(
            *(logits.values_NV, logits.firsts_B1, outcome.emitted_BT, outcome.count_B, verdict.accepted_B),
            (draft.lengths_B, draft.confidence_BK, draft.components_BK3, verdict.tau_BK),
            draft.logprob_BK,
            draft.source_B if draft.source_BK is None else draft.source_BK,
            *(state.numbers, state.plain_token),
            (state.token_trace, state.iteration_trace, state.gap_sum if record_gaps else None),
        )
        return
    _record(state, context, outcome, logits.padded_BTV, record_gaps)
    if draft.source_BK is not None:
        _name_sources(state, context, outcome, draft.source_BK)
    elif draft.source_B is not None:
        _name_sources(state, context, outcome, draft.source_B[:, None].expand(draft.tokens_BK.shape))


def _name_sources(state: SlotState, context: Context, outcome: Outcome, source_BK: Tensor) -> None:
    """Who proposed the tokens that were kept, and the first rejected one, in place of `FROM_DRAFT`."""
    kept_B = outcome.kept_B
    if state.token_trace is not None:
        position_K = torch.arange(source_BK.shape[1], device=kept_B.device)
        row_N, position_N = (position_K < kept_B[:, None]).nonzero(as_tuple=True)
        place_N = (context.lengths_B - context.prompt_lengths_B)[row_N] + position_N
        source_N = source_BK[row_N, position_N].to(state.token_trace.dtype)
        state.token_trace[row_N, place_N, TokenTrace.source.place] = source_N
    if state.iteration_trace is not None:
        row_M = outcome.rejected_B.nonzero().squeeze(1)
        step_M = state.numbers[row_M, RowNumbers.iterations.place] - 1
        source_M = source_BK[row_M, kept_B[row_M]].to(state.iteration_trace.dtype)
        state.iteration_trace[row_M, step_M, IterationTrace.rejected_source.place] = source_M


def _record(state: SlotState, context: Context, outcome: Outcome, logits_BTV: Tensor, record_gaps: bool) -> None:
    if outcome.draft.tokens_BK.shape[1] == 0:
        _trace_plain(state, context, logits_BTV, outcome, record_gaps)
        return
    live = len(outcome.count_B)
    if state.iteration_trace is not None:
        step_B = state.numbers[:live, RowNumbers.iterations.place] - outcome.ran_B
        state.iteration_trace[torch.arange(live, device=step_B.device), step_B] = iteration_row(outcome)
    if not record_gaps and state.token_trace is None:
        return
    gap_BT, logprob_BT = chosen(logits_BTV, outcome.emitted_BT)
    position_T = torch.arange(gap_BT.shape[1], device=gap_BT.device)
    if record_gaps:
        state.gap_sum[:live] += gap_BT.where(position_T < outcome.count_B[:, None], 0.0).sum(-1)
    if state.token_trace is not None:
        rows_BT8 = token_rows(state.plain_token, outcome, gap_BT, logprob_BT)
        where_BT = (context.lengths_B - context.prompt_lengths_B)[:, None] + position_T
        state.token_trace[:live].scatter_(1, where_BT[..., None].expand(rows_BT8.shape), rows_BT8)


def _trace_plain(state: SlotState, context: Context, logits_B1V: Tensor, outcome: Outcome, record_gaps: bool) -> None:
    """Without a draft every row gains one token of the verifier's own, and iterations hold their initial values."""
    emitted_B1, live = outcome.emitted_BT, len(outcome.count_B)
    gap_B1, logprob_B1 = chosen(logits_B1V, emitted_B1)
    if record_gaps:
        state.gap_sum[:live].addcmul_(gap_B1[:, 0], outcome.count_B)
    if state.token_trace is not None:
        rows_B18 = state.plain_token.repeat(live, 1, 1)
        rows_B18[..., TokenTrace.gap_nats.place] = gap_B1
        rows_B18[..., TokenTrace.verifier_logprob.place] = logprob_B1
        where_B1 = (context.lengths_B - context.prompt_lengths_B)[:, None]
        state.token_trace[:live].scatter_(1, where_B1[..., None].expand(rows_B18.shape), rows_B18)


def chosen(logits_BTV: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) float32 of tokens: how far their logits lie below the largest, and their log-probabilities; in nats."""
    top_BT, log_mass_BT = top_and_mass(logits_BTV.float())
    gap_BT = top_BT - logits_BTV.gather(-1, tokens_BT[..., None]).squeeze(-1).float()
    return gap_BT, -gap_BT - log_mass_BT


def _keep_top(ids_CNk: Tensor, logprobs_CNk: Tensor, context: Context, logits_BTV: Tensor) -> None:
    """The verifier's most likely tokens at every place of the window; what lies behind a rejection is overwritten."""
    live, window, _ = logits_BTV.shape
    top = logits_BTV.float().log_softmax(-1).topk(ids_CNk.shape[-1], dim=-1)
    position_T = torch.arange(window, device=logits_BTV.device)
    where_BT1 = ((context.lengths_B - context.prompt_lengths_B)[:, None] + position_T)[..., None]
    where_BTk = where_BT1.expand(top.indices.shape)
    ids_CNk[:live].scatter_(1, where_BTk, top.indices)
    logprobs_CNk[:live].scatter_(1, where_BTk, top.values)


def iteration_row(outcome: Outcome) -> Tensor:
    """(B, 7) float32 as in `IterationTrace`; NaN where no token was rejected."""
    scores_BT4 = torch.nn.functional.pad(outcome.scores_BK4, (0, 0, 0, 1), value=NAN)
    where_B14 = outcome.verdict.accepted_B[:, None, None].expand(-1, 1, 4)
    first_rejected_B4 = scores_BT4.gather(1, where_B14).squeeze(1).where(outcome.rejected_B[:, None], NAN)
    source_B1 = torch.where(outcome.rejected_B, float(FROM_DRAFT), float(FROM_VERIFIER))[:, None]
    counts = outcome.draft.lengths_B[:, None], outcome.kept_B[:, None]
    return torch.cat([*counts, first_rejected_B4, source_B1], dim=-1)


def token_rows(plain_8: Tensor, outcome: Outcome, gap_BT: Tensor, logprob_BT: Tensor) -> Tensor:
    """(B, T, 8) float32 as in `TokenTrace`; scores are NaN for the verifier's own tokens."""
    sent_BK = is_sent(outcome.draft)
    position_K = torch.arange(sent_BK.shape[1], device=gap_BT.device)
    accepted_BK1 = (position_K < outcome.verdict.accepted_B[:, None])[..., None]
    source_BK1 = torch.where(accepted_BK1, float(FROM_DRAFT), float(FROM_VERIFIER))
    tau_BK1 = outcome.verdict.tau_BK.where(sent_BK, 0.0)[..., None]
    drafted_BK6 = torch.cat([source_BK1, outcome.scores_BK4.where(accepted_BK1, NAN), tau_BK1], dim=-1)
    own_B16 = plain_8[: TokenTrace.gap_nats.place].expand(len(gap_BT), 1, -1)
    scores_BT6 = torch.cat([drafted_BK6, own_B16], dim=1)
    return torch.cat([scores_BT6, gap_BT[..., None], logprob_BT[..., None], *_drafted(outcome, accepted_BK1)], dim=-1)


def _drafted(outcome: Outcome, accepted_BK1: Tensor) -> list[Tensor]:
    """(B, T, 1) each: the place of every accepted token in its draft, and its log-probability by the drafter."""
    logprob_BK = outcome.draft.logprob_BK
    if logprob_BK is None:
        logprob_BK = torch.full_like(outcome.draft.confidence_BK, NAN)
    position_K1 = torch.arange(1, accepted_BK1.shape[1] + 1, device=accepted_BK1.device)[:, None]
    columns = (position_K1 * accepted_BK1, 0.0), (logprob_BK.float()[..., None].where(accepted_BK1, NAN), NAN)
    return [torch.nn.functional.pad(column.float(), (0, 0, 0, 1), value=own) for column, own in columns]
