"""Continuous batching of speculative decoding: one call of `step` is one iteration for all live rows.

    admit -> draft -> verify -> commit -> collect

An iteration drafts up to k tokens per row, verifies them in ONE verifier forward over ragged
windows, keeps the accepted prefix and appends one verifier token; so every row gains at least one
token. The verifier's cache holds all of a row's tokens but the last. Rejected tokens are rolled back
by not advancing the row's length. With no draft (l = 0) the same code is plain AR decoding.

An iteration is launched, then landed: learned from, its finished rows collected. Mostly the host looks at the device
within it, to draft and to verify no more than it must. Where there are graphs (`engine.graphs`), shapes are decided
beforehand, and one iteration is launched before the last one lands (`ahead.py`): the same verbs, one step apart.

Shapes: B live rows, K draft, T = K + 1 window, V vocabulary.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch

from cmasd.config.tree import Config
from cmasd.core import Request, Result
from cmasd.drafters import Drafter, ModelDrafter
from cmasd.engine.ahead import Ahead, Flight, Snapshot, can_run_ahead
from cmasd.engine.commit import Committer
from cmasd.engine.drafting import build_drafter, free_of
from cmasd.engine.experience import experience_of
from cmasd.engine.fixed_shapes import check_alone
from cmasd.engine.hearing import Hearing
from cmasd.engine.iterations import Iterations
from cmasd.engine.measured_costs import depends_on, step_table, warm_up
from cmasd.engine.pair import Pair
from cmasd.engine.reader import Reader
from cmasd.engine.results import read_results
from cmasd.engine.rows import Rows
from cmasd.engine.slots import LEAST_STAGED, SlotShape, SlotState
from cmasd.engine.stitch import Stitch
from cmasd.engine.tail import Tail, most_drafted
from cmasd.engine.threads import Threads
from cmasd.engine.tree_windows import Trees
from cmasd.models.families import Words
from cmasd.policies import Policy, Rule, StitchPolicy, build_policy
from cmasd.runner.base import Extent
from cmasd.runner.graphs import uses_graphs
from cmasd.runner.load import load_runner
from cmasd.telemetry.stats import EngineStats
from cmasd.verification import Verification, build_verification

log = logging.getLogger(__name__)


class Engine:
    """Rows in, results out. One thread; no I/O."""

    def __init__(self, pair: Pair, config: Config) -> None:
        """Allocates the caches of `config.engine.slots` rows and as many staged ones."""
        self.pair = pair
        self.policy = build_policy(config)
        verification = build_verification(config, pair.constraints.eos_token_ids)
        slots = config.engine.slots
        assert slots is not None, "an engine is built from a configuration that `capacity.resolve` has seen"
        self.shape = SlotShape(
            slots=slots,
            staging=max(slots, LEAST_STAGED),
            max_prompt=pair.max_prompt,
            max_new_tokens=pair.max_new_tokens,
            max_source=pair.max_source_ids,
            window=max(config.drafter.window, most_drafted(config) + 1) if self.policy.max_draft_tokens else 1,
            heard=pair.places_heard,
        )
        # Tokens that are never generated are banned by the output layers, so the other rules may have nothing to do.
        constraints = replace(pair.constraints, banned=())
        runner_shape = (self.shape.capacity, self.shape.length, self.shape.encoded)
        words, graphs = Words(pair.constraints.banned), config.engine.graphs
        self.verifier = load_runner(pair.verifier, *runner_shape, words, pair.bits, graphs, pair.cache_dtype)
        if config.engine.fixed_shapes:
            check_alone(self.verifier, type(pair.verifier).__name__)
        self.state = SlotState(self.shape, config.telemetry.level, pair.device, config.telemetry.teacher_top_k)
        eos_ids = torch.tensor(pair.constraints.eos_token_ids, dtype=torch.int64, device=pair.device)
        drafter = build_drafter(config, pair, self.shape.window - 1, self.verifier, constraints, eos_ids)
        self._free = free_of(drafter)
        longer = self._free is not None and most_drafted(config) > self.policy.max_draft_tokens
        self._tail = Tail(config, slots) if longer else None
        self._stitch = None
        if isinstance(self.policy, StitchPolicy):
            assert isinstance(drafter, ModelDrafter), "the configuration is checked to name a model that speaks"
            large = Reader(self.verifier, constraints)
            self._stitch = Stitch(self.policy, drafter, large, verification, self.state, eos_ids)
        about = depends_on(pair, graphs)
        if self.policy.wants_costs:
            self.policy.learn_costs(step_table(self.verifier, drafter, about, slots, self.policy.max_draft_tokens + 1))
        self.experience = experience_of(self.policy, config, self.verifier, drafter, about)
        """Who recalls it before the first iteration need not look at what an earlier engine has seen."""
        self.stats = EngineStats()
        self.iterations = Iterations(
            state=self.state,
            verifier=self.verifier,
            drafter=drafter,
            verification=verification,
            constraints=constraints,
            keep=Committer(self.state, eos_ids),
            trees=Trees(self.verifier, verification, constraints, self.state),
            stats=self.stats,
            record_gaps=config.lossless != "exact",
        )
        most, share = torch.get_num_threads(), config.policy.explore_share
        self._threads = Threads(most, share) if pair.device.type == "cpu" and most > 1 else None
        self._ahead = self._build_ahead(config) if uses_graphs(config.engine.graphs, pair.device) else None
        self._flight: Flight | None = None
        verifying, drafting = (self.verifier, drafter) if self._stitch is None else (self._stitch.large, self._stitch)
        hearing = None if pair.sound is None else Hearing(pair.sound, verifying, feeds=self._stitch is None)
        self._rows = Rows(pair, self.shape, self.state, verifying, drafting, config.engine.cache_tokens, hearing)

    def _build_ahead(self, config: Config) -> Ahead | None:
        if not can_run_ahead(self.policy, self.drafter, self.verification):
            kinds = [type(part).__name__ for part in (self.policy, self.drafter, self.verification)]
            log.info("%s", {"event": "engine.looks", "kinds": kinds})
            return None
        self.policy.look_no_more()
        most = Extent(self.shape.slots, self.shape.window, self.shape.length, self.shape.encoded)
        start_11 = torch.zeros(1, 1, dtype=torch.int64, device=self.pair.device)
        for runner in [self.verifier, *([self.drafter.runner] if isinstance(self.drafter, ModelDrafter) else [])]:
            runner.forward(start_11, start_11[0], extent=most._replace(rows=1))  # the longest read: grows all tables
        return Ahead(self.iterations.whole, most, self.pair.device, insist=config.engine.graphs == "on")

    def warm_up(self) -> None:
        """Before the first row, once: see `costs.warm_up`."""
        warm_up(self.verifier, self.drafter, self.shape.window)

    def remember(self, rows: Iterable[tuple[list[int], list[int]]]) -> int:
        """Source and output of rows that others have decoded, for drafts; gives their tokens, 0 without a memory."""
        return 0 if self._free is None else self._free.remember(rows)

    @property
    def drafter(self) -> Drafter | None:
        """None in plain decoding."""
        return self.iterations.drafter

    @property
    def verification(self) -> Verification:
        """What is accepted."""
        return self.iterations.verification

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
    def _learns(self) -> bool:
        """Whether the policy listens to what is observed; most do not, and what they would be told takes time."""
        return getattr(self.policy.observe, "__func__", None) is not Policy.observe

    @property
    def _later(self) -> bool:
        """Whether a drafter that is not asked at present need not prefill new rows yet."""
        return not self.iterations.asked and self.stats.iterations > 0

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """One iteration for all live rows; returns the rows that it, or one before, has finished."""
        started = time.perf_counter()
        self._rows.admit(self._later)
        if self._rows.live == 0:
            return []
        rule = self.policy.plan(self._rows.live) if self.drafter is not None else None
        if self._tail is not None:
            rule = self._tail.longer(rule, self._rows.live)
        extent = self._extent(rule)
        if self._stitch is not None:
            with self._threads or nullcontext():
                results = self._run_stitched(self._stitch)
        elif self._ahead is not None and extent is not None:
            results = self._overlapped(self._ahead, extent)
        else:
            with self._threads or nullcontext():
                results = self._in_turn(rule)
        self.stats.busy_seconds += time.perf_counter() - started
        if self._free is not None:
            self.stats.lookup_seconds = self._free.seconds
        return results

    # ---------------------------------------------------------------- who waits for whom

    def _in_turn(self, rule: Rule | None) -> list[Result]:
        """Launch an iteration, look at the device within it, and land it; what was in flight lands before."""
        landed = self._land(Snapshot(self.state, self._rows.live).read(self.state, 0)) if self._flight else []
        if self._rows.live == 0:
            return landed
        started = time.perf_counter()
        one = self.iterations.run(self._rows.live, rule)
        done = self.state.advance(one.outcome.count_B, one.outcome.ended_B)
        seconds, sent_BK = time.perf_counter() - started, one.sent.tokens_BK
        tokens = self._rows.live + (int(one.sent.lengths_B.sum()) if sent_BK.shape[1] else 0)
        is_typical = not self.iterations.asked or self.drafter is None or self.drafter.caught_up
        is_usual = self._threads is None or not self._threads.is_looking
        tree = None if one.sent.parents_BK is None else one.sent
        beside = self._rows.drafter_seconds()
        about = is_typical, is_usual, tree, beside, self.iterations.asked
        self._flight = Flight(one.draft, one.verdict, lambda: seconds, *about)
        if self._threads is not None and is_typical:
            self._threads.observe(self._rows.live, tokens, seconds)
        self._count(self._rows.live)
        if self._tail is not None:
            self._tail.count(self.stats, one.verdict.accepted_B.tolist(), seconds)
        if self._ahead is not None:
            self.state.reach[: self._rows.live] += one.logits.longest
        return landed + self._land(done)

    def _run_stitched(self, stitch: Stitch) -> list[Result]:
        """A step in which each row waits for one of two models, or is spoken for by it."""
        started, live = time.perf_counter(), self._rows.live
        step = stitch.step(live)
        done = self.state.advance(step.count_B, step.ended_B)
        if self._threads is not None:  # steps with the large model in them are of another kind
            self._threads.observe(live, step.small + (step.read << 16), time.perf_counter() - started)
        self.iterations.asked = True
        step.count(self.stats, self.shape.slots)
        return self._collect(done)

    def _overlapped(self, ahead: Ahead, extent: Extent) -> list[Result]:
        """Launch an iteration, and land the one before while it runs."""
        rows, snapshot = self._rows.live, Snapshot(self.state, self._rows.live)
        launched = ahead.launch(extent)
        results = self._land(snapshot.read(self.state, launched_since=extent.window))
        self._flight = launched
        self.iterations.asked = extent.window > 1
        self._count(rows - len(results))
        return results

    def _land(self, done: list[int]) -> list[Result]:
        """Learn from the iteration in flight, if there is one, and collect the rows in these slots."""
        flight, self._flight = self._flight, None
        if flight is not None:
            if flight.is_usual and self._learns:
                self.policy.observe(flight.observation(self.policy.wants_signals))
            if flight.draft.tokens_BK.shape[1]:
                self.stats.drafter_tokens += int(flight.draft.drafted_B.sum())
        return self._collect(done)

    def _extent(self, rule: Rule | None) -> Extent | None:
        """The shape of an iteration that drafts by a rule and waits for nothing; None where that cannot be."""
        if self._ahead is None or not can_run_ahead(self.policy, self.drafter, self.verification):
            return None
        if rule is not None and (rule.looks or rule.nodes):
            return None
        most = 0 if rule is None else rule.most
        longest = min(int(self.state.reach[: self._rows.live].max()), self.shape.length - self.shape.window)
        extent = self.verifier.extent(self._rows.live, most + 1, longest - 1)
        is_ready = self.drafter is None or self.drafter.reserve(extent)
        return extent if most == 0 or (self.iterations.asked and is_ready) else None

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
        if self._stitch is not None:
            results = self._stitch.sign(results, done)
        self.stats.small_tokens += sum(result.num_small_tokens for result in results)
        self.stats.switches += sum(result.num_switches for result in results)
        self.stats.output_tokens += sum(result.num_output_tokens for result in results)
        self.stats.add_rows(totals)
        whole = self._rows.land(results)
        closed = self._rows.leave(done, results, self._later)
        if self._ahead is not None:
            state.close(slice(closed.start, closed.stop))
        return whole
