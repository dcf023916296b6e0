"""The promise of exact verification: whatever drafts, and however much, the output is that of plain decoding.

Token for token, with the same finish reason, in float64 where rounding cannot turn an argmax.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmasd.config.speculation import INSIGHTS
from cmasd.core import Request, Result
from cmasd.drafters import ModelDrafter
from cmasd.engine import Engine, Pair
from cmasd.generation.constraints import Constraints
from cmasd.kernels import Bits
from cmasd.policies import GoodputPolicy, Observation, Rule
from cmasd.policies.costs import StepTable
from tests.unit.engine.pairs import (
    MAX_SOURCE_TOKENS,
    QUALITIES,
    QUERIES,
    decode,
    decode_plain,
    quantised,
    self_pair,
    shared_pair,
    tiny_config,
    tokens_of,
)
from tests.unit.runner.tiny import FAMILIES

VOCABULARY, MOST_NEW_TOKENS = 64, 14
TOKEN = st.integers(0, VOCABULARY - 1)
SOME_FAMILIES = ["marian", "bart", "t5", "m2m100", "llama", "gpt2", "gemma3"]


@dataclass(frozen=True)
class Case:
    """One way of decoding one list of requests."""

    family: str
    quality: str
    rules: dict[str, Any]
    eos_choice: int | None
    """Index into the tokens that plain decoding produces without an end of sequence; None: no end."""
    requests: list[Request]
    sections: dict[str, dict[str, Any]]
    plans: "Plans"
    shortlist: tuple[int, ...] | None = None
    """Ids that a drafting model may say; None: all."""
    edits: tuple[list[tuple[str, int]] | None, ...] = ()
    """What tells each row's earlier output from the right one; None: it has none."""


@dataclass(frozen=True)
class Plans:
    """What policy `goodput` believes, or is made to do."""

    tables: list[StepTable]
    """What iterations cost, one after the other, a few iterations each."""
    rules: list[Rule | None] | None = None
    """What is planned, two iterations each, over and over; None: what the policy plans by itself."""


class Planned(GoodputPolicy):
    """Does not plan, but goes through a list of rules."""

    def __init__(self, max_draft_tokens: int, rules: list[Rule | None]) -> None:
        super().__init__(max_draft_tokens)
        self._rules = rules
        self._plans = 0

    def plan(self, rows: int) -> Rule | None:
        self._plans += 1
        return self._rules[self._plans // 2 % len(self._rules)]

    def observe(self, seen: Observation) -> None:
        return


SECONDS = st.sampled_from([1.0, 1.1, 1.5, 3.0, 50.0])
LEAST = st.sampled_from([-np.inf, -np.inf, 0.0, 0.02, 0.1, 0.4, 0.9, np.inf])


@st.composite
def tables(draw: st.DrawFn, longest: int) -> StepTable:
    """Drafting that is free, that pays up to a length, or that never pays."""
    verify = [tuple(draw(SECONDS) for _ in range(longest + 1)) for _ in range(2)]
    return StepTable((1, 8), tuple(verify), (draw(st.sampled_from([0.0, 0.2, 9.0])),) * 2)


@st.composite
def rules(draw: st.DrawFn, longest: int, nodes: int) -> Rule:
    """Any thresholds, over any statistic, with and without calibration, for chains and for trees."""
    most = draw(st.integers(1, longest))
    go_on, keep = (np.array(draw(st.lists(LEAST, min_size=most, max_size=most))) for _ in range(2))
    slope = draw(st.none() | st.sampled_from([0.5, 1.0, 3.0]))
    offsets = None if slope is None else np.array(draw(st.lists(st.floats(-2, 2), min_size=most, max_size=most)))
    weights = draw(st.none() | st.lists(st.floats(-1, 1), min_size=2, max_size=2).map(np.array))
    nodes = draw(st.sampled_from([0, nodes]))
    return Rule(go_on, keep, draw(st.sampled_from(["product", "mean"])), slope, offsets, nodes, weights)


@st.composite
def plans(draw: st.DrawFn, longest: int, nodes: int) -> Plans:
    given = draw(st.none() | st.lists(st.none() | rules(longest, nodes), min_size=1, max_size=4))
    return Plans(draw(st.lists(tables(longest), min_size=1, max_size=4)), given)


RULES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.7, 1.3, 2.0]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "banned": st.lists(TOKEN, min_size=1, max_size=8).map(tuple),
        "banned_words": st.lists(st.tuples(TOKEN, TOKEN), min_size=1, max_size=60).map(tuple),
        "min_new_tokens": st.integers(1, 8),
        "min_length": st.integers(1, 8),
        "forced_bos_token_id": TOKEN,
        "forced_eos_token_ids": st.tuples(TOKEN),
        "suppressed": st.lists(TOKEN, min_size=1, max_size=8).map(tuple),
        "begin_suppressed": st.lists(TOKEN, min_size=1, max_size=8).map(tuple),
    },
)

REQUEST = st.tuples(st.lists(TOKEN, min_size=1, max_size=MAX_SOURCE_TOKENS), st.integers(1, MOST_NEW_TOKENS))


@st.composite
def kinds(draw: st.DrawFn) -> str | list[str]:
    """One drafter, or several that need no model, with or without one that does."""
    model = draw(st.none() | st.sampled_from(["model", "parallel", "self", "quantised"]))
    free = draw(st.lists(st.sampled_from(["previous", "memory", "copy", "lookup"]), max_size=3, unique=True))
    if model is not None and (not free or draw(st.booleans())):
        return model
    free += ["recycle"] if model is not None and draw(st.booleans()) else []
    listed = [*free, *([] if model is None else [model])]
    return listed or "copy"


EDIT = st.tuples(
    st.sampled_from(["replace", "add", "leave out", "cut", "lengthen", "shift", "forget"]), st.integers(0, 99)
)


def edited(tokens: list[int], edits: list[tuple[str, int]]) -> list[int]:
    """What an earlier run might have made of a row."""
    tokens = list(tokens)
    for edit, number in edits:
        place = number % (len(tokens) + 1)
        if edit in ("replace", "leave out"):
            del tokens[place : place + 1]
        if edit in ("replace", "add"):
            tokens.insert(place, number % (VOCABULARY + 6) - 3)  # some of them no tokens at all
        if edit == "cut":
            tokens = tokens[:place]
        if edit == "lengthen":
            tokens += tokens[place:] + [number % VOCABULARY] * 3
        if edit == "shift":
            tokens = tokens[place:] + tokens[:place]
        if edit == "forget":
            tokens = []
    return tokens


@st.composite
def policies(draw: st.DrawFn, longest: int) -> dict[str, dict[str, Any]]:
    """A policy and the confidence that it reads."""
    kind = draw(st.sampled_from(["fixed", "paper", "survival", "goodput", "goodput", "stitch"]))
    policy: dict[str, Any] = {"kind": kind}
    if kind == "paper":
        policy["alpha"] = draw(st.sampled_from([0.3, 1.0, 3.0, 10.0]))
    if kind == "survival":
        policy["threshold"] = draw(st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.4, 1.0]))
    drafting = draw(st.sampled_from(["model", "self", "quantised"]) if kind == "stitch" else kinds())
    insights = () if {"model", "self", "quantised"}.isdisjoint(np.atleast_1d(drafting).tolist()) else INSIGHTS
    confidence = {
        "kind": draw(st.sampled_from(["auto", "max_prob", "entropy", "margin", "softmax", "ensemble", *insights])),
        "margin_form": draw(st.sampled_from(["full", "printed"])),
    }
    drafter = {
        "kind": drafting,
        "previous": None,
        "memory_tokens": draw(st.sampled_from([1, 7, 40, 1_000_000])),
        "bits": draw(st.sampled_from([8, 4])),
        "self_layers": draw(st.integers(1, 2)),
        "max_draft_tokens": longest,
        "min_draft_tokens": draw(st.integers(1, longest)),
        "max_ngram": draw(st.integers(1, 3)),
        "tree_nodes": draw(st.sampled_from([0, 0, 2, 3, 5, 9])),
        "tree_branching": draw(st.integers(1, 4)),
    }
    stitch = {"tau": 0.0, "speculate": draw(st.booleans()), "max_wait": draw(st.integers(0, 3))}
    return {"policy": policy, "confidence": confidence, "drafter": drafter, "stitch": stitch}


@st.composite
def cases(draw: st.DrawFn, families: list[str]) -> Case:
    """Every way of drafting, over ragged sources, limits and ends inside a window, and a checkpoint's rules."""
    rows = draw(st.lists(REQUEST, min_size=1, max_size=7))
    longest = draw(st.integers(1, QUERIES))
    sections = draw(policies(longest))
    nodes = sections["drafter"]["tree_nodes"]
    sections["engine"] = {
        "slots": draw(st.sampled_from([1, 2, 3, 5, 8])),
        "graphs": draw(st.sampled_from(["off", "off", "on"])),
    }
    sections["telemetry"] = {"level": draw(st.sampled_from(["none", "iteration", "token"]))}
    return Case(
        family=draw(st.sampled_from(families)),
        quality=draw(st.sampled_from(QUALITIES)),
        rules=draw(st.just({}) | RULES),
        eos_choice=draw(st.none() | st.integers(0, 40)),
        requests=[Request(key, source, limit) for key, (source, limit) in enumerate(rows)],
        sections=sections,
        plans=draw(plans(longest, nodes)),
        shortlist=draw(st.none() | st.lists(TOKEN, min_size=2, unique=True).map(tuple)),
        edits=tuple(draw(st.none() | st.lists(EDIT, max_size=4)) for _ in rows),
    )


@dataclass
class Decoded:
    """One run."""

    results: dict[int, Result] = field(default_factory=dict)
    drafting: list[bool] = field(default_factory=list)
    """Whether each iteration asked the drafter."""
    late: int = 0
    """Iterations after which some row had not been prefilled for the drafter."""
    behind: int = 0
    """Drafts that had to catch up on more than the iteration before."""


def decode_at(plans: Plans, pair: Pair, sections: dict[str, dict[str, Any]], requests: list[Request]) -> Decoded:
    """With plans that change every few iterations: drafting starts, stops and starts again in one run.

    Half of the requests come later, so that rows enter while the drafter rests.
    """
    with patch("cmasd.engine.engine.step_table", lambda *shapes: plans.tables[0]):
        engine, decoded = Engine(pair, tiny_config(**sections)), Decoded()
        if isinstance(engine.policy, GoodputPolicy) and plans.rules is not None:
            engine.policy = Planned(engine.policy.max_draft_tokens, plans.rules)
        engine.submit(requests[::2])
        for step in range(10_000):
            if step == 3:
                engine.submit(requests[1::2])
            if isinstance(engine.policy, GoodputPolicy) and step % 4 == 0:
                engine.policy.learn_costs(plans.tables[step // 4 % len(plans.tables)])
            for result in engine.step():
                assert result.key not in decoded.results, "a row came out twice"
                decoded.results[result.key] = result
            decoded.late += isinstance(engine.drafter, ModelDrafter) and bool(engine.drafter._later)
            decoded.drafting.append(engine.iterations.asked)
            decoded.behind += engine.iterations.asked and engine.drafter is not None and not engine.drafter.caught_up
            if step >= 3 and not engine.pending:
                return decoded
    raise AssertionError("the engine does not come to an end")


def check(case: Case) -> Decoded:
    constraints = Constraints(**case.rules)
    pair = shared_pair(case.family, case.quality, constraints, max_new_tokens=MOST_NEW_TOKENS)
    shortlist, drafter = case.shortlist, case.sections["drafter"]
    if "self" in drafter.get("kind", ()):
        pair, shortlist = self_pair(case.family, drafter["self_layers"], constraints, MOST_NEW_TOKENS), None
    if "quantised" in drafter.get("kind", ()):
        pair, shortlist = quantised(pair, drafter["bits"]), None
    if case.eos_choice is not None:
        produced = sorted({token for row in tokens_of(decode_plain(pair, case.requests)).values() for token in row})
        eos = produced[case.eos_choice % len(produced)]
        pair = replace(pair, constraints=replace(constraints, eos_token_ids=(eos,), _ids={}))
    plain = decode_plain(pair, case.requests)
    requests = [
        replace(request, previous=None if edits is None else edited(tokens_of(plain)[request.key], edits))
        for request, edits in zip_longest(case.requests, case.edits)
    ]
    decoded = decode_at(case.plans, replace(pair, shortlist=shortlist), case.sections, requests)
    fast = decoded.results
    assert tokens_of(fast) == tokens_of(plain)
    for key, result in fast.items():
        assert result.finish_reason == plain[key].finish_reason
        assert result.mean_gap_nats == 0
        assert result.num_iterations <= plain[key].num_iterations
        if result.tokens is not None and (trace := plain[key].tokens) is not None:
            # Tiny models often choose the same token over a wrong past; their probabilities tell.
            np.testing.assert_allclose(result.tokens.verifier_logprob, trace.verifier_logprob, atol=1e-5)
    return decoded


@pytest.mark.timeout(900)
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(cases(SOME_FAMILIES))
def test_exact_equals_plain(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(cases(FAMILIES))
def test_exact_equals_plain_at_length(case: Case) -> None:
    check(case)


ONE = StepTable((1,), ((1.0,) * 4,), (0.0,))
ALL = Rule.always(3)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("family", ["marian", "llama", "t5"])
def test_drafting_that_starts_and_stops_stays_exact(family: str, quality: str) -> None:
    """Trials, rests, plain iterations in between, late prefills and catching up: all are lived through here."""
    requests = [Request(key, list(range(5 + key, 8 + key + key % 7)), 6 + key % 5) for key in range(24)]
    sections: dict[str, dict[str, Any]] = {"policy": {"kind": "goodput"}, "drafter": {"max_draft_tokens": 3}}
    sections["engine"] = {"slots": 2}
    runs = []
    for rules_in_turn in ([ALL, None], [ALL, *[None] * 6], [None, ALL, ALL]):
        runs.append(check(Case(family, quality, {}, None, requests, sections, Plans([ONE], rules_in_turn))))
    assert any(run.late for run in runs)
    for run in runs:
        assert run.behind > 0
        assert sum(one != other for one, other in pairwise(run.drafting)) >= 4
        assert sum(result.num_drafted_tokens for result in run.results.values()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_drafts_for_itself_and_stays_exact(family: str) -> None:
    requests = [Request(key, list(range(5, 9 + 2 * key)), 9 + key) for key in range(4)]
    pair = self_pair(family, 2)
    config = tiny_config(policy={"kind": "fixed"}, drafter={"kind": "self", "max_draft_tokens": 3})
    fast = decode(pair, config, requests)
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
    assert all(result.num_drafted_tokens > 0 for result in fast.values())


@pytest.mark.parametrize(("bits", "least"), [(8, 0.8), (4, 0.3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rounded_verifier_drafts_well_and_stays_exact(family: str, bits: Bits, least: float) -> None:
    """Random models weigh words alike, so that 4 bits move more of their choices than of a trained one's."""
    requests = [Request(key, list(range(5, 9 + 2 * key)), 9 + key) for key in range(4)]
    pair = quantised(shared_pair(family), bits)
    config = tiny_config(policy={"kind": "fixed"}, drafter={"kind": "quantised", "bits": bits, "max_draft_tokens": 3})
    fast = decode(pair, config, requests)
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
    drafted, accepted = (
        sum(getattr(one, f"num_{what}_tokens") for one in fast.values()) for what in ("drafted", "accepted")
    )
    assert accepted > least * drafted > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_accepts_drafts_and_stays_exact(family: str) -> None:
    """Without accepted drafts the property above would hold for an engine that never drafts."""
    requests = [Request(key, list(range(5, 9 + 2 * key)), 9 + key) for key in range(4)]
    pair = shared_pair(family, "noisy")
    config = tiny_config(policy={"kind": "fixed"}, drafter={"max_draft_tokens": 3}, engine={"slots": 3})
    fast = decode(pair, config, requests)
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
    assert sum(result.num_accepted_tokens for result in fast.values()) > 0
    assert sum(result.num_drafted_tokens - result.num_accepted_tokens for result in fast.values()) > 0


@pytest.mark.parametrize("kind", ["model", "parallel", ["memory", "copy"], ["memory", "copy", "model"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_accepts_trees_and_stays_exact(family: str, kind: str | list[str]) -> None:
    requests = [Request(key, list(range(5, 9 + 2 * key)), 9 + key) for key in range(5)]
    pair = shared_pair(family, "noisy")
    drafter = {"kind": kind, "max_draft_tokens": 4, "tree_nodes": 9, "tree_branching": 3}
    fast = decode(pair, tiny_config(policy={"kind": "fixed"}, drafter=drafter, engine={"slots": 3}), requests)
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
    if kind == "model":
        assert sum(one.num_accepted_tokens for one in fast.values()) > 0


def test_trees_take_fewer_iterations_than_chains_that_are_as_deep() -> None:
    """Where the tree holds the whole chain: ways beside it can only help."""
    requests = [Request(key, list(range(5 + key, 9 + 2 * key)), 20) for key in range(7)]
    taken = []
    for nodes in (0, 60):
        drafter = {"max_draft_tokens": 3, "tree_nodes": nodes, "tree_branching": 3}
        config = tiny_config(policy={"kind": "fixed"}, drafter=drafter)
        taken.append(sum(one.num_iterations for one in decode(shared_pair("marian"), config, requests).values()))
    assert taken[1] < taken[0]
