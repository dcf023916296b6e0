"""Every rule equals transformers' own processors, position by position, over ragged rows.

The reference is the processor list that `generate` itself would build for one row, applied to one prefix at a time.
"""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig, MarianConfig, MarianMTModel
from transformers.generation.utils import GenerationMixin

from cmasd.errors import ModelError
from cmasd.generation.constraints import Constraints

V, EOS = 12, 2

OPTIONS: dict[str, Any] = {
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[0], [5], [3, 4], [4, 3], [1, 6, 7], [EOS]],
    "min_length": 5,
    "min_new_tokens": 3,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": EOS,
    "remove_invalid_values": True,
    "suppress_tokens": [6, 9, -1, 99],
    "begin_suppress_tokens": [8, EOS],
}


class _Host(GenerationMixin):
    """As much of a model as the processor list asks for."""

    def __init__(self, is_encoder_decoder: bool) -> None:
        self.config = SimpleNamespace(is_encoder_decoder=is_encoder_decoder)


def _reference(options: dict[str, Any], prefix: list[int], logits_V: Tensor, prompt: int, limit: int) -> Tensor:
    """The logits that `generate` would take its argmax of."""
    config = GenerationConfig(**{"eos_token_id": EOS, **options}, max_length=limit)
    config.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    config._eos_token_tensor = torch.tensor(config.eos_token_id).reshape(-1)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + prompt
    host: Any = _Host(prompt == 1)
    processors = host._get_logits_processor(config, input_ids_seq_length=prompt, model_kwargs={})
    return cast(Tensor, processors(torch.tensor([prefix]), logits_V[None].clone())[0])


def _batch(seed: int, shape: tuple[list[int], list[int]], window: int, vocabulary: int = 4) -> dict[str, Tensor]:
    """Rows over a few token ids, so that n-grams repeat; garbage behind each row's start."""
    prompts, starts = shape
    generator = torch.Generator().manual_seed(seed)
    rows, length = len(starts), max(starts) + 2
    return {
        "logits_BTV": torch.randn(rows, window, V, generator=generator, dtype=torch.float64),
        "tokens_BL": torch.randint(0, vocabulary, (rows, length), generator=generator) + 1,
        "starts_B": torch.tensor(starts),
        "prompt_lengths_B": torch.tensor(prompts),
        "limits_B": torch.tensor(prompts) + 6,
        "window_BT": torch.randint(0, vocabulary + 1, (rows, window), generator=generator),
    }


def _check(options: dict[str, Any], batch: dict[str, Tensor]) -> None:
    config = GenerationConfig(**{"eos_token_id": EOS, **options})
    constraints = Constraints.from_generation_config(config, V)
    before_BTV = batch["logits_BTV"].clone()
    after_BTV = constraints.apply(**batch)
    assert after_BTV is batch["logits_BTV"]
    for row, start in enumerate(batch["starts_B"].tolist()):
        for step in range(before_BTV.shape[1]):
            prefix = batch["tokens_BL"][row, :start].tolist() + batch["window_BT"][row, : step + 1].tolist()
            prompt, limit = batch["prompt_lengths_B"][row].item(), batch["limits_B"][row].item()
            expected_V = _reference(options, prefix, before_BTV[row, step], int(prompt), int(limit))
            torch.testing.assert_close(after_BTV[row, step], expected_V, rtol=0, atol=0)


ENCODER_DECODER = ([1, 1, 1, 1], [0, 1, 3, 6])
DECODER_ONLY = ([1, 2, 4, 5], [0, 1, 6, 7])
"""Prompt lengths and starts of four rows."""


@pytest.mark.parametrize("shape", [ENCODER_DECODER, DECODER_ONLY], ids=["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_equals_its_processor(name: str, shape: tuple[list[int], list[int]]) -> None:
    for seed in range(4):
        _check({name: OPTIONS[name]}, _batch(seed, shape, window=4))


@settings(max_examples=60, deadline=None)
@given(
    names=st.sets(st.sampled_from(sorted(OPTIONS))),
    rows=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4),
    window=st.integers(1, 5),
    size=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_any_combination_equals_the_processor_list(
    names: set[str], rows: list[tuple[int, int]], window: int, size: int, seed: int
) -> None:
    options = {name: OPTIONS[name] for name in names}
    if "no_repeat_ngram_size" in options:
        options["no_repeat_ngram_size"] = size
    prompts = [prompt for prompt, _ in rows]
    starts = [prompt - 1 + generated for prompt, generated in rows]
    _check(options, _batch(seed, (prompts, starts), window))


def test_several_end_tokens() -> None:
    options = {"eos_token_id": [2, 5], "min_new_tokens": 3, "forced_eos_token_id": [5, 2]}
    _check(options, _batch(0, DECODER_ONLY, window=4))
    config = GenerationConfig(**options)
    assert Constraints.from_generation_config(config, V).eos_token_ids == (2, 5)


def test_invalid_values_are_replaced() -> None:
    batch = _batch(0, ENCODER_DECODER, window=2)
    batch["logits_BTV"][0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    _check({"remove_invalid_values": True, "suppress_tokens": [3]}, batch)


def test_ids_outside_the_output_layer_are_not_penalised() -> None:
    batch = _batch(0, ENCODER_DECODER, window=3)
    batch["tokens_BL"][:, 0] = V + 3
    _check({"repetition_penalty": 1.3, "no_repeat_ngram_size": 1}, batch)


def test_a_row_longer_than_the_tensor_of_tokens_needs_is_not_read_past_its_start() -> None:
    batch = _batch(1, DECODER_ONLY, window=3)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    columns = torch.arange(other["tokens_BL"].shape[1])
    other["tokens_BL"][columns >= other["starts_B"][:, None]] = 3
    constraints = Constraints.from_generation_config(GenerationConfig(eos_token_id=EOS, **OPTIONS), V)
    torch.testing.assert_close(constraints.apply(**batch), constraints.apply(**other), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_stays_and_the_bans_hold(dtype: torch.dtype) -> None:
    batch = _batch(2, ENCODER_DECODER, window=3)
    exact_BTV = batch["logits_BTV"].clone()
    batch["logits_BTV"] = exact_BTV.to(dtype)
    options = {name: value for name, value in OPTIONS.items() if name != "remove_invalid_values"}
    constraints = Constraints.from_generation_config(GenerationConfig(eos_token_id=EOS, **options), V)
    lowered_BTV = constraints.apply(**batch)
    assert lowered_BTV.dtype is dtype
    batch["logits_BTV"] = exact_BTV
    assert torch.equal(lowered_BTV.isneginf(), constraints.apply(**batch).isneginf())


def test_without_rules_nothing_is_touched() -> None:
    constraints = Constraints.from_generation_config(GenerationConfig(eos_token_id=EOS, min_length=0), V)
    assert constraints.is_free
    batch = _batch(3, ENCODER_DECODER, window=3)
    version = batch["logits_BTV"]._version
    assert constraints.apply(**batch) is batch["logits_BTV"]
    assert batch["logits_BTV"]._version == version


def test_a_target_language_overrides_the_checkpoints_first_token() -> None:
    config = GenerationConfig(eos_token_id=EOS, forced_bos_token_id=7)
    assert Constraints.from_generation_config(config, V, forced_bos_token_id=9).forced_bos_token_id == 9
    assert Constraints.from_generation_config(config, V).forced_bos_token_id == 7


def test_diverse_beams_are_refused_and_plain_beams_are_not() -> None:
    config = GenerationConfig(eos_token_id=EOS, num_beams=4)
    assert "num_beams: 4" in Constraints.from_generation_config(config, V).notices[0]
    config.diversity_penalty = 0.5
    with pytest.raises(ModelError, match="diversity_penalty"):
        Constraints.from_generation_config(config, V)


def test_sampling_settings_give_one_notice_and_no_rule() -> None:
    config = GenerationConfig(eos_token_id=EOS, do_sample=True, temperature=0.7, top_k=5, top_p=0.8)
    constraints = Constraints.from_generation_config(config, V)
    assert constraints.is_free
    [notice] = constraints.notices
    assert "do_sample" in notice


def test_a_list_of_first_tokens_forces_its_lowest() -> None:
    _check({"forced_bos_token_id": [7]}, _batch(4, ENCODER_DECODER, window=3))
    config = GenerationConfig(eos_token_id=EOS, forced_bos_token_id=[9, 7])
    assert Constraints.from_generation_config(config, V).forced_bos_token_id == 7


@pytest.mark.parametrize("name", ["forced_bos_token_id", "forced_eos_token_id"])
@pytest.mark.parametrize("token", [V, -1])
def test_a_forced_token_that_the_model_cannot_say_is_refused(name: str, token: int) -> None:
    config = GenerationConfig(eos_token_id=EOS, **{name: token})
    with pytest.raises(
        ModelError, match=rf"generation_config\.{name}: .* got {token}; expected an id from 0 to {V - 1}"
    ):
        Constraints.from_generation_config(config, V)


def test_a_target_language_that_the_model_cannot_say_is_refused() -> None:
    with pytest.raises(ModelError, match=rf"models\.target_language: .* got {V};"):
        Constraints.from_generation_config(GenerationConfig(eos_token_id=EOS), V, forced_bos_token_id=V)


@pytest.mark.parametrize("strangers", [[V, V + 40], [-1]])
def test_end_tokens_outside_the_output_layer_end_nothing(strangers: list[int]) -> None:
    options = {"eos_token_id": [*strangers, EOS], "min_new_tokens": 3}
    constraints = Constraints.from_generation_config(GenerationConfig(**options), V)
    assert constraints.eos_token_ids == (EOS,)
    batch = _batch(5, DECODER_ONLY, window=4)
    expected = _batch(5, DECODER_ONLY, window=4)
    alone = Constraints.from_generation_config(GenerationConfig(eos_token_id=EOS, min_new_tokens=3), V)
    assert torch.equal(constraints.apply(**batch), alone.apply(**expected))


def test_a_bad_word_outside_the_vocabulary_is_refused() -> None:
    config = GenerationConfig(eos_token_id=EOS, bad_words_ids=[[V]])
    with pytest.raises(ModelError, match=rf"bad_words_ids: .* got \[{V}\]"):
        Constraints.from_generation_config(config, V)


def test_a_greedy_loop_gives_the_tokens_of_generate() -> None:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=40,
        pad_token_id=0, eos_token_id=EOS, decoder_start_token_id=0, forced_eos_token_id=None, init_std=1.0,
    )  # fmt: skip
    model = MarianMTModel(config).double().eval()
    model.generation_config = GenerationConfig(
        pad_token_id=0, eos_token_id=EOS, decoder_start_token_id=0, bad_words_ids=[[0], [5, 6]], min_length=6,
        no_repeat_ngram_size=2, repetition_penalty=1.3, forced_bos_token_id=7, forced_eos_token_id=EOS,
        suppress_tokens=[11], begin_suppress_tokens=[12],
    )  # fmt: skip
    source_BS = torch.randint(3, 40, (1, 7))
    expected = model.generate(source_BS, max_new_tokens=12, do_sample=False, num_beams=1)[0].tolist()
    constraints = Constraints.from_generation_config(model.generation_config, 40)
    row, one = [0], torch.tensor([1])
    while row[-1] != EOS and len(row) < 13:
        with torch.no_grad():
            logits_BTV = model(input_ids=source_BS, decoder_input_ids=torch.tensor([row])).logits[:, -1:]
        tokens_BL = torch.tensor([row])
        constraints.apply(logits_BTV, tokens_BL, one * (len(row) - 1), one, one * 13, tokens_BL[:, -1:])
        row.append(int(logits_BTV.argmax()))
    assert row == expected
    assert (row[1], row[-1]) == (7, EOS)
    assert len(row) >= 7
