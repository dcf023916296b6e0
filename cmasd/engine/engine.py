"""Continuous batching of speculative decoding: one call of `step` is one iteration for all live rows.

    admit -> draft -> verify -> commit -> collect

An iteration drafts up to k tokens per row, verifies them in ONE verifier forward over ragged
windows, keeps the accepted prefix and appends one verifier token; so every row gains at least one
token. The verifier's cache holds all of a row's tokens but the last. Rejected tokens are rolled back
by not advancing the row's length. With no draft (l = 0) the same code is plain AR decoding.

Shapes: B live rows, K draft, T = K + 1 window, V vocabulary.
"""

import time
from collections import deque
from dataclasses import replace

import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.config import Config
from cmasd.core import Draft, Request, Result, Verdict
from cmasd.drafters import Context, Drafter, LookupDrafter, ModelDrafter
from cmasd.engine.pair import Pair
from cmasd.engine.results import read_results
from cmasd.engine.slots import SlotShape, SlotState
from cmasd.engine.trace import Outcome, trace
from cmasd.policies import build_policy
from cmasd.runner.load import load_runner
from cmasd.telemetry.stats import EngineStats
from cmasd.verification import build_verification


class Engine:
    """Rows in, results out. One thread; no I/O."""

    def __init__(self, pair: Pair, config: Config) -> None:
        """Allocates the caches of `config.engine.slots` rows and as many staged ones."""
        self.pair = pair
        self.policy = build_policy(config)
        self.verification = build_verification(config.verification)
        self.record_gaps = config.lossless != "exact"
        slots = config.engine.slots
        self.shape = SlotShape(
            slots=slots,
            staging=slots,
            max_prompt=1 if pair.is_encoder_decoder else pair.max_source_tokens,
            max_new_tokens=pair.max_new_tokens,
            max_source=pair.max_source_tokens if pair.is_encoder_decoder else 0,
            window=self.policy.max_draft_tokens + 1,
        )
        runner_shape = (self.shape.capacity, self.shape.length, self.shape.max_source)
        self.verifier = load_runner(pair.verifier, *runner_shape)
        self.state = SlotState(self.shape, config.telemetry.level, pair.device)
        self.eos_ids = torch.tensor(pair.constraints.eos_token_ids, dtype=torch.int64, device=pair.device)
        self.drafter = self._build_drafter(config, runner_shape)
        self.stats = EngineStats()
        self._queue: deque[Request] = deque()
        self._staged: deque[int] = deque()
        self._live = 0
        self._asked = False

    def _build_drafter(self, config: Config, runner_shape: tuple[int, int, int]) -> Drafter | None:
        if self.policy.max_draft_tokens == 0:
            return None
        if config.drafter.kind == "lookup":
            return LookupDrafter(self.policy, config.drafter.max_ngram)
        assert self.pair.drafter is not None, "the pair is loaded with a drafter unless the policy is plain"
        sampling = config.verification.kind == "sampling"
        return ModelDrafter(
            load_runner(self.pair.drafter, *runner_shape),
            self.policy,
            build_confidence(config.confidence),
            self.pair.constraints,
            self.eos_ids,
            temperature=config.verification.temperature if sampling else None,
            seed=config.verification.seed,
        )

    @property
    def pending(self) -> int:
        """Rows submitted and not yet returned."""
        return len(self._queue) + len(self._staged) + self._live

    def submit(self, requests: list[Request]) -> None:
        """Queue rows behind those already queued, longest sources first among themselves."""
        self._queue.extend(sorted(requests, key=lambda request: -len(request.source)))
        self.stats.steady_row_iterations = self.stats.row_iterations
        self.stats.steady_slot_iterations = self.stats.slot_iterations

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """One iteration for all live rows; returns the rows that it finished."""
        started = time.perf_counter()
        self._admit()
        if self._live == 0:
            return []
        context = self.state.context(self._live)
        draft = self._draft(context)
        drafted = time.perf_counter()
        logits_BTV = self._verify(context, draft)
        verdict = self.verification.verify(draft, logits_BTV)
        ended_B = self._commit(context, draft, verdict, logits_BTV)
        results = self._collect(ended_B)
        self.stats.draft_seconds += drafted - started
        self.stats.busy_seconds += time.perf_counter() - started
        return results

    # ---------------------------------------------------------------- admit

    def _admit(self) -> None:
        """Fill free slots from the staging area, staging a batch whenever it is empty."""
        while self._live < self.shape.slots and (self._staged or self._queue):
            if not self._staged:
                self._stage()
            self._move(self._staged.popleft(), self._live)
            self._live += 1

    def _stage(self) -> None:
        """Prefill a batch of queued rows: the encoder (or the prompt) runs once per batch."""
        batch = [self._queue.popleft() for _ in range(min(self.shape.staging, len(self._queue)))]
        slots = [self.shape.slots + i for i in range(len(batch))]
        sources = [request.source for request in batch]
        self.verifier.prefill(slots, sources)
        if self.drafter is not None:
            self.drafter.prefill(slots, sources)
        for slot, request in zip(slots, batch, strict=True):
            encoder = self.pair.is_encoder_decoder
            prompt = self.pair.decoder_start if encoder else request.source
            limit = len(prompt) + min(request.max_new_tokens, self.shape.max_new_tokens)
            self.state.enter(slot, request.key, prompt, request.source if encoder else [], limit)
        self._staged.extend(slots)

    def _move(self, source: int, target: int) -> None:
        self.verifier.move(source, target)
        if self.drafter is not None:
            self.drafter.move(source, target)
        self.state.move(source, target)

    # ---------------------------------------------------------------- draft and verify

    def _draft(self, context: Context) -> Draft:
        """The bonus token takes one place, so a row near its limit drafts less, or nothing."""
        room_B = (context.limits_B - context.lengths_B - 1).clamp_max(self.policy.max_draft_tokens)
        self._asked = self.drafter is not None and bool((room_B > 0).any())
        if self.drafter is None or not self._asked:
            return empty_draft(context)
        draft = self.drafter.draft(context, room_B)
        longest = int(draft.lengths_B.max())
        return replace(
            draft,
            tokens_BK=draft.tokens_BK[:, :longest],
            confidence_BK=draft.confidence_BK[:, :longest],
            components_BK3=draft.components_BK3[:, :longest],
            probs_BKV=None if draft.probs_BKV is None else draft.probs_BKV[:, :longest],
        )

    def _verify(self, context: Context, draft: Draft) -> Tensor:
        """(B, T, V) verifier logits after the last token and after each draft token."""
        starts_B = context.lengths_B - 1
        window_BT = torch.cat([context.tokens_BL.gather(1, starts_B[:, None]), draft.tokens_BK], dim=1)
        logits_BTV = self.verifier.forward(window_BT, starts_B)
        return self.pair.constraints.apply(
            logits_BTV, context.tokens_BL, starts_B, context.prompt_lengths_B, context.limits_B, window_BT
        )

    # ---------------------------------------------------------------- commit

    def _commit(self, context: Context, draft: Draft, verdict: Verdict, logits_BTV: Tensor) -> Tensor:
        """Write the accepted prefix and the verifier's token; returns which rows ended (B,)."""
        position_T = torch.arange(logits_BTV.shape[1], device=logits_BTV.device)
        emitted_BT = torch.cat([draft.tokens_BK, verdict.next_B[:, None]], dim=1)
        emitted_BT = emitted_BT.scatter(1, verdict.accepted_B[:, None], verdict.next_B[:, None])
        is_eos_BT = torch.isin(emitted_BT, self.eos_ids) & (position_T <= verdict.accepted_B[:, None])
        ended_B = is_eos_BT.any(-1)
        first_eos_B = torch.where(ended_B, is_eos_BT.long().argmax(-1), verdict.accepted_B)
        outcome = Outcome(draft, verdict, emitted_BT, count_B=first_eos_B + 1)
        context.tokens_BL.scatter_(1, context.lengths_B[:, None] + position_T, emitted_BT)
        trace(self.state, context, outcome, logits_BTV, self.record_gaps)
        if self.drafter is not None and self._asked:
            self.drafter.commit(verdict.accepted_B)
        self.state.lengths[: self._live] += outcome.count_B
        self.stats.iterations += 1
        self.stats.row_iterations += self._live
        self.stats.slot_iterations += self.shape.slots
        return ended_B

    # ---------------------------------------------------------------- collect

    def _collect(self, ended_B: Tensor) -> list[Result]:
        """Read out finished rows, then close the holes: staged rows first, else the last live ones."""
        state = self.state
        done_B = ended_B | (state.lengths[: self._live] >= state.limits[: self._live])
        slots = done_B.nonzero().squeeze(1).tolist()
        if not slots:
            return []
        results = read_results(state, slots, ended_B[slots].tolist())
        totals = state.counters[slots].sum(0).tolist()
        self.stats.output_tokens += sum(result.num_output_tokens for result in results)
        self.stats.drafted_tokens += totals[1]
        self.stats.accepted_tokens += totals[2]
        self.stats.drafting_row_iterations += totals[3]
        self.stats.rollbacks += totals[4]
        for hole in reversed(slots):
            self._fill(hole)
        return results

    def _fill(self, hole: int) -> None:
        if not self._staged and self._queue:
            self._stage()
        if self._staged:
            self._move(self._staged.popleft(), hole)
            return
        self._live -= 1
        if hole != self._live:
            self._move(self._live, hole)


def empty_draft(context: Context) -> Draft:
    """Nothing drafted for any row: K = 0."""
    none_B0 = context.tokens_BL[:, :0]
    real_B0 = none_B0.float()
    return Draft(none_B0, torch.zeros_like(context.lengths_B), real_B0, real_B0[..., None].expand(-1, -1, 3))
