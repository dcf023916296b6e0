"""Plain decoding in the engine against `model.generate(do_sample=False, num_beams=1)`, token for token."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.generation.constraints import Constraints
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, tiny_config, tiny_pair, tokens_of
from tests.unit.runner.tiny import FAMILIES

VOCABULARY = 64
RULES: dict[str, dict[str, Any]] = {
    "history": {"repetition_penalty": 0.4, "no_repeat_ngram_size": 2},
    "words": {"bad_words_ids": [[7], [9, 16], [3, 10, 17]], "suppress_tokens": [5, 11]},
    "length": {"min_new_tokens": 6, "forced_eos_token_id": 2, "begin_suppress_tokens": [12, 19]},
    "prompt": {"min_length": 9, "forced_bos_token_id": 33},
}


def generate(pair: Pair, config: GenerationConfig, request: Request) -> list[int]:
    """What transformers makes of one row on its own."""
    source = torch.tensor([request.source])
    model = cast(Any, pair.verifier)
    limits = {"max_new_tokens": request.max_new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    output = model.generate(source, attention_mask=torch.ones_like(source), generation_config=config, **limits)
    skipped = len(pair.decoder_start) if pair.is_encoder_decoder else len(request.source)
    tokens: list[int] = output[0, skipped:].tolist()
    return tokens


def own_config(model: PreTrainedModel, **settings: Any) -> GenerationConfig:
    """The model's special tokens and nothing else, then the settings."""
    ids = {name: getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    start = getattr(model.config, "decoder_start_token_id", None)
    return GenerationConfig(**{**ids, "decoder_start_token_id": start, **settings})


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_equals_generate(family: str) -> None:
    """With an end of sequence that some rows reach and some do not."""
    pair, requests = tiny_pair(family, seed=5), ragged_requests(4, seed=2, max_new_tokens=16)
    endless = tokens_of(decode_plain(replace(pair, constraints=Constraints()), requests))
    longest = max(endless.values(), key=len)
    pair.verifier.generation_config = own_config(pair.verifier, eos_token_id=[longest[len(longest) // 2]])
    constraints = Constraints.from_generation_config(pair.verifier.generation_config, VOCABULARY)
    ours = decode_plain(replace(pair, constraints=constraints), requests, slots=3)
    expected = {request.key: generate(pair, pair.verifier.generation_config, request) for request in requests}
    assert tokens_of(ours) == expected
    assert {result.finish_reason for result in ours.values()} >= {"stop"}
    for result in ours.values():
        assert (result.finish_reason == "stop") == (result.token_ids[-1] == longest[len(longest) // 2])


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("family", ["marian", "t5", "gpt2"])
def test_speculation_equals_generate_under_a_checkpoints_rules(family: str, rules: str) -> None:
    pair, requests = tiny_pair(family, noise=0.3, seed=6), ragged_requests(3, seed=3, max_new_tokens=16)
    config = own_config(pair.verifier, **RULES[rules])
    constraints = Constraints.from_generation_config(config, VOCABULARY)
    speculative = tiny_config(policy={"kind": "fixed"}, drafter={"max_draft_tokens": 4})
    ours = decode(replace(pair, constraints=constraints), speculative, requests)
    assert tokens_of(ours) == {request.key: generate(pair, config, request) for request in requests}


def test_the_rules_matter() -> None:
    """Each set of rules changes the output of at least one row, so the comparison above can fail."""
    pair, requests = tiny_pair("marian", seed=6), ragged_requests(3, seed=3, max_new_tokens=16)
    free = tokens_of(decode_plain(replace(pair, constraints=Constraints()), requests))
    for settings in RULES.values():
        constraints = Constraints.from_generation_config(own_config(pair.verifier, **settings), VOCABULARY)
        assert tokens_of(decode_plain(replace(pair, constraints=constraints), requests)) != free, settings
