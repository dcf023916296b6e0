"""Drafts of texts in an engine: what they save, and who is named as their source. That they change no output is told by
the properties in `test_lossless.py`.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.core import Request, Result
from cmasd.drafters import FreeDrafter
from cmasd.engine import Engine
from cmasd.signals import FROM_COPY, FROM_DRAFT, FROM_MEMORY, FROM_PREVIOUS, FROM_VERIFIER
from tests.unit.engine.pairs import decode, decode_plain, shared_pair, tiny_config, tokens_of

NEW_TOKENS = 24
FAMILIES = pytest.mark.parametrize("family", ["marian", "llama"])


def requests_of(count: int) -> list[Request]:
    return [Request(key, list(range(5 + 3 * key, 13 + 3 * key)), NEW_TOKENS) for key in range(count)]


def config_of(*kinds: str, slots: int = 3, most: int = 64, **sections: Any) -> Any:
    drafter = {"kind": list(kinds), "max_draft_tokens": most, "max_ngram": 3}
    return tiny_config(policy={"kind": "fixed"}, drafter=drafter, engine={"slots": slots}, **sections)


def told(requests: list[Request], plain: dict[int, Result]) -> list[Request]:
    """With their own right output."""
    return [replace(request, previous=plain[request.key].token_ids.tolist()) for request in requests]


def sources(result: Result) -> list[int]:
    assert result.tokens is not None
    return [int(source) for source in result.tokens.source]


@FAMILIES
def test_an_earlier_output_that_is_right_takes_one_iteration(family: str) -> None:
    pair, requests = shared_pair(family), requests_of(5)
    plain = decode_plain(pair, requests)
    for result in decode(pair, config_of("previous"), told(requests, plain)).values():
        assert result.token_ids.tolist() == plain[result.key].token_ids.tolist()
        assert result.num_iterations == 1
        assert sources(result) == [FROM_PREVIOUS] * (NEW_TOKENS - 1) + [FROM_VERIFIER]


@FAMILIES
def test_a_changed_word_costs_one_iteration(family: str) -> None:
    """Whatever word stood in its place before, if it stands nowhere else in the text."""
    pair, [request] = shared_pair(family), requests_of(1)
    right = decode_plain(pair, [request])[0].token_ids.tolist()
    strange = next(token for token in range(64) if token not in right)
    place = next(at for at in range(5, 20) if right.count(right[at]) == 1)
    old = [*right[:place], strange, *right[place + 1 :]]
    result = decode(pair, config_of("previous"), [replace(request, previous=old)])[0]
    assert result.token_ids.tolist() == right
    assert result.num_iterations == 2
    assert [at for at, source in enumerate(sources(result)) if source == FROM_VERIFIER] == [place, NEW_TOKENS - 1]


@FAMILIES
def test_a_source_that_comes_again_is_remembered(family: str) -> None:
    pair, [request] = shared_pair(family), requests_of(1)
    engine = Engine(pair, config_of("memory", slots=1))
    first, again = (next(iter(engine.decode([replace(request, key=key)]))) for key in (0, 1))
    assert again.token_ids.tolist() == first.token_ids.tolist()
    assert again.num_iterations == 1
    assert sources(again) == [FROM_MEMORY] * (NEW_TOKENS - 1) + [FROM_VERIFIER]


def test_words_that_were_said_before_are_remembered_whatever_the_source() -> None:
    """Two tokens find them."""
    pair, [request] = shared_pair("marian"), requests_of(1)
    output = decode_plain(pair, [request])[0].token_ids.tolist()
    engine = Engine(pair, config_of("memory", slots=1))
    assert isinstance(engine.drafter, FreeDrafter)
    assert engine.remember([(list(range(40, 60)), output)]) == len(output)
    result = next(iter(engine.decode([request])))
    assert result.token_ids.tolist() == output
    assert result.num_iterations == 3
    assert sources(result) == [FROM_VERIFIER] * 2 + [FROM_MEMORY] * (NEW_TOKENS - 3) + [FROM_VERIFIER]


def test_a_copy_names_itself() -> None:
    pair, requests = shared_pair("llama"), requests_of(6)
    results = decode(pair, config_of("copy", most=4), requests)
    named = {source for result in results.values() for source in sources(result)}
    assert named == {FROM_VERIFIER, FROM_COPY}


@FAMILIES
@pytest.mark.parametrize("model", ["model", "parallel", "self"])
def test_rows_without_a_text_have_the_model(family: str, model: str) -> None:
    pair, requests = shared_pair(family, "noisy"), requests_of(6)
    plain = decode_plain(pair, requests)
    known = [one if one.key % 2 else replace(one, previous=None) for one in told(requests, plain)]
    results = decode(pair, config_of("previous", model, most=6), known)
    assert tokens_of(results) == tokens_of(plain)
    for key, result in results.items():
        named = set(sources(result))
        assert named <= ({FROM_VERIFIER, FROM_PREVIOUS} if key % 2 else {FROM_VERIFIER, FROM_DRAFT})
        assert result.num_drafted_tokens > 0
    assert all(FROM_PREVIOUS in sources(results[key]) for key in (1, 3, 5))
    assert any(FROM_DRAFT in sources(results[key]) for key in (0, 2, 4))


def test_a_model_that_was_not_asked_catches_up() -> None:
    """A text that ends early leaves the rest of its row to the model."""
    pair, requests = shared_pair("marian", "copy"), requests_of(4)
    plain = decode_plain(pair, requests)
    short = [replace(one, previous=(one.previous or [])[:9]) for one in told(requests, plain)]
    for result in decode(pair, config_of("previous", "model", most=5, slots=2), short).values():
        assert result.token_ids.tolist() == plain[result.key].token_ids.tolist()
        assert sources(result)[:5] == [FROM_PREVIOUS] * 5
        assert FROM_DRAFT in sources(result)[9:], "a perfect model is right"
        assert result.num_accepted_tokens == result.num_drafted_tokens or result.num_iterations <= 6


@pytest.mark.parametrize("level", ["none", "iteration", "token"])
def test_the_level_of_telemetry_changes_nothing(level: str) -> None:
    pair, requests = shared_pair("marian"), requests_of(5)
    plain = decode_plain(pair, requests)
    drafted = decode(pair, config_of("previous", "memory", "copy", telemetry={"level": level}), told(requests, plain))
    assert tokens_of(drafted) == tokens_of(plain)
    assert [result.num_iterations for result in drafted.values()] == [1] * 5


def test_whatever_is_remembered_and_in_whatever_order_the_output_is_the_same() -> None:
    pair, requests = shared_pair("llama"), requests_of(9)
    plain = tokens_of(decode_plain(pair, requests))
    for slots, order in ((1, 1), (2, -1), (4, 2), (9, -2)):
        shuffled = [*requests[::order], *[one for one in requests if one not in requests[::order]]]
        engine = Engine(pair, config_of("memory", "copy", slots=slots, most=5))
        for start in range(0, 9, 4):
            for result in engine.decode(shuffled[start : start + 4]):
                assert result.token_ids.tolist() == plain[result.key]
        again = {result.key: result for result in engine.decode(requests)}
        assert tokens_of(again) == plain
        assert all(result.num_iterations <= 8 for result in again.values()), "all of it was said before"


ORDERS = st.permutations(range(6))
SHIFTS = st.lists(st.integers(0, 63), max_size=4)


@settings(max_examples=25)
@given(
    ORDERS, ORDERS, st.integers(1, 4), st.integers(0, 40), st.sampled_from([9, 60, 10**6]), st.lists(SHIFTS, max_size=4)
)
def test_whatever_is_remembered_across_kills_and_resumes_the_output_is_the_same(
    first: list[int], again: list[int], slots: int, killed_after: int, memory_tokens: int, strange: list[list[int]]
) -> None:
    """An engine that is killed leaves what its finished rows said; the next begins with that, and with anything."""
    pair, requests = shared_pair("marian"), requests_of(6)
    plain = tokens_of(decode_plain(pair, requests))
    config = config_of("memory", "copy", slots=slots, most=7)
    config = replace(config, drafter=replace(config.drafter, memory_tokens=memory_tokens))
    killed, done = Engine(pair, config), dict[int, list[int]]()
    killed.submit([requests[key] for key in first])
    for _ in range(killed_after):
        done |= {result.key: result.token_ids.tolist() for result in killed.step()}
    resumed = Engine(pair, config)
    odd = [(requests[number].source, plain[number][:5] + tokens) for number, tokens in enumerate(strange)]
    kept = [(requests[key].source, tokens) for key, tokens in done.items()]
    assert resumed.remember([*odd, *kept]) == sum(len(output) for _, output in (*odd, *kept))
    done |= {result.key: result.token_ids.tolist() for result in resumed.decode([requests[key] for key in again])}
    assert done == plain


def test_look_ups_are_timed() -> None:
    pair, requests = shared_pair("marian"), requests_of(4)
    plain, drafting = (Engine(pair, config) for config in (tiny_config(policy={"kind": "plain"}), config_of("memory")))
    for engine in (plain, drafting):
        list(engine.decode(requests))
    assert plain.stats.lookup_seconds == 0
    assert 0 < drafting.stats.lookup_share < 1


@FAMILIES
def test_a_row_whose_source_nearly_repeats_another_s_begins_with_its_output(family: str) -> None:
    """A translation memory, also of what an earlier run said: the first draft is the whole of it."""
    pair, [request] = shared_pair(family), requests_of(1)
    near = replace(request, key=1, source=[*request.source[:4], 63, *request.source[5:]])
    plain = tokens_of(decode_plain(pair, [request, near]))
    engine = Engine(pair, config_of("memory", slots=1))
    engine.remember([(request.source, plain[0])])
    result = next(iter(engine.decode([near])))
    assert result.token_ids.tolist() == plain[1]
    assert result.iterations is not None
    assert int(result.iterations.draft_length[0]) == NEW_TOKENS - 1
