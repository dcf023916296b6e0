"""Counters and statistics, against a drafter whose mistakes are known beforehand."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmasd.core import Draft, Request, Result
from cmasd.drafters import Context, Drafter
from cmasd.engine import Engine
from cmasd.generation.constraints import Constraints
from cmasd.policies import Rule
from cmasd.runner.base import Extent
from tests.unit.engine.pairs import decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of

LONGEST = 3


@dataclass
class ScriptedDrafter(Drafter):
    """Drafts the known output, wrong at the given positions; commits are kept for inspection."""

    engine: Engine
    outputs: dict[int, list[int]]
    wrong: frozenset[int]
    """Output positions at which every row's draft is wrong."""
    committed: int = 0
    moves: list[tuple[int, int]] = field(default_factory=list)

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> None:
        raise AssertionError("nothing is timed with a fixed length")

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        assert len(slots) == len(requests)

    def leave(self, slots: list[int], results: list[Result]) -> None:
        assert [self.engine.state.keys[slot] for slot in slots] == [result.key for result in results]

    def move(self, source: int, target: int) -> None:
        self.moves.append((source, target))

    def reserve(self, extent: Extent) -> bool:
        raise AssertionError("without graphs nothing runs ahead")

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        rows = len(context.lengths_B)
        tokens_BK = torch.zeros(rows, LONGEST, dtype=torch.int64)
        for row in range(rows):
            known = self.outputs[self.engine.state.keys[row]]
            first = int(context.lengths_B[row] - context.prompt_lengths_B[row])
            for j in range(min(LONGEST, len(known) - first)):
                right = known[first + j]
                tokens_BK[row, j] = right if first + j not in self.wrong else (right + 1) % 64
        confidence_BK = torch.full((rows, LONGEST), 0.5)
        return Draft(tokens_BK, room_B, confidence_BK, confidence_BK[..., None].expand(-1, -1, 3))

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        self.committed += int(accepted_B.sum())


def script(length: int, limit: int, wrong: frozenset[int]) -> list[tuple[int, int, bool]]:
    """(drafted, accepted, rejected) of every iteration of one row, by hand."""
    steps, at = [], 0
    while at < length:
        drafted = min(LONGEST, limit - at - 1)
        accepted = 0
        while accepted < drafted and at + accepted < length and at + accepted not in wrong:
            accepted += 1
        if at + accepted >= length:  # the end of sequence was drafted: nothing comes after it
            steps.append((drafted, length - at, False))
            break
        steps.append((drafted, accepted, accepted < drafted))
        at += accepted + 1
    return steps


def decode_scripted(
    requests: list[Request], eos: int | None, wrong: frozenset[int], slots: int
) -> tuple[Engine, dict[int, Result]]:
    pair = shared_pair("marian", constraints=Constraints(eos_token_ids=() if eos is None else (eos,)))
    config = tiny_config(
        policy={"kind": "fixed"},
        drafter={"max_draft_tokens": LONGEST},
        engine={"slots": slots},
        telemetry={"level": "iteration"},
    )
    engine = Engine(pair, config)
    endless = decode_plain(shared_pair("marian"), requests)  # so that drafts go on, rightly, past the end of sequence
    engine.iterations.drafter = engine._rows._drafter = ScriptedDrafter(engine, tokens_of(endless), wrong)
    return engine, {result.key: result for result in engine.decode(requests)}


def check_against_script(wrong: frozenset[int], eos: int | None, slots: int, seed: int) -> None:
    requests = ragged_requests(5, seed=seed, max_new_tokens=15)
    engine, results = decode_scripted(requests, eos, wrong, slots)
    rollbacks = drafting = 0
    for request in requests:
        result = results[request.key]
        steps = script(result.num_output_tokens, request.max_new_tokens, wrong)
        assert result.iterations is not None
        assert result.iterations.draft_length.tolist() == [drafted for drafted, _, _ in steps]
        assert result.iterations.accepted.tolist() == [accepted for _, accepted, _ in steps]
        rejected = [0.5 if was else None for _, _, was in steps]
        assert [None if x != x else x for x in result.iterations.rejected_confidence.tolist()] == rejected
        assert result.num_iterations == len(steps)
        assert result.num_drafted_tokens == sum(drafted for drafted, _, _ in steps)
        assert result.num_accepted_tokens == sum(accepted for _, accepted, _ in steps)
        rollbacks += sum(was for _, _, was in steps)
        drafting += sum(drafted > 0 for drafted, _, _ in steps)
    stats = engine.stats
    assert stats.rollbacks == rollbacks
    assert stats.drafting_row_iterations == drafting
    check_sums(engine, results)


def check_sums(engine: Engine, results: dict[int, Result]) -> None:
    stats = engine.stats
    assert stats.output_tokens == sum(result.num_output_tokens for result in results.values())
    assert stats.drafted_tokens == sum(result.num_drafted_tokens for result in results.values())
    assert stats.accepted_tokens == sum(result.num_accepted_tokens for result in results.values())
    assert stats.row_iterations == sum(result.num_iterations for result in results.values())
    assert 0 < stats.draft_seconds < stats.busy_seconds


@settings(max_examples=20)
@given(
    wrong=st.frozensets(st.integers(0, 14)),
    eos=st.none() | st.integers(3, 63),
    slots=st.sampled_from([1, 3, 8]),
    seed=st.integers(0, 5),
)
def test_counters_follow_the_drafters_mistakes(wrong: frozenset[int], eos: int | None, slots: int, seed: int) -> None:
    check_against_script(wrong, eos, slots, seed)


def test_an_end_of_sequence_cuts_the_accepted_prefix() -> None:
    """The end is drafted in the middle of a window; what was drafted after it does not count."""
    requests = [Request(0, [5, 6, 7], 12)]
    endless = decode_plain(shared_pair("marian"), requests)[0].token_ids.tolist()
    eos = endless[5]
    assert endless.index(eos) == 5
    engine, results = decode_scripted(requests, eos, frozenset(), slots=1)
    assert results[0].token_ids.tolist() == endless[:6]
    assert results[0].finish_reason == "stop"
    assert results[0].num_drafted_tokens == 3 + 3
    assert results[0].num_accepted_tokens == 3 + 2, "the draft's third token came after the end"
    assert engine.stats.rollbacks == 0
    check_against_script(frozenset(), eos, slots=1, seed=0)


def test_a_drafter_that_is_always_right() -> None:
    requests = [Request(key, [5 + key, 6, 7], 12) for key in range(4)]
    engine, results = decode_scripted(requests, None, frozenset(), slots=2)
    assert {result.num_iterations for result in results.values()} == {12 // (LONGEST + 1)}
    assert engine.stats.acceptance_rate == 1
    assert engine.stats.rollback_rate == 0
    assert engine.stats.tokens_per_iteration == LONGEST + 1


def test_a_drafter_that_is_always_wrong() -> None:
    requests = [Request(key, [5 + key, 6, 7], 12) for key in range(4)]
    engine, results = decode_scripted(requests, None, frozenset(range(12)), slots=2)
    assert {result.num_iterations for result in results.values()} == {12}
    assert engine.stats.acceptance_rate == 0
    assert engine.stats.rollback_rate == 1
    assert engine.stats.tokens_per_iteration == 1


def test_the_drafter_hears_of_every_move_and_commit() -> None:
    requests = ragged_requests(6, seed=9)
    engine, results = decode_scripted(requests, None, frozenset({2, 5}), slots=2)
    drafter = engine.drafter
    assert isinstance(drafter, ScriptedDrafter)
    assert drafter.committed == sum(result.num_accepted_tokens for result in results.values())
    entered = [target for source, target in drafter.moves if source >= 2]
    assert len(entered) == len(requests)
    assert set(entered) == {0, 1}


@pytest.mark.parametrize("kind", ["model", "lookup"])
@pytest.mark.parametrize("verification", ["exact", "relaxed", "sampling", "typical"])
def test_tokens_are_accepted_drafts_and_one_per_iteration(kind: str, verification: str) -> None:
    """Unless an end of sequence was drafted, which takes the place of the verifier's own token."""
    eos = 9
    pair = replace(shared_pair("marian"), constraints=Constraints(eos_token_ids=(eos,)))
    config = tiny_config(policy={"kind": "fixed"}, drafter={"kind": kind}, verification={"kind": verification})
    engine = Engine(pair, config)
    results = {result.key: result for result in engine.decode(ragged_requests(6, seed=10))}
    check_sums(engine, results)
    for result in results.values():
        assert result.iterations is not None
        assert result.tokens is not None
        assert result.num_iterations == len(result.iterations.draft_length)
        assert result.num_drafted_tokens == result.iterations.draft_length.sum()
        assert result.num_accepted_tokens == result.iterations.accepted.sum() == (result.tokens.source > 0).sum()
        drafted_end = bool(result.finish_reason == "stop" and result.tokens.source[-1])
        assert result.num_output_tokens == result.num_accepted_tokens + result.num_iterations - drafted_end
        assert (result.iterations.accepted <= result.iterations.draft_length).all()
        assert eos not in result.token_ids[:-1].tolist()
