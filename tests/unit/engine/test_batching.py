"""Continuous batching: who is decoded when, and that nobody's output depends on it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.core import Draft, Request, Result
from cmasd.drafters import Context
from cmasd.engine import Engine
from cmasd.generation.constraints import Constraints
from cmasd.kernels import kernels
from tests.unit.engine.pairs import (
    MAX_NEW_TOKENS,
    MAX_SOURCE_TOKENS,
    decode,
    decode_plain,
    ragged_requests,
    shared_pair,
    tiny_config,
    tokens_of,
)

FIXED: dict[str, Any] = {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 3}}


def run_to_end(engine: Engine) -> dict[int, Result]:
    return {result.key: result for result in engine.decode([])}


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_a_slot_is_refilled_as_soon_as_its_row_ends(family: str) -> None:
    """While rows wait, every iteration runs with all slots in use."""
    engine = Engine(shared_pair(family), tiny_config(**FIXED, engine={"slots": 3}))
    requests = ragged_requests(11, seed=4)
    engine.submit(requests)
    done, iterations = 0, 0
    while engine.pending:
        before, waiting = engine.stats.row_iterations, engine.pending
        done += len(engine.step())
        iterations += 1
        assert engine.stats.row_iterations - before == min(3, waiting)
        assert engine.pending == len(requests) - done
    assert done == len(requests)
    assert engine.stats.iterations == iterations
    assert engine.stats.slot_iterations == 3 * iterations


@pytest.mark.parametrize("verification", ["exact", "relaxed", "modulated", "typical"])
def test_a_row_does_not_depend_on_its_neighbours(verification: str) -> None:
    """Tokens, counters and traces are the same alone, in any batch and in any order, for lossy rules too."""
    pair, requests = shared_pair("marian"), ragged_requests(7, seed=5)
    rule = {"kind": verification, "tau": 1.0, "gamma": 5.0}
    results = []
    for slots, order in ((1, requests), (3, requests[::-1]), (8, requests)):
        config = tiny_config(**FIXED, verification=rule, engine={"slots": slots})
        results.append(decode(pair, config, order))
    for other in results[1:]:
        for key, alone in results[0].items():
            assert_same(alone, other[key])


@pytest.mark.parametrize("ending", [(0,), (4,), (0, 2, 4), (1, 2), (3, 4), (0, 1, 2, 3, 4)])
def test_rows_that_end_together_leave_the_others_in_place(ending: tuple[int, ...]) -> None:
    """Nobody waits, so the last live rows close the holes; a hole may itself be the last row."""
    pair = shared_pair("marian")
    requests = [Request(key, [5 + 9 * key, 6, 7 + key], 3 if key in ending else 7) for key in range(5)]
    results = decode(pair, tiny_config(policy={"kind": "plain"}, engine={"slots": 5}), requests)
    assert set(results) == set(range(5))
    for request in requests:
        assert_same(results[request.key], decode_plain(pair, [request], slots=1)[request.key])


def assert_same(one: Result, other: Result) -> None:
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert (one.num_iterations, one.num_drafted_tokens, one.num_accepted_tokens) == (
        other.num_iterations,
        other.num_drafted_tokens,
        other.num_accepted_tokens,
    )
    for kind in ("iterations", "tokens"):
        for name, values in vars(getattr(one, kind)).items():
            np.testing.assert_allclose(values, getattr(getattr(other, kind), name), atol=1e-5, err_msg=name)


def test_rows_submitted_while_others_run() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(9, seed=6)
    engine = Engine(pair, tiny_config(**FIXED, engine={"slots": 2}))
    results: dict[int, Result] = {}
    for request in requests:
        engine.submit([request])
        results |= {result.key: result for result in engine.step()}
    results |= run_to_end(engine)
    assert tokens_of(results) == tokens_of(decode_plain(pair, requests))


def test_an_engine_can_be_used_again() -> None:
    """What a row leaves in its slot must not reach the next one: the second round has other lengths."""
    pair = shared_pair("llama")
    engine = Engine(pair, tiny_config(**FIXED, verification={"kind": "relaxed", "tau": 1.0}))
    fresh = tiny_config(**FIXED, verification={"kind": "relaxed", "tau": 1.0})
    for seed in (7, 8):
        requests = ragged_requests(5, seed=seed)
        engine.submit(requests)
        for key, result in run_to_end(engine).items():
            assert_same(result, decode(pair, fresh, requests)[key])


def test_longer_sources_are_admitted_first() -> None:
    requests = [Request(key, [5] * length, 2) for key, length in enumerate([3, 9, 1, 12])]
    engine = Engine(shared_pair("marian"), tiny_config(policy={"kind": "plain"}, engine={"slots": 1}))
    assert [result.key for result in engine.decode(requests)] == [3, 1, 0, 2]


def test_nothing_to_do() -> None:
    engine = Engine(shared_pair("marian"), tiny_config())
    assert engine.pending == 0
    assert engine.step() == []
    engine.submit([])
    assert engine.pending == 0
    assert engine.step() == []
    assert engine.stats.iterations == 0


@pytest.mark.parametrize("family", ["marian", "llama"])
@pytest.mark.parametrize("limit", [1, 2, 3, MAX_NEW_TOKENS])
def test_a_row_stops_at_its_limit(family: str, limit: int) -> None:
    """The longest source and the highest limit fill every buffer to its last place."""
    source = list(range(3, 3 + MAX_SOURCE_TOKENS))
    requests = [Request(0, source, limit), Request(1, source[:1], MAX_NEW_TOKENS)]
    config = tiny_config(policy={"kind": "fixed"}, drafter={"max_draft_tokens": 6})
    results = decode(shared_pair(family, "copy"), config, requests)
    assert [results[key].num_output_tokens for key in (0, 1)] == [limit, MAX_NEW_TOKENS]
    assert {result.finish_reason for result in results.values()} == {"length"}


def test_a_limit_above_the_pairs_is_the_pairs() -> None:
    requests = [Request(0, [5, 6], 10_000)]
    assert decode_plain(shared_pair("marian"), requests)[0].num_output_tokens == MAX_NEW_TOKENS


def test_an_end_at_the_limit_is_a_stop() -> None:
    pair, requests = shared_pair("marian"), [Request(0, [5, 6, 7], 5)]
    last = int(decode_plain(pair, requests)[0].token_ids[-1])
    ending = replace(pair, constraints=Constraints(eos_token_ids=(last,)))
    result = decode_plain(ending, requests)[0]
    assert result.finish_reason == "stop"
    assert result.token_ids[-1] == last


def test_any_of_several_ends_stops_a_row() -> None:
    pair, requests = shared_pair("marian"), [Request(0, [5, 6, 7], 12)]
    endless = decode_plain(pair, requests)[0].token_ids.tolist()
    ends = (endless[6], endless[3])
    result = decode(replace(pair, constraints=Constraints(eos_token_ids=ends)), tiny_config(**FIXED), requests)[0]
    first = min(endless.index(end) for end in ends)
    assert result.token_ids.tolist() == endless[: first + 1]


def test_the_drafter_is_skipped_when_no_row_has_room() -> None:
    """Rows of one token leave no place for a draft before the verifier's own."""
    engine = Engine(shared_pair("marian"), tiny_config(**FIXED))
    engine.submit([Request(key, [5, 6], 1) for key in range(3)])
    results = run_to_end(engine)
    assert [result.num_drafted_tokens for result in results.values()] == [0, 0, 0]
    assert all(np.isnan(result.mean_confidence) for result in results.values())


@pytest.mark.parametrize("native", [True, False])
def test_drafts_that_are_not_sent_are_fed_only_once(native: bool) -> None:
    """With a threshold of 1 every draft is withheld; the drafter's window must not grow with the row."""
    if native and kernels(torch.float64) is None:
        pytest.skip("no C compiler here")
    engine = Engine(shared_pair("marian"), tiny_config(policy={"kind": "survival", "threshold": 1.0}))
    drafter: Any = engine.drafter
    if not native:
        drafter._native = None
    lacked, draft_of = [], drafter.draft

    def counted(context: Context, *given: Any) -> Draft:
        lacked.append((context.lengths_B - drafter._held[: len(context.lengths_B)]).tolist())
        draft: Draft = draft_of(context, *given)
        room_B = given[0]
        assert draft.drafted_B.tolist() == room_B.clamp_max(1).tolist()
        return draft

    drafter.draft = counted
    engine.submit([Request(0, [5, 6], 12), Request(1, [7], 9)])
    results = run_to_end(engine)
    assert [result.num_drafted_tokens for result in results.values()] == [0, 0]
    assert len(lacked) >= 8
    assert {count for counts in lacked for count in counts} == {1}
