"""`model.generate` as a peer gives the tokens of the engine's plain decoding."""

from dataclasses import replace

import pytest
from transformers import GenerationConfig

from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.speed.peers import HfAssisted, HfGenerate, stock_drafter
from cmasd.generation.constraints import Constraints
from tests.unit.engine.pairs import decode_plain, ragged_requests, tiny_config, tiny_pair, tokens_of


def pair_with_end(family: str, **rules: int) -> Pair:
    """A pair whose end of sequence is a token that its rows produce."""
    pair = tiny_pair(family, seed=5)
    endless = tokens_of(decode_plain(replace(pair, constraints=Constraints()), ragged_requests(6, seed=2)))
    longest = max(endless.values(), key=len)
    start = getattr(pair.verifier.config, "decoder_start_token_id", None)
    eos = longest[len(longest) // 2]
    generation = GenerationConfig(eos_token_id=eos, pad_token_id=0, decoder_start_token_id=start, **rules)
    pair.verifier.generation_config = generation
    return replace(pair, constraints=Constraints.from_generation_config(generation, 64))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("family", ["marian", "bart", "t5", "llama", "gpt2"])
def test_equals_plain_decoding(family: str, batch_size: int) -> None:
    """Sources and limits of different lengths; one row or more ends before its limit."""
    pair, requests = pair_with_end(family), ragged_requests(6, seed=2)
    expected = tokens_of(decode_plain(pair, requests))
    assert HfGenerate(pair, batch_size).decode(requests) == expected
    eos = pair.constraints.eos_token_ids[0]
    assert eos in {row[-1] for row in expected.values()}


def test_a_length_that_counts_the_prompt_holds() -> None:
    pair = replace(pair_with_end("llama"), max_length=14)
    requests = ragged_requests(6, seed=2)
    expected = tokens_of(decode_plain(pair, requests))
    assert max(len(request.source) + len(expected[request.key]) for request in requests) == 14
    assert HfGenerate(pair, 3).decode(requests) == expected


def test_rules_of_the_checkpoint_hold() -> None:
    pair, requests = pair_with_end("marian", no_repeat_ngram_size=2, min_new_tokens=3), ragged_requests(4, seed=2)
    assert HfGenerate(pair, 3).decode(requests) == tokens_of(decode_plain(pair, requests))


def test_a_forced_language_token_is_passed_on() -> None:
    pair = pair_with_end("marian")
    pair = replace(pair, constraints=replace(pair.constraints, forced_bos_token_id=33))
    requests = ragged_requests(4, seed=2)
    outputs = HfGenerate(pair, 4).decode(requests)
    assert {row[0] for row in outputs.values()} == {33}
    assert outputs == tokens_of(decode_plain(pair, requests))


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_assisted_generation_equals_plain_decoding(family: str) -> None:
    pair, requests = pair_with_end(family), ragged_requests(6, seed=2)
    assisted = HfAssisted(pair, pair.verifier, stock_drafter(pair, tiny_config()))
    assert assisted.decode(requests) == tokens_of(decode_plain(pair, requests))


def test_assisted_generation_needs_a_drafter_with_a_model_of_its_own() -> None:
    for config in (tiny_config(drafter={"kind": "quantised"}), tiny_config(models={"drafter": None})):
        with pytest.raises(ModelError, match="no drafter with a model of its own"):
            stock_drafter(pair_with_end("llama"), config)
