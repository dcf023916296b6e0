"""Recordings in the engine: token for token what `generate` says, whoever drafts, and however long they are."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cmasd.core import Request, Result, Sound
from cmasd.engine import Engine
from cmasd.engine.hearing import Hearing, Kept, _Open
from cmasd.errors import ConfigError
from cmasd.models.early_exit import early_exit
from cmasd.signals import IterationTrace, TokenTrace
from tests.unit.engine import hearing
from tests.unit.engine.hearing import generated, hearing_pair, noisy, requests, sound, whisper
from tests.unit.engine.pairs import decode, quantised, tiny_config
from tests.unit.runner import tiny_whisper as tiny

SHORT, WINDOW, LONG = 7500, tiny.SAMPLES, 3 * tiny.SAMPLES + 1234
PLAIN: dict[str, Any] = {"policy": {"kind": "plain"}}


def said(result: Result) -> list[int]:
    """Without the end of sequence, as `generate` gives it."""
    return [token for token in result.token_ids.tolist() if token != tiny.END]


@pytest.mark.parametrize("timestamps", [False, True])
def test_short_recordings_equal_generate(timestamps: bool) -> None:
    model, asked = whisper(), [(SHORT, 0, "de"), (WINDOW, 1, None), (12500, 2, "fr")]
    sounds = [sound(model, *one[:2], language=one[2], timestamps=timestamps) for one in asked]
    results = decode(hearing_pair(model, None), tiny_config(**PLAIN, engine={"slots": 2}), requests(sounds))
    for key, (samples, seed, language) in enumerate(asked):
        assert said(results[key]) == generated(model, samples, seed, language, timestamps), (samples, seed)
    assert [results[key].num_input_tokens for key in range(3)] == [9, 20, 16]


def test_float32_and_the_other_task() -> None:
    model = tiny.tiny_whisper(seed=3)
    results = decode(
        hearing_pair(model, None), tiny_config(**PLAIN), requests([sound(model, SHORT, 4, task="translate")])
    )
    assert said(results[0]) == generated(model, SHORT, 4, task="translate")


def test_long_recordings_equal_generate_and_come_out_as_one_row() -> None:
    model, asked = whisper(), [(LONG, 2), (SHORT, 0), (2 * WINDOW, 5)]
    sounds = [sound(model, *one) for one in asked]
    pair, config = hearing_pair(model, noisy()), tiny_config(policy={"kind": "fixed"}, engine={"slots": 2})
    results = decode(pair, config, requests(sounds))
    assert sorted(results) == [0, 1, 2]
    for key, (samples, seed) in enumerate(asked):
        assert said(results[key]) == generated(model, samples, seed), (samples, seed)
    result = results[0]
    assert len(result.windows) > 1
    assert result.windows[0][1] == 0
    assert sum(tokens for tokens, _ in result.windows) == len(said(result))
    assert result.tokens is not None
    assert result.iterations is not None
    assert len(result.tokens.values_NC) == result.num_output_tokens
    assert len(result.iterations.values_NC) == result.num_iterations
    assert result.num_input_tokens == -(-(LONG // tiny.HOP) // 2)


DRAFTERS: dict[str, dict[str, Any]] = {
    "model": {"kind": "model"},
    "self": {"kind": "self"},
    "quantised": {"kind": "quantised"},
    "memory": {"kind": "memory"},
    "copy": {"kind": "copy"},
    "previous": {"kind": "previous", "previous": "earlier"},
    "listed": {"kind": ["memory", "copy", "recycle", "model"]},
    "tree": {"kind": "model", "tree_nodes": 6},
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_whoever_drafts_the_output_is_that_of_plain_decoding(name: str) -> None:
    model = whisper()
    sounds = [sound(model, samples, seed, timestamps=seed == 1) for seed, samples in enumerate([SHORT, WINDOW, LONG])]
    drafter = early_exit(model, 1) if name == "self" else noisy(noise=0.05)
    pair = hearing_pair(model, drafter)
    if name == "quantised":
        pair = quantised(pair)
    plain = decode(pair, tiny_config(**PLAIN), requests(sounds))
    again = [replace(one, previous=plain[one.key].token_ids.tolist()) for one in requests(sounds)]
    for policy in ("fixed", "goodput"):
        config = tiny_config(drafter=DRAFTERS[name], policy={"kind": policy}, engine={"slots": 2})
        results = decode(pair, config, again)
        assert {key: said(one) for key, one in results.items()} == {key: said(one) for key, one in plain.items()}
        if policy == "fixed" and name != "copy":
            assert sum(one.num_accepted_tokens for one in results.values()) > 0


@pytest.mark.parametrize("drafter", ["model", "quantised"])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_stitch_where_one_model_speaks_alone(tau: float, drafter: str) -> None:
    """Tokens that nobody checks keep the rules of timestamps, and both models begin as the verifier heard."""
    model = whisper()
    sounds = [sound(model, samples, seed, timestamps=seed == 1) for seed, samples in enumerate([SHORT, WINDOW, LONG])]
    pair = hearing_pair(model, model)
    plain = decode(pair, tiny_config(**PLAIN), requests(sounds))
    config = tiny_config(policy={"kind": "stitch"}, stitch={"tau": tau}, drafter={"kind": drafter}, engine={"slots": 2})
    results = decode(pair, config, requests(sounds))
    assert {key: said(one) for key, one in results.items()} == {key: said(one) for key, one in plain.items()}
    for one in results.values():
        assert one.num_small_tokens == tau * one.num_output_tokens
        assert len(one.windows) == len(plain[one.key].windows)


def test_rows_that_share_memory_wait_however_long_their_recordings_are() -> None:
    """A row needs places for a window, and none for what of its recording is still to come."""
    model = whisper()
    sounds = [sound(model, samples, seed) for seed, samples in enumerate([LONG, LONG, SHORT])]
    config = tiny_config(**PLAIN, engine={"slots": 3})
    longest = Engine(hearing_pair(model, None), config).shape.places
    assert longest == 4 + tiny.POSITIONS - 1 + 1 + tiny.PLACES
    few = replace(config, engine=replace(config.engine, cache_tokens=longest))
    pair = hearing_pair(model, None)
    alone, beside = decode(pair, few, requests(sounds)), decode(pair, config, requests(sounds))
    assert {key: said(one) for key, one in alone.items()} == {key: said(one) for key, one in beside.items()}
    with pytest.raises(ConfigError, match=f"expected at least {longest}"):
        Engine(pair, replace(config, engine=replace(config.engine, cache_tokens=longest - 1)))


def test_a_language_is_found_out_once_for_all_windows() -> None:
    model, fed = whisper(), []
    engine_pair = hearing_pair(model, None)
    one = sound(model, LONG, 2)
    assert one.start[1] == -1
    engine = Engine(engine_pair, tiny_config(**PLAIN))
    run = engine.verifier.run

    def watched(window: Any, asked_Q: Any = None) -> Any:
        fed.append(window.tokens_N.tolist())
        return run(window, asked_Q)

    engine.verifier.run = watched  # type: ignore[method-assign]
    [result] = list(engine.decode(requests([one])))
    assert len(result.windows) > 1
    assert sum(tokens == [tiny.START] for tokens in fed) == 1
    starts = [tokens for tokens in fed if tokens[:1] == [tiny.START] and len(tokens) == 2]
    assert len(starts) == len(result.windows)
    assert len({tuple(tokens) for tokens in starts}) == 1
    assert starts[0][1] in hearing.LANGUAGE_IDS


def opened(frames: int = 3 * tiny.FRAMES) -> _Open:
    silence = np.zeros((tiny.BINS, frames), np.float32)
    return _Open(Request(0, Sound(silence, frames, (tiny.START,)), 40), [tiny.START])


def window_of(tokens: list[int], ended: bool = True) -> Result:
    ids = np.array(tokens + ([tiny.END] if ended else []), dtype=np.int32)
    traces: Any = {
        "tokens": TokenTrace.of(np.zeros((len(ids), 8), np.float32)),
        "iterations": IterationTrace.of(np.zeros((len(ids), IterationTrace.width()), np.float32)),
    }
    return Result(0, ids, "stop" if ended else "length", 4, len(ids), 0, 0, float("nan"), 0.0, **traces)


T = tiny.FIRST
KEPT = [
    ([T, 1, 2, T + 5, T + 5, 3, T + 9, T + 9, 4], Kept(8, 18)),
    ([T, 1, 2, T + 5, T + 5, 3, T + 9], Kept(7, 40)),
    ([T, 1, 2, T + 5], Kept(4, 40)),
    ([T, 1, 2], Kept(3, 40)),
    ([1, 2], Kept(2, 40)),
    ([], Kept(0, 40)),
    ([T], Kept(1, 40)),
    ([T, 1, T, T, 2], Kept(5, 40)),
]


@pytest.mark.parametrize(("tokens", "kept"), KEPT)
@pytest.mark.parametrize("ended", [True, False])
def test_the_next_window_begins_where_the_last_whole_segment_ends(tokens: list[int], kept: Kept, ended: bool) -> None:
    assert Hearing(hearing.rules(), cast(Any, None))._kept(opened(), window_of(tokens, ended), tiny.FRAMES) == kept


def test_windows_are_joined_as_far_as_they_count() -> None:
    one = Hearing(hearing.rules(), cast(Any, None))
    one._open[0] = opened()
    whole, more = one.land([window_of([T, 1, T + 10, T + 10, 9, 9, 9])])
    assert whole == []
    rest = more[0].source
    assert isinstance(rest, Sound)
    assert rest.begin == 20
    whole, more = one.land([window_of([T, 2, T + 20], ended=False)])
    assert more[0].source.begin == 60  # type: ignore[attr-defined]
    whole, more = one.land([window_of([T, 3])])
    assert more[0].source.begin == 100  # type: ignore[attr-defined]
    [result], more = one.land([window_of([T, 4, T + 10])])
    assert more == []
    tokens = [T, 1, T + 10, T + 10, T, 2, T + 20, T, 3, T, 4, T + 10, tiny.END]
    assert result.token_ids.tolist() == tokens
    assert result.windows == ((4, 0), (3, 20), (2, 60), (3, 100))
    assert (result.num_iterations, result.finish_reason, result.num_input_tokens) == (8 + 3 + 3 + 4, "stop", 60)
    assert result.tokens is not None
    assert len(result.tokens.values_NC) == len(tokens)
    assert one._open == {}


@torch.no_grad()
def test_capacity_counts_keys_of_windows_and_no_ids() -> None:
    from cmasd.engine.capacity import need_of

    pair = hearing_pair(whisper(), None)
    need = need_of(pair, tiny_config(**PLAIN))
    source = tiny.PLACES * 2 * 2 * 32 * 8  # layers, keys and values, width, bytes
    assert need.slot_bytes > 2 * source
    assert (pair.max_source_ids, pair.max_prompt) == (0, 4)


def test_generate_as_a_peer_says_the_same() -> None:
    from cmasd.evaluation.speed.peers.hf import HfGenerate

    model = whisper()
    asked: list[dict[str, Any]] = [{"language": "de"}, {"timestamps": True}, {"task": "translate"}, {}]
    sizes = [SHORT, WINDOW, SHORT, LONG]
    sounds = [sound(model, size, seed, **one) for seed, (size, one) in enumerate(zip(sizes, asked, strict=True))]
    pair = hearing_pair(model, None)
    ours = decode(pair, tiny_config(**PLAIN), requests(sounds))
    theirs = HfGenerate(pair, batch_size=4).decode(requests(sounds))
    assert theirs == {key: one.token_ids.tolist() for key, one in ours.items()}


def test_an_audit_tells_near_ties_after_what_a_row_begins_with() -> None:
    from cmasd.evaluation.quality.audit import ALGORITHMIC, divergences

    model = whisper()
    pair, rows = hearing_pair(model, None), requests([sound(model, SHORT, 0)])
    plain = {0: decode(pair, tiny_config(**PLAIN), rows)[0].token_ids.tolist()}
    other = {0: [*plain[0][:3], (plain[0][3] + 1) % tiny.WORDS, *plain[0][4:]]}
    [found] = divergences(pair, tiny_config(**PLAIN), rows, plain, other)
    assert (found.position, found.plain_token, found.cause) == (3, plain[0][3], ALGORITHMIC)
    assert found.gap_nats > 0
