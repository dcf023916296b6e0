"""CTranslate2 as a peer gives the tokens of the engine's plain decoding, whatever the family."""

import copy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.speed.peers import CTranslate2, load_ctranslate2
from tests.unit.engine.pairs import decode_plain, ragged_requests, tokens_of
from tests.unit.evaluation.speed.test_hf_generate import pair_with_end

ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed (extra `bench`)")
REQUESTS = ragged_requests(6, seed=2)


def assert_equals_plain(pair: Pair) -> dict[int, list[int]]:
    """One row at a time, and in static batches with rows of different lengths and limits."""
    expected = tokens_of(decode_plain(pair, REQUESTS))
    model = load_ctranslate2(pair, pair.verifier, threads=1)["float32"]
    for batch_size in (1, 4):
        assert CTranslate2(pair, model, batch_size).decode(REQUESTS) == expected
    return expected


@pytest.mark.parametrize("family", ["marian", "bart", "mbart", "pegasus", "m2m100", "t5", "llama", "qwen3", "gpt2"])
def test_equals_plain_decoding(family: str) -> None:
    """Sources and limits of different lengths; one row or more ends before its limit."""
    pair = pair_with_end(family)
    assert pair.constraints.eos_token_ids[0] in {row[-1] for row in assert_equals_plain(pair).values()}


@torch.no_grad()
def test_a_marian_whose_padding_is_its_last_token() -> None:
    """As in the published checkpoints: the padding's embedding is zero, it starts the rows and is never generated."""
    pair = pair_with_end("marian")
    model = cast(Any, pair.verifier)
    last = model.config.vocab_size - 1
    for part in (model.model.encoder, model.model.decoder):
        part.embed_tokens.weight[last] = 0
    model.config.pad_token_id = model.config.decoder_start_token_id = last
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = last
    assert_equals_plain(replace(pair, constraints=replace(pair.constraints, banned=(last,))))


def test_rules_of_the_checkpoint_are_passed_on() -> None:
    pair = pair_with_end("marian", no_repeat_ngram_size=2, min_new_tokens=6)
    free = tokens_of(decode_plain(replace(pair, constraints=pair_with_end("marian").constraints), REQUESTS))
    banned = free[2][1]
    pair = replace(pair, constraints=replace(pair.constraints, banned=(banned,)))
    outputs = assert_equals_plain(pair)
    assert outputs != free
    assert banned not in {token for row in outputs.values() for token in row}


def test_a_forced_language_token() -> None:
    pair = pair_with_end("m2m100")
    pair = replace(pair, constraints=replace(pair.constraints, forced_bos_token_id=33))
    assert {row[0] for row in assert_equals_plain(pair).values()} == {33}


@pytest.mark.parametrize("family", ["llama", "marian"])
def test_the_pair_is_as_it_was(family: str) -> None:
    """Some converters take layers off the model that they read."""
    pair = pair_with_end(family)
    expected = tokens_of(decode_plain(pair, REQUESTS))
    assert set(load_ctranslate2(pair, pair.verifier, threads=1)) == {"float32", "int8"}
    assert tokens_of(decode_plain(pair, REQUESTS)) == expected


@pytest.mark.parametrize("family", ["marian", "bart", "t5", "llama", "gpt2"])
def test_a_model_in_float32_lends_its_weights(family: str) -> None:
    """The largest are not copied, and none is changed."""
    pair = pair_with_end(family)
    model = copy.deepcopy(pair.verifier).float()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    load_ctranslate2(pair, model, threads=1)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_architecture_that_cannot_be_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    from ctranslate2.converters import transformers

    pair = pair_with_end("llama")
    monkeypatch.delitem(transformers._MODEL_LOADERS, "LlamaConfig")
    with pytest.raises(ModelError, match="its converter does not know LlamaConfig"):
        load_ctranslate2(pair, pair.verifier, threads=1)
    monkeypatch.setitem(transformers._MODEL_LOADERS, "LlamaConfig", object())
    with pytest.raises(ModelError, match="cannot convert LlamaForCausalLM"):
        load_ctranslate2(pair, pair.verifier, threads=1)
