"""Two models that speak in turn: what each row says is the paper's listing for that row alone, in every batch."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.config import from_dict
from cmasd.config.rules import check
from cmasd.core import Request, Result
from cmasd.engine import Engine, Pair
from cmasd.engine.pair import _drafted_bits
from cmasd.errors import ConfigError
from cmasd.generation.constraints import Constraints
from cmasd.kernels import Bits
from cmasd.signals import FROM_DRAFT, FROM_SMALL, FROM_VERIFIER
from tests.unit.engine.pairs import (
    decode,
    decode_plain,
    ragged_requests,
    self_pair,
    shared_pair,
    tiny_config,
    tokens_of,
)
from tests.unit.engine.stitch_oracle import Oracle, Told
from tests.unit.runner.tiny import tiny_model

FAMILIES = ["llama", "qwen2", "bart", "marian", "t5", "gpt2"]
SAMPLING = {"kind": "sampling", "temperature": 0.7, "seed": 5}
MOST = 3


def pair_of(family: str, quality: str = "noisy", eos: int | None = None) -> Pair:
    return shared_pair(family, quality, None if eos is None else Constraints(eos_token_ids=(eos,)))


def config_of(tau: float, slots: int = 3, **stitch: Any) -> Any:
    sections: dict[str, Any] = {"policy": {"kind": "stitch"}, "stitch": {"tau": tau, **stitch}}
    sections["verification"] = sections["stitch"].pop("verification", {})
    return tiny_config(**sections, engine={"slots": slots}, drafter={"max_draft_tokens": MOST})


def a_tau(pair: Pair, requests: list[Request], share: float = 0.5) -> float:
    """At which both models have their say: so many of their entropies, each alone, are below."""
    alone = [Oracle(pair, tau).decode(request) for tau in (0.0, 1.0) for request in requests]
    return float(np.quantile([entropy for told in alone for entropy in told.entropies], share))


def assert_told(result: Result, told: Told) -> None:
    """Tokens, who said them, how sure it was, and the counts."""
    assert result.token_ids.tolist() == told.tokens
    assert result.tokens is not None
    assert result.tokens.source.tolist() == told.sources
    np.testing.assert_allclose(1 - result.tokens.entropy, told.entropies, atol=1e-5)
    assert result.num_small_tokens == told.sources.count(FROM_SMALL)
    assert result.num_switches == told.switches
    assert result.num_iterations == told.large_steps
    assert result.num_accepted_tokens == told.sources.count(FROM_DRAFT)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("verification", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_the_papers_listing(family: str, verification: dict[str, Any], slots: int) -> None:
    pair, requests = pair_of(family, eos=15), ragged_requests(7, seed=1)
    tau = a_tau(pair, requests)
    oracle = Oracle(pair, tau, verification.get("temperature"), verification.get("seed", 0))
    told = {request.key: oracle.decode(request) for request in requests}
    spoken = {source for one in told.values() for source in one.sources}
    assert spoken == {FROM_SMALL, FROM_VERIFIER}
    results = decode(pair, config_of(tau, slots, verification=verification), requests)
    for key, result in results.items():
        assert_told(result, told[key])


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("family", ["qwen2", "marian"])
def test_the_large_model_has_a_tau_of_its_own(family: str, share: float, speculate: bool) -> None:
    """With 1 it says one token at a time."""
    pair, requests = pair_of(family, eos=15), ragged_requests(7, seed=1)
    tau, tau_large = a_tau(pair, requests), a_tau(pair, requests, share) if share < 1 else 1.0

    def told_by(oracle: Oracle) -> dict[int, Told]:
        return {one.key: oracle.decode_checked(one, MOST) if speculate else oracle.decode(one) for one in requests}

    told, listed = told_by(Oracle(pair, tau, tau_large=tau_large)), told_by(Oracle(pair, tau))
    assert [one.sources for one in told.values()] != [one.sources for one in listed.values()]
    for key, result in decode(pair, config_of(tau, tau_large=tau_large, speculate=speculate), requests).items():
        assert_told(result, told[key])


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("verification", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unsure_tokens_become_drafts(family: str, verification: dict[str, Any], slots: int) -> None:
    pair, requests = pair_of(family, eos=15), ragged_requests(7, seed=2)
    tau = a_tau(pair, requests)
    oracle = Oracle(pair, tau, verification.get("temperature"), verification.get("seed", 0))
    told = {request.key: oracle.decode_checked(request, MOST) for request in requests}
    spoken = {source for one in told.values() for source in one.sources}
    assert spoken == {FROM_SMALL, FROM_VERIFIER, FROM_DRAFT}
    results = decode(pair, config_of(tau, slots, verification=verification, speculate=True), requests)
    for key, result in results.items():
        assert_told(result, told[key])


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tau_0_is_the_large_model_and_tau_1_the_small_one(family: str, speculate: bool) -> None:
    pair, requests = pair_of(family, eos=15), ragged_requests(6, seed=3)
    assert pair.drafter is not None
    small = Pair(pair.drafter, pair.drafter, pair.codec, pair.constraints, pair.max_new_tokens, pair.max_source_tokens)
    large_alone, small_alone = (tokens_of(decode_plain(one, requests)) for one in (pair, small))
    assert large_alone != small_alone
    assert tokens_of(decode(pair, config_of(0.0, speculate=speculate), requests)) == large_alone
    assert tokens_of(decode(pair, config_of(1.0, speculate=speculate), requests)) == small_alone


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("verification", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("family", ["qwen2", "marian"])
def test_a_row_does_not_depend_on_its_neighbours(family: str, verification: dict[str, Any], speculate: bool) -> None:
    """Nor on the number of slots, nor on how long rows wait for each other."""
    pair, requests = pair_of(family), ragged_requests(9, seed=4)
    tau = a_tau(pair, requests)

    def told(rows: list[Request], slots: int, max_wait: int) -> dict[int, list[int]]:
        config = config_of(tau, slots, verification=verification, speculate=speculate, max_wait=max_wait)
        return tokens_of(decode(pair, config, rows))

    alone = {key: tokens for request in requests for key, tokens in told([request], 1, 0).items()}
    for slots, max_wait in ((1, 8), (2, 0), (5, 3), (9, 100)):
        assert told(requests, slots, max_wait) == alone
        assert told(requests[::2], slots, max_wait) == {key: alone[key] for key in range(0, 9, 2)}


def test_rows_wait_for_each_other_no_longer_than_they_may() -> None:
    """The large model runs less often, over more rows, when running it costs the same for one as for all."""
    pair, requests = pair_of("qwen2"), [Request(key, [5 + 7 * key, 9, 3 + key], 24) for key in range(8)]
    tau = a_tau(pair, requests, share=0.8)
    ran = {}
    for wait in (0, 2, 1000):
        engine = Engine(pair, config_of(tau, slots=8, max_wait=wait))
        policy: Any = engine.policy
        policy._gather = lambda rows: rows
        longest = 0
        engine.submit(requests)
        while engine.pending:
            engine.step()
            assert engine._stitch is not None
            longest = max(longest, int(engine._stitch._waited.max()))
        assert longest <= wait
        ran[wait] = engine.stats.iterations
    assert ran[0] > ran[2] > ran[1000]


@pytest.mark.parametrize("family", ["llama", "marian"])
def test_the_checkpoints_rules_hold_for_both_speakers(family: str) -> None:
    rules = Constraints(eos_token_ids=(9,), no_repeat_ngram_size=2, banned=(11, 12), min_new_tokens=3, suppressed=(13,))
    pair, requests = shared_pair(family, "noisy", rules), ragged_requests(8, seed=5)
    tau = a_tau(pair_of(family), requests)
    for speculate in (False, True):
        results = decode(pair, config_of(tau, speculate=speculate), requests)
        assert sum(one.num_small_tokens for one in results.values()) > 0
        for request in requests:
            said = results[request.key].token_ids.tolist()
            row = [*([] if pair.is_encoder_decoder else request.source), *said]
            assert not {11, 12, 13} & set(said)
            new = list(pairwise(row))
            first = len(row) - len(said)
            assert all(new[i] not in new[:i] for i in range(max(0, first - 1), len(new)))
            assert 9 not in said[: min(3, request.max_new_tokens)]


@pytest.mark.parametrize("kind", ["self", "quantised"])
def test_the_small_model_may_be_made_of_the_large_one(kind: str) -> None:
    pair, requests = self_pair("llama", 2), ragged_requests(5, seed=6)
    config = tiny_config(policy={"kind": "stitch"}, stitch={"tau": 0.5}, drafter={"kind": kind})
    assert set(tokens_of(decode(pair, config, requests))) == set(range(5))


@pytest.mark.parametrize("family", ["qwen2", "bart"])
def test_long_stretches_are_read_in_pieces(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, requests = pair_of(family), [Request(key, [5 + key, 9, 3], 24) for key in range(4)]
    tau = a_tau(pair, requests)
    whole = tokens_of(decode(pair, config_of(tau), requests))
    monkeypatch.setattr("cmasd.engine.reader.PREFILL_TOKENS", {"cpu": 4})
    assert tokens_of(decode(pair, config_of(tau), requests)) == whole


def test_a_row_that_never_needs_the_large_model_is_never_prefilled_for_it() -> None:
    pair, requests = pair_of("marian"), ragged_requests(6, seed=7)
    engine = Engine(pair, config_of(1.0))
    engine.verifier.prefill = None  # type: ignore[method-assign, assignment]
    assert len(list(engine.decode(requests))) == 6
    assert engine.stats.iterations == 0
    assert engine.stats.small_tokens == engine.stats.output_tokens > 0


def test_what_is_counted() -> None:
    pair, requests = pair_of("qwen2"), ragged_requests(8, seed=8)
    tau = a_tau(pair, requests)
    engine = Engine(pair, config_of(tau))
    results = list(engine.decode(requests))
    stats = engine.stats
    assert stats.small_tokens == sum(one.num_small_tokens for one in results)
    assert stats.switches == sum(one.num_switches for one in results)
    assert stats.row_iterations == sum(one.num_iterations for one in results)
    assert stats.output_tokens == stats.small_tokens + stats.row_iterations
    assert 0.5 < stats.slot_occupancy <= 1
    for one in results:
        assert math.isnan(one.mean_gap_nats) == (one.num_small_tokens > 0)
        assert one.tokens is not None
        small = one.tokens.source == FROM_SMALL
        assert np.isnan(one.tokens.verifier_logprob[small]).all()
        assert np.isfinite(one.tokens.verifier_logprob[~small]).all()
        assert np.isnan(one.tokens.confidence).all()


@pytest.mark.parametrize("level", ["none", "iteration", "token"])
@pytest.mark.parametrize("speculate", [False, True])
def test_telemetry_changes_no_token(level: str, speculate: bool) -> None:
    pair, requests = pair_of("marian"), ragged_requests(5, seed=9)
    tau = a_tau(pair, requests)
    config = config_of(tau, speculate=speculate)
    quiet = tiny_config(
        policy={"kind": "stitch"},
        stitch={"tau": tau, "speculate": speculate},
        telemetry={"level": level},
        drafter={"max_draft_tokens": MOST},
    )
    assert tokens_of(decode(pair, quiet, requests)) == tokens_of(decode(pair, config, requests))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"drafter": {"kind": "copy"}}, "drafter.kind: must be a model that speaks token by token"),
        ({"drafter": {"kind": ["memory", "model"]}}, "drafter.kind: must be a model that speaks token by token"),
        ({"drafter": {"kind": "parallel"}}, "drafter.kind: must be a model that speaks token by token"),
        ({"drafter": {"shortlist": 100}}, "drafter.shortlist: must be null"),
        ({"verification": {"kind": "relaxed"}}, "verification.kind: must be exact"),
        ({"telemetry": {"teacher_top_k": 4}}, "telemetry.teacher_top_k: must be 0"),
        ({"stitch": {"tau": 1.5}}, "stitch.tau: must be between 0 and 1"),
        ({"stitch": {"max_wait": -1}}, "stitch.max_wait: must be at least 0"),
        ({"models": {"drafter": None}}, "models.drafter: must be set"),
    ],
)
def test_what_cannot_be_stitched_is_refused(sections: dict[str, Any], told: str) -> None:
    config = from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "policy": {"kind": "stitch"}, **sections})
    with pytest.raises(ConfigError, match=told):
        check(config)


@pytest.mark.parametrize(
    ("policy", "dtype", "bits"),
    [("fixed", "auto", 8), ("stitch", "auto", None), ("stitch", "int8", 8), ("stitch", "same", None)],
)
def test_the_small_model_is_not_rounded_unasked(
    monkeypatch: pytest.MonkeyPatch, policy: str, dtype: str, bits: Bits
) -> None:
    """Drafts may be, because they are verified; what the small model says is not."""
    monkeypatch.setattr("cmasd.engine.pair.kernels", lambda dtype: SimpleNamespace(multiplies_bytes=True))
    config = tiny_config(policy={"kind": policy}, models={"drafter_dtype": dtype})
    assert _drafted_bits(config, tiny_model("marian")) == bits


def test_it_is_called_lossy_unless_the_large_model_says_all() -> None:
    assert config_of(0.02).lossless == "lossy"
    assert config_of(0.0).lossless == "exact"
    assert config_of(0.0, verification={"kind": "sampling"}).lossless == "in distribution"


def test_sampling_draws_from_the_distribution() -> None:
    """Many rows of one source, whose first tokens are the small model's: their shares are its probabilities."""
    pair = pair_of("qwen2")
    requests = [Request(key, [5, 9, 3], 1) for key in range(3000)]
    config = config_of(1.0, slots=32, verification={"kind": "sampling", "temperature": 1.0, "seed": 1})
    said = torch.tensor([tokens[0] for tokens in tokens_of(decode(pair, config, requests)).values()])
    logits = Oracle(pair, 1.0).logits(pair.drafter, [5, 9, 3], [])
    shares, expected = said.bincount(minlength=64) / len(said), logits.softmax(-1)
    assert float((shares - expected).abs().sum() / 2) < 0.06, "total variation; 64 tokens, 3,000 draws"
