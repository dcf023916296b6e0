"""R-Stitch in a batch (arXiv 2507.17307): a small and a large model say a row's tokens in turn, as entropy tells.

    small: one token for each row that it speaks for; where it is not sure, the row needs the large model
    large: if it is due, reads what it has not seen of the rows that need it and speaks for each; sure, it hands back

Either model's cache holds its own length of each row. Under `stitch.speculate` the small model goes on drafting where
it is not sure, and a row needs the large model when its draft is complete: so whether a token is said, drafted or
dropped depends on nothing but its row, and not on when the large model runs.

Shapes: B live rows, R of them, K draft, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmasd.confidence.scores import score
from cmasd.core import Draft, Logits, Request, Result
from cmasd.drafters import Context, ModelDrafter
from cmasd.drafters.base import is_one_of
from cmasd.engine.reader import Reader
from cmasd.engine.routing import Routing
from cmasd.engine.slots import SlotState
from cmasd.engine.stitched_rows import keep_large, keep_small
from cmasd.engine.trace import Outcome
from cmasd.policies import Rule, StitchPolicy
from cmasd.telemetry.stats import EngineStats
from cmasd.verification import OwnDraws, Verification
from cmasd.verification.own_draws import SMALL

ONE = Rule.always(1)


@dataclass
class Step:
    """What a step has done."""

    count_B: Tensor
    """(B,) int64 tokens that each row gains."""
    ended_B: Tensor
    """(B,) bool: the last of these ends the sequence."""
    small: int = 0
    """Rows that the small model spoke, or drafted, for."""
    dropped: int = 0
    """Rows that it was not sure of and handed over."""
    large: int = 0
    """Rows that the large model spoke for."""
    returned: int = 0
    """Rows that it handed back."""
    read: int = 0
    """Tokens that it read for them."""

    def count(self, stats: EngineStats, slots: int) -> None:
        """Add what it did to an engine's counters."""
        stats.iterations += self.large > 0
        stats.idle_iterations += self.large == 0
        stats.row_iterations += self.large
        stats.idle_row_iterations += len(self.count_B) - self.large
        stats.slot_iterations += slots
        stats.drafter_tokens += self.small
        stats.small_forwards += self.small > 0


class Stitch:
    """Both models over the engine's slots, and who is to speak in each."""

    def __init__(
        self,
        policy: StitchPolicy,
        small: ModelDrafter,
        large: Reader,
        verification: Verification,
        state: SlotState,
        eos_ids: Tensor,
    ) -> None:
        self.large = large
        self._policy = policy
        self._small = small
        self._verification = verification
        self._state = state
        self._eos_ids = eos_ids
        slots, most = len(state.keys), policy.max_draft_tokens if policy.speculates else 0
        self._most = most
        self._numbers = torch.zeros(slots, 5, dtype=torch.int64, device=eos_ids.device)
        """(C, 5), as the next line names them."""
        self._needs, self._drafted, self._waited, self._said, self._switches = self._numbers.unbind(1)
        self._scores = torch.zeros(slots, most, 4, device=eos_ids.device)
        """(C, K, 4) confidence, entropy, margin and softmax of drafted tokens."""
        self._routing = Routing(policy, slots, eos_ids.device)
        samples = isinstance(verification, OwnDraws)
        self._probs = torch.zeros(slots, most, small.vocabulary_size, device=eos_ids.device) if samples else None

    # ---------------------------------------------------------------- following the slots

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """New rows: the small model speaks first, unless it never does."""
        self._small.enter(slots, requests, later=later or self._policy.starts_large)
        self._routing.enter(slots)
        self._numbers[slots] = 0
        self._needs[slots] = int(self._policy.starts_large)

    def follow(self) -> None:
        """Nothing was fed: the large model reads by itself what it has not seen."""

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """The rows in these slots are done."""
        self._small.leave(slots, results)

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` is now in slot `target`."""
        self._small.move(source, target)
        self._routing.move(source, target)
        for tensor in (self._numbers, self._scores, self._probs):
            if tensor is not None:
                tensor[target] = tensor[source]

    def sign(self, results: list[Result], slots: list[int]) -> list[Result]:
        """Finished rows, with who said how much; what the large model has not seen has no gap."""
        said, switches = self._said[slots].tolist(), self._switches[slots].tolist()
        return [
            replace(
                result,
                num_small_tokens=small,
                num_switches=turns,
                mean_gap_nats=float("nan") if small else result.mean_gap_nats,
            )
            for result, small, turns in zip(results, said, switches, strict=True)
        ]

    # ---------------------------------------------------------------- one step

    def step(self, live: int) -> Step:
        """Every row gains a token at most, or a checked draft; lengths are the caller's to advance."""
        context = self._state.context(live)
        step = Step(torch.zeros_like(context.lengths_B), torch.zeros(live, dtype=torch.bool, device=self._needs.device))
        self._ask_small(context, step)
        self._ask_large(context, step)
        self._policy.learn(step.small, step.dropped, step.large, step.returned, step.read)
        return step

    def _ask_small(self, context: Context, step: Step) -> None:
        live = len(context.lengths_B)
        needs_B, drafted_B = self._needs[:live] > 0, self._drafted[:live]
        open_B = ~self._is_complete(context)
        step.small = int(open_B.sum())
        if not step.small:
            return
        places_B = context.lengths_B + drafted_B
        draft = self._small.draft(replace(context, lengths_B=places_B), open_B.long(), ONE)
        token_B = self._token(draft, places_B)
        unsure_B = self._unsure(context, open_B & ~needs_B, draft, token_B)
        sure_B = open_B & ~needs_B & ~unsure_B
        step.dropped = int(unsure_B.sum())
        self._needs[:live] += unsure_B
        self._switches[:live] += unsure_B
        room_B = self._room(context)
        self._append(context, open_B & ~sure_B & (drafted_B < room_B), places_B, token_B, draft)
        rows_R = sure_B.nonzero().squeeze(1)
        if len(rows_R):
            self._said[rows_R] += 1
            step.count_B[rows_R] = 1
            step.ended_B[rows_R] = is_one_of(token_B[rows_R], self._eos_ids)
            keep_small(self._state, context, rows_R, token_B[rows_R], draft.components_BK3[rows_R, 0])

    def _unsure(self, context: Context, judged_B: Tensor, draft: Draft, token_B: Tensor) -> Tensor:
        """(B,) bool: of the rows that it may speak for, those whose token of the small model is dropped."""
        rows_R = judged_B.nonzero().squeeze(1)
        if not len(rows_R):
            return torch.zeros_like(judged_B)
        keys = [self._state.keys[row] for row in rows_R.tolist()]
        dropped_R = self._routing.drops(context, rows_R, keys, draft.components_BK3[rows_R, 0], token_B[rows_R])
        return torch.zeros_like(judged_B).index_put((rows_R,), dropped_R)

    def _token(self, draft: Draft, places_B: Tensor) -> Tensor:
        """(B,) what the small model says: the likeliest, or drawn for the row and the place."""
        if not isinstance(self._verification, OwnDraws):
            return draft.tokens_BK[:, 0]
        assert draft.probs_BKV is not None, "a drafter that samples gives its distribution"
        probs_BV = draft.probs_BKV[:, 0]
        idle_B1 = probs_BV.sum(-1, keepdim=True) == 0  # rows that were not asked have none
        self._verification.about(self._state.keys[: len(places_B)], places_B)
        return self._verification.draw_for(SMALL, probs_BV + idle_B1)

    def _append(self, context: Context, more_B: Tensor, places_B: Tensor, token_B: Tensor, draft: Draft) -> None:
        """Another token of the drafts of rows, behind their own in their buffers."""
        rows_R = more_B.nonzero().squeeze(1)
        if not len(rows_R):
            return
        where_R = self._drafted[rows_R]
        context.tokens_BL[rows_R, places_B[rows_R]] = token_B[rows_R]
        self._scores[rows_R, where_R, 0] = draft.confidence_BK[rows_R, 0].float()
        self._scores[rows_R, where_R, 1:] = draft.components_BK3[rows_R, 0].float()
        if self._probs is not None and draft.probs_BKV is not None:
            self._probs[rows_R, where_R] = draft.probs_BKV[rows_R, 0].float()
        self._drafted[rows_R] += 1

    def _room(self, context: Context) -> Tensor:
        """(B,) tokens that may be drafted; the large model's own takes one place."""
        return (context.limits_B - context.lengths_B - 1).clamp(0, self._most)

    def _is_complete(self, context: Context) -> Tensor:
        """(B,) bool: the row needs the large model, and the small one has nothing to add."""
        live = len(context.lengths_B)
        needs_B, drafted_B = self._needs[:live] > 0, self._drafted[:live]
        if not self._most:
            return needs_B
        last_B1 = context.tokens_BL.gather(1, (context.lengths_B + drafted_B - 1)[:, None])
        has_end_B = (drafted_B > 0) & is_one_of(last_B1.squeeze(1), self._eos_ids)
        return needs_B & ((drafted_B >= self._room(context)) | has_end_B)

    # ---------------------------------------------------------------- the large model

    def _ask_large(self, context: Context, step: Step) -> None:
        live = len(context.lengths_B)
        ready_B = self._is_complete(context)
        rows_R = ready_B.nonzero().squeeze(1)
        waited = int(self._waited[rows_R].max()) if len(rows_R) else 0
        if not self._policy.is_due(len(rows_R), live - len(rows_R), waited):
            self._waited[:live] += ready_B
            return
        heard_R = self._drafted[rows_R]
        logits, read_R = self.large.read(context, rows_R, heard_R)
        draft = self._draft(context, rows_R, heard_R)
        keys = [self._state.keys[row] for row in rows_R.tolist()]
        if isinstance(self._verification, OwnDraws):
            self._verification.about(keys, context.lengths_B[rows_R])
        outcome = self._outcome(draft, logits)
        accepted_R = outcome.verdict.accepted_B
        right_R = context.lengths_B[rows_R] + accepted_R
        own = score(logits.values_NV[logits.firsts_B1[:-1] + accepted_R])
        keep_large(self._state, context, rows_R, outcome, logits, own.components)
        step.count_B[rows_R], step.ended_B[rows_R] = outcome.count_B, outcome.ended_B
        is_over_R = outcome.ended_B | (context.lengths_B[rows_R] + outcome.count_B >= context.limits_B[rows_R])
        said = own.components, right_R, outcome.verdict.next_B
        sure_R = ~self._routing.keeps(context, rows_R, keys, *said, ~is_over_R, read_R) & ~is_over_R
        step.large, step.returned, step.read = len(rows_R), int(sure_R.sum()), int(read_R.sum())
        self._switches[rows_R] += sure_R
        self._needs[rows_R] = (~sure_R).long()
        self._drafted[rows_R] = 0
        self._waited[rows_R] = 0
        self.large.rewind(rows_R, right_R)
        self._small.rewind(rows_R, right_R)

    def _draft(self, context: Context, rows_R: Tensor, heard_R: Tensor) -> Draft:
        """What the small model has drafted for rows."""
        longest = int(heard_R.max())
        steps_K = torch.arange(longest, device=rows_R.device)
        scores_RK4 = self._scores[rows_R, :longest]
        return Draft(
            tokens_BK=context.tokens_BL[rows_R[:, None], context.lengths_B[rows_R][:, None] + steps_K],
            lengths_B=heard_R,
            confidence_BK=scores_RK4[..., 0],
            components_BK3=scores_RK4[..., 1:],
            probs_BKV=None if self._probs is None else self._probs[rows_R, :longest],
        )

    def _outcome(self, draft: Draft, logits: Logits) -> Outcome:
        """The accepted tokens and the large model's own, up to an end of sequence."""
        verdict = self._verification.verify(draft, logits)
        accepted_R1 = verdict.accepted_B[:, None]
        emitted_RT = torch.cat([draft.tokens_BK, verdict.next_B[:, None]], dim=1)
        emitted_RT = emitted_RT.scatter(1, accepted_R1, verdict.next_B[:, None])
        steps_T = torch.arange(emitted_RT.shape[1], device=emitted_RT.device)
        is_end_RT = is_one_of(emitted_RT, self._eos_ids) & (steps_T <= accepted_R1)
        ended_R = is_end_RT.any(-1)
        count_R = torch.where(ended_R, is_end_RT.long().argmax(-1), verdict.accepted_B) + 1
        return Outcome(draft, verdict, emitted_RT, count_R, ended_R)
