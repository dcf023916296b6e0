"""The promise of exact verification: whatever drafts, and however much, the output is that of plain decoding.

Token for token, with the same finish reason, in float64 where rounding cannot turn an argmax.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmasd.core import Request
from cmasd.runner.constraints import Constraints
from tests.unit.engine.pairs import (
    MAX_SOURCE_TOKENS,
    QUALITIES,
    decode,
    decode_plain,
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
def policies(draw: st.DrawFn, longest: int) -> dict[str, dict[str, Any]]:
    """A policy and the confidence that it reads."""
    kind = draw(st.sampled_from(["fixed", "paper", "survival"]))
    policy: dict[str, Any] = {"kind": kind}
    if kind == "paper":
        policy["alpha"] = draw(st.sampled_from([0.3, 1.0, 3.0, 10.0]))
    if kind == "survival":
        policy["threshold"] = draw(st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.4, 1.0]))
    confidence = {
        "kind": draw(st.sampled_from(["max_prob", "entropy", "margin", "softmax", "ensemble"])),
        "margin_form": draw(st.sampled_from(["full", "printed"])),
    }
    drafter = {
        "kind": draw(st.sampled_from(["model", "lookup"])),
        "max_draft_tokens": longest,
        "min_draft_tokens": draw(st.integers(1, longest)),
        "max_ngram": draw(st.integers(1, 3)),
    }
    return {"policy": policy, "confidence": confidence, "drafter": drafter}


@st.composite
def cases(draw: st.DrawFn, families: list[str]) -> Case:
    """Every way of drafting, over ragged sources, limits and ends inside a window, and a checkpoint's rules."""
    rows = draw(st.lists(REQUEST, min_size=1, max_size=7))
    sections = draw(policies(longest=draw(st.integers(1, 6))))
    sections["engine"] = {"slots": draw(st.sampled_from([1, 2, 3, 5, 8]))}
    sections["telemetry"] = {"level": draw(st.sampled_from(["none", "iteration", "token"]))}
    return Case(
        family=draw(st.sampled_from(families)),
        quality=draw(st.sampled_from(QUALITIES)),
        rules=draw(st.just({}) | RULES),
        eos_choice=draw(st.none() | st.integers(0, 40)),
        requests=[Request(key, source, limit) for key, (source, limit) in enumerate(rows)],
        sections=sections,
    )


def check(case: Case) -> None:
    constraints = Constraints(**case.rules)
    pair = shared_pair(case.family, case.quality, constraints, max_new_tokens=MOST_NEW_TOKENS)
    if case.eos_choice is not None:
        produced = sorted({token for row in tokens_of(decode_plain(pair, case.requests)).values() for token in row})
        eos = produced[case.eos_choice % len(produced)]
        pair = replace(pair, constraints=replace(constraints, eos_token_ids=(eos,), _ids={}))
    plain = decode_plain(pair, case.requests)
    fast = decode(pair, tiny_config(**case.sections), case.requests)
    assert tokens_of(fast) == tokens_of(plain)
    for key, result in fast.items():
        assert result.finish_reason == plain[key].finish_reason
        assert result.mean_gap_nats == 0
        assert result.num_iterations <= plain[key].num_iterations
        if result.tokens is not None and (trace := plain[key].tokens) is not None:
            # Tiny models often choose the same token over a wrong past; their probabilities tell.
            np.testing.assert_allclose(result.tokens.verifier_logprob, trace.verifier_logprob, atol=1e-5)


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
