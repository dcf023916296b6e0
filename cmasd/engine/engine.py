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
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.config.tree import Config
from cmasd.core import Draft, Request, Result, Verdict
from cmasd.drafters import Context, Drafter, LookupDrafter, ModelDrafter, ParallelDrafter
from cmasd.drafters.choice import Choice
from cmasd.engine.capacity import in_halves
from cmasd.engine.costs import step_table, warm_up
from cmasd.engine.pair import Pair
from cmasd.engine.results import read_results
from cmasd.engine.slots import LEAST_STAGED, SlotShape, SlotState
from cmasd.engine.trace import Outcome, trace
from cmasd.policies import GoodputPolicy, Observation, build_policy
from cmasd.policies.costs import IterationCosts, StepTable
from cmasd.runner.families import Words
from cmasd.runner.load import load_runner, share_encoder, share_weights
from cmasd.runner.parallel import ParallelModel
from cmasd.runner.parallel_runner import ParallelRunner
from cmasd.telemetry.stats import EngineStats
from cmasd.verification import build_verification


class Engine:
    """Rows in, results out. One thread; no I/O."""

    def __init__(self, pair: Pair, config: Config) -> None:
        """Allocates the caches of `config.engine.slots` rows and as many staged ones."""
        self.pair = pair
        self.policy = build_policy(config)
        self.verification = build_verification(config, pair.constraints.eos_token_ids)
        self.record_gaps = config.lossless != "exact"
        slots = config.engine.slots
        assert slots is not None, "an engine is built from a configuration that `capacity.resolve` has seen"
        self.shape = SlotShape(
            slots=slots,
            staging=max(slots, LEAST_STAGED),
            max_prompt=1 if pair.is_encoder_decoder else pair.max_source_tokens,
            max_new_tokens=pair.max_new_tokens,
            max_source=pair.max_source_tokens if pair.is_encoder_decoder else 0,
            window=self.policy.max_draft_tokens + 1,
        )
        # Tokens that are never generated are banned by the output layers, so the other rules may have nothing to do.
        self.constraints = replace(pair.constraints, banned=())
        runner_shape = (self.shape.capacity, self.shape.length, self.shape.max_source)
        words, graphs = Words(pair.constraints.banned), config.engine.graphs
        self.verifier = load_runner(pair.verifier, *runner_shape, words, pair.int8, graphs)
        self.state = SlotState(self.shape, config.telemetry.level, pair.device, config.telemetry.teacher_top_k)
        self.eos_ids = torch.tensor(pair.constraints.eos_token_ids, dtype=torch.int64, device=pair.device)
        self.drafter = self._build_drafter(config, runner_shape)
        if isinstance(self.policy, GoodputPolicy):
            self.policy.costs = IterationCosts(self._step_table(graphs))
        self.stats = EngineStats()
        self._queue: deque[Request] = deque()
        self._staged: deque[int] = deque()
        self._live = 0
        self._asked = False
        self._empty: dict[int, Draft] = {}
        self._ones = torch.ones(slots, dtype=torch.int64, device=pair.device)
        self._steps = torch.arange(self.shape.window, device=pair.device)

    def _build_drafter(self, config: Config, runner_shape: tuple[int, int, int]) -> Drafter | None:
        if self.policy.max_draft_tokens == 0:
            return None
        if config.drafter.kind == "lookup":
            return LookupDrafter(self.policy, config.drafter.max_ngram)
        words = Words(self.pair.constraints.banned, self.pair.shortlist)
        choose = Choice(
            config.verification.temperature if config.verification.kind == "sampling" else None,
            config.verification.seed,
            words.tensor(self.pair.device),
            self.verifier.vocabulary_size,
            self.pair.device,
        )
        confidence = build_confidence(config.confidence, config.score)
        if config.drafter.kind == "parallel":
            assert self.pair.parallel is not None, "the pair is loaded with a drafter unless the policy is plain"
            model = ParallelModel(self.pair.parallel, self.pair.verifier, words, self.pair.int8)
            drafting = ParallelRunner(model, self.verifier)
            return ParallelDrafter(drafting, self.policy, confidence, choose, self.eos_ids)
        assert self.pair.drafter is not None, "the pair is loaded with a drafter unless the policy is plain"
        runner = load_runner(self.pair.drafter, *runner_shape, words, self.pair.int8, config.engine.graphs)
        share_encoder(runner, self.verifier)
        if config.drafter.kind == "self":
            share_weights(runner, self.verifier)
        return ModelDrafter(
            runner,
            self.policy,
            confidence,
            self.constraints,
            choose,
            self.eos_ids,
        )

    def _step_table(self, graphs: str) -> StepTable:
        pair = self.pair
        drafting = [pair.drafter and pair.drafter.config, pair.parallel and pair.parallel.shape, pair.shortlist]
        about = [pair.verifier.config, *drafting, pair.int8, graphs]
        return step_table(self.verifier, self.drafter, about, self.shape.slots, self.shape.window)

    def warm_up(self) -> None:
        """Before the first row, once: see `costs.warm_up`."""
        warm_up(self.verifier, self.drafter, self.shape.window)

    @property
    def pending(self) -> int:
        """Rows submitted and not yet returned."""
        return len(self._queue) + len(self._staged) + self._live

    def submit(self, requests: list[Request]) -> None:
        """Queue rows behind those already queued, longest sources first among themselves."""
        self._queue.extend(sorted(requests, key=lambda request: -len(request.source)))
        self.stats.steady_row_iterations = self.stats.row_iterations
        self.stats.steady_slot_iterations = self.stats.slot_iterations

    def decode(self, requests: list[Request]) -> Iterator[Result]:
        """Submit rows and step until none is pending; gives each as it ends."""
        self.submit(requests)
        while self.pending:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """One iteration for all live rows; returns the rows that it finished."""
        started = time.perf_counter()
        self._admit()
        if self._live == 0:
            return []
        admitted = time.perf_counter()
        context = self.state.context(self._live)
        draft = self._draft(context)
        drafted = time.perf_counter()
        logits_BTV = self._verify(context, draft)
        verdict = self.verification.verify(draft, logits_BTV)
        ended_B = self._commit(context, draft, verdict, logits_BTV)
        done = self._done(ended_B)
        committed = time.perf_counter()
        is_typical = not self._asked or self.drafter is None or self.drafter.caught_up
        self.policy.observe(Observation(draft, verdict, committed - admitted, is_typical))
        results = self._collect(done, ended_B)
        self.stats.draft_seconds += drafted - admitted
        self.stats.busy_seconds += time.perf_counter() - started
        return results

    # ---------------------------------------------------------------- admit

    def _admit(self) -> None:
        """Fill free slots from the staging area, staging a batch whenever it is empty."""
        while self._live < self.shape.slots and self._stage():
            count = min(self.shape.slots - self._live, len(self._staged))
            sources = [self._staged.popleft() for _ in range(count)]
            self._move(sources, list(range(self._live, self._live + count)))
            self._live += count

    def _stage(self) -> bool:
        """Prefill a batch of queued rows if none is waiting; returns whether any is."""
        if self._staged or not self._queue:
            return bool(self._staged)
        batch = [self._queue.popleft() for _ in range(min(self.shape.staging, len(self._queue)))]
        slots = [self.shape.slots + i for i in range(len(batch))]
        sources = [request.source for request in batch]
        in_halves(self._prefill, slots, sources)
        for slot, request in zip(slots, batch, strict=True):
            encoder = self.pair.is_encoder_decoder
            prompt = self.pair.decoder_start if encoder else request.source
            limit = len(prompt) + min(request.max_new_tokens, self.shape.max_new_tokens)
            self.state.enter(slot, request.key, prompt, request.source if encoder else [], limit)
        self._staged.extend(slots)
        return True

    def _prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        self.verifier.prefill(slots, sources)
        if self.drafter is not None:
            self.drafter.prefill(slots, sources, later=not self._asked and self.stats.iterations > 0)

    def _move(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.verifier.move(source, target)
            if self.drafter is not None:
                self.drafter.move(source, target)
        self.state.move(sources, targets)

    # ---------------------------------------------------------------- draft and verify

    def _draft(self, context: Context) -> Draft:
        """The bonus token takes one place, so a row near its limit drafts less, or nothing."""
        most = self.policy.plan(self._live) if self.drafter is not None else 0
        self._asked = most > 0
        if self.drafter is None or not self._asked:
            return self._no_draft(context)
        room_B = (context.limits_B - context.lengths_B - 1).clamp_max(most)
        self._asked = bool((room_B > 0).any())
        if not self._asked:
            return self._no_draft(context)
        draft = self.drafter.draft(context, room_B)
        longest = int(draft.lengths_B.max())
        if longest == draft.tokens_BK.shape[1]:
            return draft
        return replace(
            draft,
            tokens_BK=draft.tokens_BK[:, :longest],
            confidence_BK=draft.confidence_BK[:, :longest],
            components_BK3=draft.components_BK3[:, :longest],
            probs_BKV=None if draft.probs_BKV is None else draft.probs_BKV[:, :longest],
        )

    def _no_draft(self, context: Context) -> Draft:
        """Nothing drafted for any row: K = 0. Made once per number of rows, for plain decoding's sake."""
        if self._live not in self._empty:
            self._empty = {self._live: empty_draft(context)}
        return self._empty[self._live]

    def _verify(self, context: Context, draft: Draft) -> Tensor:
        """(B, T, V) verifier logits after the last token and after each draft token."""
        starts_B = context.lengths_B - 1
        window_BT = context.tokens_BL.gather(1, starts_B[:, None])
        if draft.tokens_BK.shape[1]:
            window_BT = torch.cat([window_BT, draft.tokens_BK], dim=1)
        logits_BTV = self.verifier.forward(window_BT, starts_B)
        return self.constraints.apply(
            logits_BTV, context.tokens_BL, starts_B, context.prompt_lengths_B, context.limits_B, window_BT
        )

    # ---------------------------------------------------------------- commit

    def _commit(self, context: Context, draft: Draft, verdict: Verdict, logits_BTV: Tensor) -> Tensor:
        """Write the accepted prefix and the verifier's token; returns which rows ended (B,)."""
        window = logits_BTV.shape[1]
        if window == 1:
            emitted_BT, count_B = verdict.next_B[:, None], self._ones[: self._live]
            ended_B = self._is_eos(verdict.next_B)
            context.tokens_BL.scatter_(1, context.lengths_B[:, None], emitted_BT)
        else:
            position_T = self._steps[:window]
            emitted_BT = torch.cat([draft.tokens_BK, verdict.next_B[:, None]], dim=1)
            emitted_BT = emitted_BT.scatter(1, verdict.accepted_B[:, None], verdict.next_B[:, None])
            is_eos_BT = self._is_eos(emitted_BT) & (position_T <= verdict.accepted_B[:, None])
            ended_B = is_eos_BT.any(-1)
            count_B = torch.where(ended_B, is_eos_BT.long().argmax(-1), verdict.accepted_B) + 1
            context.tokens_BL.scatter_(1, context.lengths_B[:, None] + position_T, emitted_BT)
        trace(self.state, context, Outcome(draft, verdict, emitted_BT, count_B), logits_BTV, self.record_gaps)
        if self.drafter is not None:
            self.drafter.commit(verdict.accepted_B)
        self.state.lengths[: self._live] += count_B
        self.stats.iterations += 1
        self.stats.row_iterations += self._live
        self.stats.slot_iterations += self.shape.slots
        return ended_B

    def _is_eos(self, tokens: Tensor) -> Tensor:
        if len(self.eos_ids) == 1:
            return tokens == self.eos_ids
        return torch.isin(tokens, self.eos_ids)

    # ---------------------------------------------------------------- collect

    def _done(self, ended_B: Tensor) -> list[int]:
        """Slots of the rows that are finished; the host waits here for the device."""
        done_B = ended_B | (self.state.lengths[: self._live] >= self.state.limits[: self._live])
        return done_B.nonzero().squeeze(1).tolist()

    def _collect(self, done: list[int], ended_B: Tensor) -> list[Result]:
        """Read out finished rows, then close the holes: staged rows first, else the last live ones."""
        if not done:
            return []
        state = self.state
        results = read_results(state, done, ended_B[done].tolist())
        totals = state.counters[done].sum(0).tolist()
        self.stats.output_tokens += sum(result.num_output_tokens for result in results)
        self.stats.drafted_tokens += totals[1]
        self.stats.accepted_tokens += totals[2]
        self.stats.drafting_row_iterations += totals[3]
        self.stats.rollbacks += totals[4]
        self._fill(done)
        return results

    def _fill(self, holes: list[int]) -> None:
        """Ascending `holes` among the live rows; what no waiting row fills is closed by live rows from the end."""
        while holes and self._stage():
            count = min(len(holes), len(self._staged))
            self._move([self._staged.popleft() for _ in range(count)], holes[:count])
            holes = holes[count:]
        if not holes:
            return
        self._live -= len(holes)
        inside = [hole for hole in holes if hole < self._live]
        leaving = sorted(set(range(self._live, self._live + len(holes))) - set(holes))
        if inside:
            self._move(leaving, inside)


def empty_draft(context: Context) -> Draft:
    """Nothing drafted for any row: K = 0."""
    none_B0 = context.tokens_BL[:, :0]
    real_B0 = none_B0.float()
    return Draft(none_B0, torch.zeros_like(context.lengths_B), real_B0, real_B0[..., None].expand(-1, -1, 3))
