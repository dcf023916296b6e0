"""The check against AR: exact verification gives AR's tokens, lossy verification is caught giving others."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from cmasd.config import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.evaluation.speed.against_ar import Baseline, compare_with_ar
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config, since
from cmasd.telemetry.stats import EngineStats
from tests.unit.engine.pairs import (
    decode,
    decode_plain,
    noisy_copy,
    ragged_requests,
    shared_pair,
    tiny_config,
    tokens_of,
)

SOURCES = [request.source for request in ragged_requests(6, seed=3)]
LOSSY: dict[str, Any] = {"kind": "relaxed", "beta": 64, "tau": 1e9}


def compare(family: str, quality: str, config: Config, sources: list[list[int]] = SOURCES) -> Baseline:
    return compare_with_ar(shared_pair(family, quality, max_new_tokens=8), config, sources)


@pytest.mark.parametrize(("family", "policy"), [("marian", "fixed"), ("marian", "survival"), ("llama", "paper")])
def test_exact_verification_equals_ar(family: str, policy: str) -> None:
    baseline = compare(family, "noisy", tiny_config(policy={"kind": policy}))
    assert baseline.exact_match == 1.0
    assert baseline.rows == 6


def test_lossy_verification_shows() -> None:
    pair = shared_pair("marian", max_new_tokens=8)
    pair = replace(pair, drafter=noisy_copy(pair.verifier, noise=3.0))
    baseline = compare_with_ar(pair, tiny_config(policy={"kind": "fixed"}, verification=LOSSY), SOURCES)
    assert baseline.exact_match < 1.0
    assert baseline.acceptance_rate == 1.0, "everything is tolerated"


def test_a_perfect_drafter_is_accepted() -> None:
    baseline = compare("marian", "copy", tiny_config(policy={"kind": "fixed"}, drafter={"max_draft_tokens": 3}))
    assert baseline.acceptance_rate == 1.0
    assert baseline.tokens_per_iteration == pytest.approx(4.0), "8 tokens in 2 iterations"


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_generate_says_the_same_beside_it(family: str) -> None:
    config = tiny_config(policy={"kind": "fixed"}, baseline={"hf_generate": True})
    beside = compare(family, "noisy", config).hf_generate
    assert beside is not None
    assert beside["exact_match"] == 1.0
    assert 0 < beside["speedup_low"] <= beside["speedup"] <= beside["speedup_high"]
    assert compare(family, "noisy", tiny_config(policy={"kind": "fixed"})).hf_generate is None


def test_other_batch_sizes_are_compared_too() -> None:
    config = tiny_config(policy={"kind": "fixed"}, engine={"slots": 4}, baseline={"batch_sizes": [1, 4, 2]})
    found = compare("marian", "noisy", config)
    assert found.batch_size == 4
    assert [(one["batch_size"], one["rows"], one["exact_match"]) for one in found.others] == [(1, 6, 1.0), (2, 6, 1.0)]
    assert found.rerun is None
    assert compare("marian", "noisy", tiny_config(policy={"kind": "fixed"})).others == []


def test_smaller_batches_are_compared_on_fewer_rows() -> None:
    many = [request.source for request in ragged_requests(200, seed=3)]
    config = tiny_config(policy={"kind": "plain"}, engine={"slots": 4}, baseline={"batch_sizes": [1, 2]})
    assert [one["rows"] for one in compare("marian", "noisy", config, many).others] == [50, 100]


def test_the_rows_again_take_their_output_as_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same model they are all accepted; by another one AR of that other one is what counts."""
    pair = shared_pair("marian", max_new_tokens=8)
    loaded: list[Config] = []

    def other(config: Config) -> Pair:
        loaded.append(config)
        return pair if len(loaded) == 1 else replace(pair, verifier=noisy_copy(pair.verifier, noise=0.5))

    monkeypatch.setattr("cmasd.evaluation.speed.against_ar.load_pair", other)
    config = tiny_config(policy={"kind": "fixed"}, baseline={"rerun_dtype": "int8"})
    same, changed = (compare_with_ar(pair, config, SOURCES).rerun for _ in range(2))
    assert same is not None
    assert changed is not None
    assert (same["dtype"], same["changed"], same["tokens_per_iteration"], same["acceptance_rate"]) == ("int8", 0, 8, 1)
    assert changed["changed"] > 0
    assert changed["exact_match"] == 1.0
    assert 0 < changed["acceptance_rate"] < 1
    assert loaded[0].models.dtype == "int8"
    assert (loaded[0].models.drafter, loaded[0].drafter.kind) == (None, "previous")


def test_figures_agree() -> None:
    baseline = compare("marian", "copy", tiny_config(policy={"kind": "fixed"}))
    assert baseline.speedup == pytest.approx(baseline.tokens_per_second / baseline.ar_tokens_per_second)
    assert 0 < baseline.speedup_low <= baseline.speedup_high
    read = json.loads(json.dumps(baseline.to_dict()))
    assert list(read) == [field.name for field in fields(Baseline)]
    assert Baseline(**read) == baseline


def test_an_earlier_run_drafts_here_too() -> None:
    pair = shared_pair("marian", max_new_tokens=8)
    outputs = tokens_of(decode_plain(pair, [Request(i, source, 8) for i, source in enumerate(SOURCES)]))
    config = tiny_config(policy={"kind": "fixed"}, drafter={"kind": "previous", "max_draft_tokens": 8})
    baseline = compare_with_ar(pair, config, SOURCES, [outputs[key] for key in range(6)])
    assert (baseline.tokens_per_iteration, baseline.acceptance_rate, baseline.exact_match) == (8.0, 1.0, 1.0)
    assert compare_with_ar(pair, config, SOURCES).drafted_tokens == 0


def test_rows_that_come_again_are_not_remembered() -> None:
    """A corpus has them once: what they said would draft for themselves."""
    config = tiny_config(policy={"kind": "fixed"}, drafter={"kind": "memory", "max_draft_tokens": 8})
    decoder = EngineDecoder(shared_pair("marian", max_new_tokens=8), config)
    one, other = ([Request(0, list(range(start, start + 9)), 8)] for start in (5, 40))
    decoder.decode(one)
    decoder.decode(other)
    before = replace(decoder.stats)
    decoder.decode(one)
    assert since(decoder.stats, before).tokens_per_iteration == 1.0
    assert decoder.engine.drafter is not None


def test_where_nothing_is_drafted_there_is_no_acceptance() -> None:
    baseline = compare("marian", "noisy", tiny_config(policy={"kind": "plain"}))
    assert (baseline.drafted_tokens, baseline.acceptance_rate, baseline.tokens_per_iteration) == (0, None, 1)
    assert compare("marian", "copy", tiny_config(policy={"kind": "fixed"})).drafted_tokens > 0


def test_one_row_is_enough() -> None:
    assert compare("marian", "noisy", tiny_config(policy={"kind": "fixed"}), SOURCES[:1]).rows == 1


def test_counters_since_a_moment() -> None:
    start = EngineStats(iterations=3, output_tokens=10, row_iterations=10, busy_seconds=0.5)
    now = EngineStats(iterations=5, output_tokens=40, row_iterations=20, busy_seconds=2.0)
    difference = since(now, start)
    assert (difference.iterations, difference.busy_seconds, difference.tokens_per_iteration) == (2, 1.5, 3.0)
    assert since(now, EngineStats()) == now


def test_gaps_are_added_up_over_tokens() -> None:
    pair, requests = shared_pair("marian", max_new_tokens=8), ragged_requests(5, seed=1)
    exact = EngineDecoder(pair, tiny_config(policy={"kind": "fixed"}))
    exact.decode(requests)
    assert exact.gap_nats == 0
    lossy = tiny_config(policy={"kind": "fixed"}, verification=LOSSY)
    pair = replace(pair, drafter=noisy_copy(pair.verifier, noise=3.0))
    expected = sum(one.mean_gap_nats * one.num_output_tokens for one in decode(pair, lossy, requests).values())
    decoder = EngineDecoder(pair, lossy)
    decoder.decode(requests)
    assert decoder.gap_nats == pytest.approx(expected)
    assert expected > 0


def test_plain_config_is_greedy_or_sampled() -> None:
    lossy = plain_config(tiny_config(verification=LOSSY, engine={"slots": 5}))
    assert (lossy.policy.kind, lossy.verification.kind, lossy.engine.slots) == ("plain", "exact", 5)
    sampled = plain_config(tiny_config(verification={"kind": "sampling", "seed": 9}))
    assert (sampled.policy.kind, sampled.verification.kind, sampled.verification.seed) == ("plain", "sampling", 9)


def test_engine_decoder_can_be_used_again() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(5, seed=1)
    decoder = EngineDecoder(pair, tiny_config(policy={"kind": "fixed"}))
    expected = tokens_of(decode_plain(pair, requests))
    assert decoder.decode(requests) == expected
    assert decoder.decode(requests[:2]) == {request.key: expected[request.key] for request in requests[:2]}
    assert decoder.decode([]) == {}
    assert decoder.stats.output_tokens == sum(map(len, expected.values())) + sum(len(expected[key]) for key in (0, 1))
