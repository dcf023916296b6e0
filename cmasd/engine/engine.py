"""Continuous batching of speculative decoding: one call of `step` is one iteration for all live rows.

    admit -> draft -> verify -> commit -> collect

An iteration drafts up to k tokens per row, verifies them in ONE verifier forward over ragged
windows, keeps the accepted prefix and appends one verifier token; so every row gains at least one
token. The verifier's cache holds all of a row's tokens but the last. Rejected tokens are rolled back
by not advancing the row's length. With no draft (l = 0) the same code is plain AR decoding.

The host looks at the device within an iteration, to draft and to verify no more than it must, and after it. Where
there are graphs (`engine.graphs`), iterations are of a shape decided beforehand and run ahead of the host (`ahead.py`).

Shapes: B live rows, K draft, T = K + 1 window, V vocabulary.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from cmasd.config.tree import Config
from cmasd.core import Draft, Logits, Request, Result, Verdict
from cmasd.drafters import Context, ModelDrafter
from cmasd.engine.ahead import Ahead, Flight, Snapshot, can_run_ahead, seen
from cmasd.engine.commit import Committer
from cmasd.engine.costs import step_table, warm_up
from cmasd.engine.drafting import build_drafter
from cmasd.engine.pair import Pair
from cmasd.engine.results import read_results
from cmasd.engine.rows import Rows
from cmasd.engine.slots import LEAST_STAGED, SlotShape, SlotState
from cmasd.engine.threads import Threads
from cmasd.engine.trace import Outcome, trace
from cmasd.policies import GoodputPolicy, Rule, build_policy
from cmasd.policies.costs import StepTable
from cmasd.runner.base import Extent
from cmasd.runner.families import Words
from cmasd.runner.graphs import uses_graphs
from cmasd.runner.load import load_runner
from cmasd.telemetry.stats import EngineStats
from cmasd.verification import build_verification

log = logging.getLogger(__name__)


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
            max_prompt=pair.max_prompt,
            max_new_tokens=pair.max_new_tokens,
            max_source=pair.max_source_ids,
            window=self.policy.max_draft_tokens + 1,
        )
        # Tokens that are never generated are banned by the output layers, so the other rules may have nothing to do.
        self.constraints = replace(pair.constraints, banned=())
        max_source = pair.max_source_tokens if pair.is_encoder_decoder else 0
        runner_shape = (self.shape.capacity, self.shape.length, max_source)
        words, graphs = Words(pair.constraints.banned), config.engine.graphs
        self.verifier = load_runner(pair.verifier, *runner_shape, words, pair.int8, graphs)
        self.state = SlotState(self.shape, config.telemetry.level, pair.device, config.telemetry.teacher_top_k)
        self.eos_ids = torch.tensor(pair.constraints.eos_token_ids, dtype=torch.int64, device=pair.device)
        self.drafter = build_drafter(
            config, pair, self.policy.max_draft_tokens, self.verifier, self.constraints, self.eos_ids
        )
        if isinstance(self.policy, GoodputPolicy):
            self.policy.learn_costs(self._step_table(graphs))
        self.stats = EngineStats()
        most, share = torch.get_num_threads(), config.policy.explore_share
        self._threads = Threads(most, share) if pair.device.type == "cpu" and most > 1 else None
        self._asked = False
        self._ahead = self._build_ahead(config) if uses_graphs(config.engine.graphs, pair.device) else None
        self._flight: Flight | None = None
        self._empty: dict[int, Draft] = {}
        self._keep = Committer(self.state, self.eos_ids)
        self._rows = Rows(pair, self.shape, self.state, self.verifier, self.drafter)

    def _build_ahead(self, config: Config) -> Ahead | None:
        if not can_run_ahead(self.policy, self.drafter, self.verification):
            kinds = [type(part).__name__ for part in (self.policy, self.drafter, self.verification)]
            log.info("%s", {"event": "engine.looks", "kinds": kinds})
            return None
        if isinstance(self.policy, GoodputPolicy):
            self.policy.looks = False
        sources = self.verifier.max_source_length if self.pair.is_encoder_decoder else 0
        most = Extent(self.shape.slots, self.shape.window, self.shape.length, sources)
        start_11 = torch.zeros(1, 1, dtype=torch.int64, device=self.pair.device)
        for runner in [self.verifier, *([self.drafter.runner] if isinstance(self.drafter, ModelDrafter) else [])]:
            runner.forward(start_11, start_11[0], extent=most._replace(rows=1))  # the longest read: grows all tables
        return Ahead(self._whole, most, self.pair.device, insist=config.engine.graphs == "on")

    def _step_table(self, graphs: str) -> StepTable:
        pair = self.pair
        drafting = [pair.drafter and pair.drafter.config, pair.parallel and pair.parallel.shape, pair.shortlist]
        about = [pair.verifier.config, *drafting, pair.int8, pair.drafter_int8, graphs]
        return step_table(self.verifier, self.drafter, about, self.shape.slots, self.shape.window)

    def warm_up(self) -> None:
        """Before the first row, once: see `costs.warm_up`."""
        warm_up(self.verifier, self.drafter, self.shape.window)

    @property
    def pending(self) -> int:
        """Rows submitted and not yet returned."""
        return self._rows.pending

    def submit(self, requests: list[Request]) -> None:
        """Queue rows behind those already queued, longest sources first among themselves."""
        self._rows.submit(requests)

    def decode(self, requests: list[Request]) -> Iterator[Result]:
        """Submit rows and step until none is pending; gives each as it ends."""
        self.submit(requests)
        while self.pending:
            yield from self.step()

    @property
    def _later(self) -> bool:
        """Whether a drafter that is not asked at present need not prefill new rows yet."""
        return not self._asked and self.stats.iterations > 0

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """One iteration for all live rows; returns the rows that it, or one before, has finished."""
        started = time.perf_counter()
        self._rows.admit(self._later)
        if self._rows.live == 0:
            return []
        rule = self.policy.plan(self._rows.live) if self.drafter is not None else None
        extent = self._extent(rule)
        if self._ahead is not None and extent is not None:
            results = self._run_ahead(self._ahead, extent)
        else:
            with self._threads or nullcontext():
                results = self._run(rule)
        self.stats.busy_seconds += time.perf_counter() - started
        return results

    def _run(self, rule: Rule | None) -> list[Result]:
        """An iteration in which the host looks at the device; all of its rows are open."""
        landed = self._land(Snapshot(self.state, self._rows.live), launched_since=0) if self._flight is not None else []
        self._flight = None
        if self._rows.live == 0:
            return landed
        started = time.perf_counter()
        context = self.state.context(self._rows.live)
        draft = self._draft(context, rule)
        drafted = time.perf_counter()
        logits = self._verify(context, draft)
        verdict = self.verification.verify(draft, logits)
        outcome = self._commit(context, draft, verdict, logits)
        done = self.state.advance(outcome.count_B, outcome.ended_B)
        committed = time.perf_counter()
        is_typical = not self._asked or self.drafter is None or self.drafter.caught_up
        if self._threads is None or not self._threads.is_looking:
            self.policy.observe(seen(draft, verdict, committed - started, is_typical))
        if self._threads is not None and is_typical:
            self._threads.observe(self._rows.live, len(logits.values_NV), committed - started)
        self.stats.draft_seconds += drafted - started
        self.stats.drafter_tokens += int(draft.drafted_B.sum()) if self._asked else 0
        self._count(self._rows.live)
        if self._ahead is not None:
            self.state.reach[: self._rows.live] += logits.longest
        return landed + self._collect(done)

    # ---------------------------------------------------------------- ahead of the host

    def _extent(self, rule: Rule | None) -> Extent | None:
        """The shape of an iteration that drafts by a rule and waits for nothing; None where that cannot be."""
        if self._ahead is None or not can_run_ahead(self.policy, self.drafter, self.verification):
            return None
        if rule is not None and rule.looks:
            return None
        most = 0 if rule is None else rule.most
        longest = min(int(self.state.reach[: self._rows.live].max()), self.shape.length - self.shape.window)
        extent = self.verifier.extent(self._rows.live, most + 1, longest - 1)
        is_ready = self.drafter is None or self.drafter.reserve(extent)
        return extent if most == 0 or (self._asked and is_ready) else None

    def _run_ahead(self, ahead: Ahead, extent: Extent) -> list[Result]:
        """Launch an iteration, then collect the rows that those before have finished."""
        rows, snapshot = self._rows.live, Snapshot(self.state, self._rows.live)
        launched = ahead.launch(extent)
        results = self._land(snapshot, launched_since=extent.window)
        self._flight = launched
        self._asked = extent.window > 1
        self._count(rows - len(results))
        return results

    def _land(self, snapshot: Snapshot, launched_since: int) -> list[Result]:
        """Collect the rows that have finished by a snapshot; so many tokens were launched after it."""
        done = snapshot.read(self.state, launched_since)
        if self._flight is not None:
            self.policy.observe(self._flight.observation())
            self.stats.drafter_tokens += int(self._flight.draft.drafted_B.sum())
        return self._collect(done)

    def _whole(self, extent: Extent) -> tuple[Draft, Verdict]:
        """An iteration over the slots of an extent, by the device alone; what has finished is left as it is."""
        context = self.state.context(extent.rows)
        if self.drafter is None or extent.window == 1:
            draft = empty_draft(context)
        else:
            room_B, rule = self.state.room(extent.rows, extent.window - 1), Rule.always(extent.window - 1)
            draft = self.drafter.draft(context, room_B, rule, extent)
        logits = self._verify_at(context, draft, extent)
        verdict = self.verification.verify(draft, logits)
        outcome = self._commit(context, draft, verdict, logits, context.lengths_B < context.limits_B)
        self.state.grow(outcome.count_B, outcome.ended_B)
        return draft, verdict

    # ---------------------------------------------------------------- draft and verify

    def _draft(self, context: Context, rule: Rule | None) -> Draft:
        """What the rule lets rows draft, as far as they may grow."""
        self._asked = rule is not None
        if self.drafter is None or rule is None:
            return self._no_draft(context)
        room_B = self.state.room(self._rows.live, rule.most)
        self._asked = max(room_B.tolist()) > 0
        if not self._asked:
            return self._no_draft(context)
        draft = self.drafter.draft(context, room_B, rule)
        return draft.cut(max(draft.lengths_B.tolist()))

    def _no_draft(self, context: Context) -> Draft:
        """Nothing drafted for any row: K = 0. Made once per number of rows, for plain decoding's sake."""
        if self._rows.live not in self._empty:
            self._empty = {self._rows.live: empty_draft(context)}
        return self._empty[self._rows.live]

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

    # ---------------------------------------------------------------- commit

    def _commit(
        self, context: Context, draft: Draft, verdict: Verdict, logits: Logits, open_B: Tensor | None = None
    ) -> Outcome:
        """What the iteration leaves behind in rows that are open (B,), by default all; their lengths are as before."""
        outcome = self._keep(context, draft, verdict, open_B)
        trace(self.state, context, outcome, logits, self.record_gaps)
        if self.drafter is not None:
            self.drafter.commit(context, verdict.accepted_B)
        return outcome

    def _count(self, rows: int) -> None:
        self.stats.iterations += 1
        self.stats.row_iterations += rows
        self.stats.slot_iterations += self.shape.slots

    # ---------------------------------------------------------------- collect

    def _collect(self, done: list[int]) -> list[Result]:
        """Read out finished rows, and let others take their slots."""
        if not done:
            return []
        state = self.state
        with nullcontext() if self._ahead is None else self._ahead.beside():
            results = read_results(state, done)
            totals = state.counters[done].sum(0).tolist()
        self.stats.output_tokens += sum(result.num_output_tokens for result in results)
        self.stats.drafted_tokens += totals[1]
        self.stats.accepted_tokens += totals[2]
        self.stats.drafting_row_iterations += totals[3]
        self.stats.rollbacks += totals[4]
        whole = self._rows.land(results)
        closed = self._rows.leave(done, results, self._later)
        if self._ahead is not None:
            state.close(slice(closed.start, closed.stop))
        return whole


def empty_draft(context: Context) -> Draft:
    """Nothing drafted for any row: K = 0."""
    none_B0 = context.tokens_BL[:, :0]
    real_B0 = none_B0.float()
    return Draft(none_B0, torch.zeros_like(context.lengths_B), real_B0, real_B0[..., None].expand(-1, -1, 3))
