"""Every field of a generation config is followed, refused, named or idle; lengths and first tokens by their values."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from cmasd.config import from_dict
from cmasd.errors import ConfigError, ModelError
from cmasd.generation.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    SETTINGS,
    Limits,
    check_end,
    decoder_start,
    limits,
    notices,
    refuse,
    rounding,
)
from tests.unit.checkpoints.test_by_name import word_tokenizer
from tests.unit.runner.tiny import POSITIONS, tiny_model

P = POSITIONS


def test_every_field_of_transformers_is_classified() -> None:
    """A field of a later release fails here until it has its place."""
    assert set(SETTINGS) == {name for name in vars(GenerationConfig()) if not name.startswith("_")}


def lengths(family: str, generation: dict[str, Any], **engine: Any) -> Limits:
    model = tiny_model(family, layers=1)
    return limits(from_dict({"engine": engine}).engine, GenerationConfig(**generation), model.config)


@pytest.mark.parametrize(
    ("family", "generation", "engine", "expected"),
    [
        ("marian", {}, {}, (P, P, None)),
        ("marian", {"max_length": 30}, {}, (P, 29, None)),
        ("marian", {"max_length": 30, "max_new_tokens": 12}, {}, (P, 12, None)),
        ("marian", {"max_length": 30}, {"max_new_tokens": 50, "max_source_tokens": 20}, (20, 50, None)),
        ("marian", {"max_length": 1}, {"max_new_tokens": 50}, (P, 50, None)),
        ("t5", {}, {}, (512, DEFAULT_MAX_NEW_TOKENS, None)),
        ("t5", {}, {"max_new_tokens": 5000, "max_source_tokens": 4000}, (4000, 5000, None)),
        ("llama", {}, {}, (P // 2, P // 2, None)),
        ("llama", {}, {"max_source_tokens": 50}, (50, P - 50, None)),
        ("llama", {}, {"max_new_tokens": 28}, (P - 28, 28, None)),
        ("gpt2", {}, {"max_new_tokens": 28, "max_source_tokens": 1000}, (P - 28, 28, None)),
        ("llama", {"max_new_tokens": 40}, {"max_source_tokens": 50}, (50, 40, None)),
        ("llama", {"max_length": 10}, {}, (9, 9, 10)),
        ("llama", {"max_length": 100}, {}, (99, 99, 100)),
        ("llama", {"max_length": 100}, {"max_source_tokens": 20}, (20, 99, 100)),
        ("llama", {"max_length": 100}, {"max_new_tokens": 28}, (P - 28, 28, None)),
        ("llama", {"max_length": 100, "max_new_tokens": 12}, {"max_source_tokens": 50}, (50, 12, None)),
        ("llama", {"max_length": P + 1}, {}, (P, P, P + 1)),
    ],
)
def test_lengths(
    family: str, generation: dict[str, Any], engine: dict[str, Any], expected: tuple[int, int, int | None]
) -> None:
    assert lengths(family, generation, **engine) == (*expected, ())


@pytest.mark.parametrize(
    ("family", "generation", "engine", "expected", "told"),
    [
        ("marian", {}, {"max_new_tokens": 5000}, (P, P, None), "engine.max_new_tokens: allows 5000 tokens"),
        ("bart", {"max_length": 500}, {}, (P, P, None), "generation_config.max_length: allows 499 tokens"),
        ("gpt2", {"max_new_tokens": P - 8}, {}, (P, P - 8, P + 1), f"generation_config.max_new_tokens: {P - 8} in the"),
        ("llama", {"max_new_tokens": 4000}, {}, (P, P, P + 1), "generation_config.max_new_tokens: 4000 in the"),
        ("llama", {"max_length": 4096}, {}, (P, P, P + 1), "generation_config.max_length: 4096 in the checkpoint"),
    ],
)
def test_a_length_that_cannot_be_had_is_named(
    family: str, generation: dict[str, Any], engine: dict[str, Any], expected: tuple[int, int, int | None], told: str
) -> None:
    found = lengths(family, generation, **engine)
    assert found[:3] == expected
    [notice] = found.notices
    assert notice.startswith(told)
    assert f"{P} positions" in notice


def test_more_new_tokens_than_a_decoder_only_model_has_positions() -> None:
    with pytest.raises(ConfigError, match=r"engine\.max_new_tokens: .*got 128; expected at most 127"):
        lengths("llama", {}, max_new_tokens=POSITIONS)


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_a_length_without_a_token_to_generate_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"max_length: leaves no token to generate, got 1; expected at least 2"):
        lengths(family, {"max_length": 1})


START = "decoder_start_token_id"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({START: 7, "bos_token_id": 3}, 2, 7),
        ({START: 0, "bos_token_id": 3}, 2, 0),
        ({"bos_token_id": 3}, 2, 3),
        ({"bos_token_id": 0}, None, 0),
        ({}, 2, 2),
        ({START: [7]}, 2, 7),
        ({"bos_token_id": [5]}, None, 5),
    ],
)
def test_the_decoder_starts_as_in_transformers(generation: dict[str, Any], config: int | None, expected: int) -> None:
    model: Any = tiny_model("bart", layers=1)
    model.config.decoder_start_token_id = config
    assert decoder_start(GenerationConfig(**generation), model.config, 64) == expected


@pytest.mark.parametrize(
    ("generation", "told"),
    [
        ({}, "names no decoder_start_token_id"),
        ({START: [2, 5]}, rf"{START}: is no token to begin with, got \[2, 5\]; expected an id from 0 to 63"),
        ({START: []}, rf"{START}: is no token to begin with, got \[\]"),
        ({START: 64}, rf"{START}: is no token to begin with, got 64"),
        ({START: -1}, rf"{START}: is no token to begin with, got -1"),
        ({"bos_token_id": 99}, "bos_token_id: is no token to begin with, got 99"),
    ],
)
def test_a_start_that_is_none_is_refused(generation: dict[str, Any], told: str) -> None:
    model: Any = tiny_model("bart", layers=1)
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match=told):
        decoder_start(GenerationConfig(**generation), model.config, 64)


@pytest.mark.parametrize(("eos", "tokenizer_eos"), [(1, None), ([1, 2], None), (None, "</s>"), (1, "</s>")])
def test_either_the_checkpoint_or_its_tokenizer_says_what_ends_a_row(eos: Any, tokenizer_eos: str | None) -> None:
    check_end("m", GenerationConfig(eos_token_id=eos), word_tokenizer("a", eos=tokenizer_eos))


def test_nothing_says_what_ends_a_row() -> None:
    tokenizer: PreTrainedTokenizerFast = word_tokenizer("a", eos=None)
    with pytest.raises(ModelError, match="m: nothing ends a row, got neither eos_token_id in generation_config"):
        check_end("m", GenerationConfig(), tokenizer)


VALUES: dict[str, Any] = {
    "guidance_scale": 1.5,
    "sequence_bias": [[[3], 0.5]],
    "encoder_repetition_penalty": 1.2,
    "encoder_no_repeat_ngram_size": 3,
    "exponential_decay_length_penalty": (5, 1.1),
    "watermarking_config": {"bias": 2.0},
    "stop_strings": ["\n"],
    "max_time": 1.0,
    "token_healing": True,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "constraints": [1],
    "force_words_ids": [[3]],
    "is_assistant": True,
    "num_beams": 4,
    "do_sample": True,
    "num_return_sequences": 2,
    "cache_implementation": "quantized",
}
"""Of refused and named settings."""


def with_value(name: str) -> GenerationConfig:
    given = GenerationConfig(eos_token_id=1)
    setattr(
        given, name, GenerationConfig(**{name: VALUES[name]}).watermarking_config if "water" in name else VALUES[name]
    )
    return given


def of_kind(kind: str) -> list[str]:
    return [name for name, setting in SETTINGS.items() if setting.kind == kind]


@pytest.mark.parametrize("name", of_kind("refused"))
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"generation_config.{name}: .*not supported"):
        refuse(with_value(name))
    for harmless in SETTINGS[name].harmless:
        given = GenerationConfig(eos_token_id=1)
        setattr(given, name, harmless)
        refuse(given)


@pytest.mark.parametrize("name", of_kind("named"))
def test_what_is_replaced_is_named(name: str) -> None:
    [notice] = notices(with_value(name), samples=False)
    assert notice.startswith(f"generation_config.{name}: {str(VALUES[name]).lower()} in the checkpoint; ")
    assert notices(GenerationConfig(eos_token_id=1), samples=False) == ()


def test_a_checkpoint_that_samples_is_told_how_it_is_sampled_from() -> None:
    given = GenerationConfig(eos_token_id=1, do_sample=True, top_p=0.8)
    [notice] = notices(given, samples=True)
    assert "samples are drawn at verification.temperature, and not by its temperature, top_k or top_p" in notice


@pytest.mark.parametrize(
    ("asked", "stored", "told"),
    [
        ("auto", torch.float32, ""),
        ("float32", torch.bfloat16, ""),
        ("float64", None, ""),
        ("bfloat16", torch.bfloat16, ""),
        ("float16", "float16", ""),
        ("bfloat16", torch.float32, "bfloat16 rounds the verifier's float32 weights"),
        ("bfloat16", None, "bfloat16 rounds the verifier's float32 weights"),
        ("float16", torch.bfloat16, "float16 rounds the verifier's bfloat16 weights"),
        ("int8", torch.bfloat16, "int8 rounds the verifier's bfloat16 weights"),
        ("int8", None, "int8 rounds the verifier's float32 weights"),
    ],
)
def test_rounding_is_named(asked: str, stored: object, told: str) -> None:
    said = rounding(asked, stored)
    assert [notice.partition(";")[0] for notice in said] == ([f"models.dtype: {told}"] if told else [])


def test_rows_without_an_end_are_named() -> None:
    assert notices(GenerationConfig(), samples=False) == (
        "generation_config.eos_token_id: none in the checkpoint; rows end at their longest alone.",
    )
