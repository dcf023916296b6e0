"""The runner against plain transformers: batched, ragged, multi-token windows equal one row at a time.

The walk below lives through what an engine does: windows of every length, rollbacks, rows that leave, slots that move
and are used again. Each window's logits are compared with an uncached forward of that row alone.
"""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cmasd.errors import ModelError
from cmasd.models import families
from cmasd.runner import Runner, load_runner
from cmasd.window import Window
from tests.unit.runner.tiny import ENCODER_DECODER, FAMILIES, POSITIONS, tiny_model

SLOTS, MAX_LENGTH, MAX_SOURCE = 4, 40, 12
FLOAT32_INSIDE = ["t5", "llama", "qwen2", "qwen2-sliding", "qwen3", "mistral", "mistral-sliding"]
FLOAT32_INSIDE += ["gemma", "gemma2", "gemma3"]
"""Families that compute norms or rotations in float32 whatever the dtype of the model."""


class Row:
    """One row of the walk: its source and the tokens that its cache counts."""

    def __init__(self, model: PreTrainedModel, source: list[int]) -> None:
        self.source = source
        self.history = [] if model.config.is_encoder_decoder else source[:-1]

    def window(self, model: PreTrainedModel, choose: random.Random, length: int) -> list[int]:
        """The next tokens to feed: right after a prefill the first one is given."""
        tokens = choose.choices(range(4, 64), k=length)
        if model.config.is_encoder_decoder and not self.history:
            tokens[0] = model.config.decoder_start_token_id
        if not model.config.is_encoder_decoder and len(self.history) == len(self.source) - 1:
            tokens[0] = self.source[-1]
        return tokens


@torch.no_grad()
def plain_logits(model: Any, row: Row, window: list[int]) -> Tensor:
    """Logits (T, V) of the window from one uncached forward."""
    tokens = torch.tensor([row.history + window])
    if model.config.is_encoder_decoder:
        output = model(input_ids=torch.tensor([row.source]), decoder_input_ids=tokens, use_cache=False)
    else:
        output = model(input_ids=tokens, use_cache=False)
    logits: Tensor = output.logits[0, -len(window) :]
    return logits


def new_source(choose: random.Random) -> list[int]:
    return choose.choices(range(4, 64), k=choose.randint(1, MAX_SOURCE))


def refill(runner: Runner, model: PreTrainedModel, rows: list[Row], choose: random.Random) -> None:
    """Fill up to a random number of rows, all in one prefill, in any order of slots."""
    wanted = choose.randint(max(1, len(rows)), SLOTS)
    fresh = [Row(model, new_source(choose)) for _ in range(wanted - len(rows))]
    if fresh:
        slots = list(range(len(rows), len(rows) + len(fresh)))
        order = choose.sample(range(len(fresh)), len(fresh))
        runner.prefill([slots[i] for i in order], [fresh[i].source for i in order])
        rows.extend(fresh)


def walk(model: PreTrainedModel, rounds: int, seed: int) -> float:
    """The largest difference of any logit over the walk."""
    choose = random.Random(seed)
    runner = load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE)
    rows: list[Row] = []
    worst = 0.0
    for _ in range(rounds):
        refill(runner, model, rows, choose)
        length = choose.randint(1, 5)
        lengths = [choose.randint(1, length) for _ in rows[1:]] + [length]
        windows = [row.window(model, choose, k) for row, k in zip(rows, lengths, strict=True)]
        tokens_BT = torch.tensor([window + [0] * (length - len(window)) for window in windows])
        starts_B = torch.tensor([len(row.history) for row in rows])
        logits_BTV = runner.forward(tokens_BT, starts_B)
        assert logits_BTV.dtype == model.dtype
        assert logits_BTV.shape == (len(rows), length, runner.vocabulary_size)
        for index, (row, window) in enumerate(zip(rows, windows, strict=True)):
            expected = plain_logits(model, row, window)
            worst = max(worst, (logits_BTV[index, : len(window)] - expected).abs().max().item())
            row.history = row.history + window[: choose.randint(0, len(window))]
        retire(runner, rows, choose)
    return worst


def retire(runner: Runner, rows: list[Row], choose: random.Random) -> None:
    """Rows leave when their slot is nearly full or by chance; the last row moves into the gap."""
    for index in reversed(range(len(rows))):
        if len(rows[index].history) > MAX_LENGTH - 6 or choose.random() < 0.15:
            last = len(rows) - 1
            if index != last:
                runner.move(last, index)
                rows[index] = rows[last]
            rows.pop()


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_windows_equal_one_row_at_a_time(family: str) -> None:
    assert walk(tiny_model(family), rounds=16, seed=FAMILIES.index(family)) < 1e-5


@pytest.mark.parametrize("family", ["marian", "t5", "m2m100", "llama", "mistral-sliding", "gemma3"])
def test_eager_attention_equals_one_row_at_a_time(family: str) -> None:
    model = tiny_model(family, seed=2)
    model.set_attn_implementation("eager")
    assert walk(model, rounds=8, seed=2) < 1e-5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in FLOAT32_INSIDE])
def test_double_precision_leaves_rounding_alone(family: str) -> None:
    assert walk(tiny_model(family, seed=3).double(), rounds=8, seed=3) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_run_may_stand_beside_one_that_begins_late(family: str) -> None:
    """One row is read for the first time while another is almost at its end: together they fit, padded they do not."""
    model = tiny_model(family, layers=1).double()
    choose = random.Random(3)
    runner = load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE)
    rows = [Row(model, source) for source in ([7, 9, 11, 4], [5, 6, 8, 10])]
    runner.prefill([0, 1], [row.source for row in rows])
    late, long = (row.window(model, choose, MAX_LENGTH - 8) for row in rows)
    buffer = torch.tensor([row.history + tokens for row, tokens in zip(rows, (late, long), strict=True)])
    begin, end = len(rows[0].history), buffer.shape[1] - 3
    runner.run(Window.stretch(buffer, torch.tensor([0]), torch.tensor([begin]), torch.tensor([end])))
    rows[0].history += late[:-3]
    starts, ends = torch.tensor([end, begin]), torch.tensor([end + 3, end + 3])
    window = Window.stretch(buffer, torch.tensor([0, 1]), starts, ends, covers_first=True)
    assert end + window.longest > MAX_LENGTH
    logits_NV = runner.run(window)
    expected = [plain_logits(model, row, tokens) for row, tokens in zip(rows, (late[-3:], long), strict=True)]
    torch.testing.assert_close(logits_NV, torch.cat(expected), atol=1e-4, rtol=0)


def test_three_rows_and_three_tokens_do_not_confuse_t5() -> None:
    """A (B, 1) length broadcasts over queries instead of rows exactly when T equals B."""
    model, choose = tiny_model("t5", seed=4), random.Random(4)
    runner = load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE)
    rows = [Row(model, new_source(choose)) for _ in range(3)]
    runner.prefill([0, 1, 2], [row.source for row in rows])
    start = model.config.decoder_start_token_id
    runner.forward(torch.tensor([[start, 5, 6, 7, 8, 9]] * 3), torch.zeros(3, dtype=torch.long))
    for row, length in zip(rows, (1, 4, 6), strict=True):
        row.history = [start, 5, 6, 7, 8, 9][:length]
    window = [11, 12, 13]
    logits_BTV = runner.forward(torch.tensor([window] * 3), torch.tensor([1, 4, 6]))
    for index, row in enumerate(rows):
        torch.testing.assert_close(logits_BTV[index], plain_logits(model, row, window), atol=1e-5, rtol=0)


def greedy(runner: Runner, model: PreTrainedModel, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
    """A plain greedy loop; the whole batch runs to the end and rows are cut after their end of sequence."""
    runner.prefill(list(range(len(sources))), sources)
    if runner.is_encoder_decoder:
        last_B = torch.full((len(sources),), model.config.decoder_start_token_id)
        starts_B = torch.zeros(len(sources), dtype=torch.long)
    else:
        last_B = torch.tensor([source[-1] for source in sources])
        starts_B = torch.tensor([len(source) - 1 for source in sources])
    steps = []
    for step in range(new_tokens):
        last_B = runner.forward(last_B[:, None], starts_B + step)[:, -1].argmax(-1)
        steps.append(last_B)
    return [until_end(row, model.config.eos_token_id) for row in torch.stack(steps, 1).tolist()]


def until_end(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row


def generated(model: Any, source: list[int], new_tokens: int) -> list[int]:
    ids = torch.tensor([source])
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0].tolist()
    tokens: list[int] = output[1:] if model.config.is_encoder_decoder else output[len(source) :]
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str) -> None:
    model, choose = tiny_model(family, seed=5), random.Random(5)
    sources = [new_source(choose) for _ in range(SLOTS)]
    ours = greedy(load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE), model, sources, 20)
    assert ours == [generated(model, source, 20) for source in sources]
    assert len({token for row in ours for token in row}) > 5, "the model is too dull to tell rows apart"


@pytest.mark.parametrize("family", ["marian", "bart", "t5", "m2m100"])
def test_loading_leaves_plain_use_alone(family: str) -> None:
    model, source = tiny_model(family, seed=6), [9, 8, 7, 6]
    before = generated(model, source, 10)
    load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE)
    load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE)
    assert generated(model, source, 10) == before
    assert generated(copy.deepcopy(model), source, 10) == before


@pytest.mark.parametrize("family", ["marian", "bart", "gpt2", "m2m100", "t5", "llama"])
def test_windows_may_reach_past_the_position_table(family: str) -> None:
    """Drafts past the end are computed and thrown away; the tokens before them are right."""
    model = tiny_model(family, seed=7)
    runner = load_runner(model, 1, POSITIONS + 4, MAX_SOURCE)
    row = Row(model, [5, 6, 7])
    runner.prefill([0], [row.source])
    window = row.window(model, random.Random(7), POSITIONS - len(row.history) + 3)
    starts_B = torch.tensor([len(row.history)])
    logits_TV = runner.forward(torch.tensor([window]), starts_B)[0]
    assert logits_TV.isfinite().all()
    expected = plain_logits(model, row, window[:-3])
    torch.testing.assert_close(logits_TV[:-3], expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_m2m100_gives_padding_ids_the_positions_of_stepwise_decoding() -> None:
    """`generate` feeds one token at a time, where a padding id does not shift the tokens after it."""
    model: Any = tiny_model("m2m100", seed=8)
    runner = load_runner(model, 1, MAX_LENGTH, MAX_SOURCE)
    source, window = [5, 6, 7], [2, 9, model.config.pad_token_id, 10, 11]
    cache, steps = EncoderDecoderCache(DynamicCache(), DynamicCache()), []
    for token in window:
        ids = torch.tensor([[token]])
        steps.append(model(torch.tensor([source]), decoder_input_ids=ids, past_key_values=cache).logits[0, 0])
    runner.prefill([0], [source])
    logits_TV = runner.forward(torch.tensor([window]), torch.tensor([0]))[0]
    torch.testing.assert_close(logits_TV, torch.stack(steps), atol=1e-5, rtol=0)


def test_mt5_does_not_scale_what_its_output_layer_reads() -> None:
    model: Any = tiny_model("mt5", seed=9)
    assert model.config.tie_word_embeddings
    assert walk(model, rounds=6, seed=9) < 1e-5


def test_every_supported_architecture_has_a_tiny_model() -> None:
    tiny = {type(tiny_model(family, layers=1)).__name__ for family in [*FAMILIES, "mt5"]}
    assert tiny == {name for name, family in families.FAMILIES.items() if not family.hears}, "see test_hearing.py"


def test_output_layers_keep_bias_scale_and_cap() -> None:
    """Logit corrections that tiny models leave at rest: Marian's bias, T5 without its scale, caps that are felt."""
    marian: Any = tiny_model("marian", seed=9)
    marian.final_logits_bias.copy_(torch.linspace(-2, 2, 64)[None])
    t5: Any = tiny_model("t5", seed=9)
    t5.config.scale_decoder_outputs = not t5.config.scale_decoder_outputs
    gemmas: list[Any] = [tiny_model(family, seed=9) for family in ("gemma2", "gemma3")]
    for gemma in gemmas:
        gemma.config.final_logit_softcapping = 1.0
    for model in (marian, t5, *gemmas):
        assert walk(model, rounds=3, seed=9) < 1e-5


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_dtype_follows_the_model(family: str) -> None:
    model = tiny_model(family).bfloat16()
    runner = load_runner(model, 2, MAX_LENGTH, MAX_SOURCE)
    runner.prefill([0, 1], [[5, 6, 7], [8, 9]])
    logits_BTV = runner.forward(torch.tensor([[4, 5], [6, 7]]), torch.tensor([2, 1]))
    assert logits_BTV.dtype == runner.dtype == torch.bfloat16
    assert logits_BTV.isfinite().all()


def test_prompts_of_one_token_need_no_prefill() -> None:
    model = tiny_model("llama")
    runner = load_runner(model, 2, MAX_LENGTH, MAX_SOURCE)
    row = Row(model, [5])
    runner.prefill([0], [[5]])
    logits_BTV = runner.forward(torch.tensor([[5, 9]]), torch.tensor([0]))
    torch.testing.assert_close(logits_BTV[0], plain_logits(model, row, [5, 9]), atol=1e-5, rtol=0)


class TestRefusals:
    def test_unknown_architecture_is_named(self) -> None:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        config = GPTNeoXConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
        with pytest.raises(
            ModelError, match=r"GPTNeoXForCausalLM is not supported; expected one of MarianMTModel, Bart"
        ):
            load_runner(GPTNeoXForCausalLM(config), 1, 8, 8)

    def test_attention_without_masks(self) -> None:
        model = tiny_model("llama")
        model.config._attn_implementation_internal = "flash_attention_2"
        with pytest.raises(ModelError, match="flash_attention_2 reads no per-row masks"):
            load_runner(model, 1, 8, 8)

    @pytest.mark.parametrize("kind", ["dynamic", "longrope"])
    def test_rotation_that_depends_on_the_batch(self, kind: str) -> None:
        model: Any = tiny_model("llama")
        model.config.rope_parameters["rope_type"] = kind
        with pytest.raises(ModelError, match=f"rope_type {kind}"):
            load_runner(model, 1, 8, 8)

    def test_source_longer_than_the_position_table(self) -> None:
        with pytest.raises(ModelError, match=f"at most {POSITIONS} source tokens, got a source length of 129"):
            load_runner(tiny_model("marian"), 1, 8, POSITIONS + 1)

    def test_window_past_the_slot(self) -> None:
        runner = load_runner(tiny_model("llama"), 1, 8, 8)
        with pytest.raises(AssertionError, match="ends at 9 of 8 positions"):
            runner.forward(torch.tensor([[4, 5]]), torch.tensor([7]))


def test_limits_are_told() -> None:
    runners = {family: load_runner(tiny_model(family, layers=1), 1, 8, 8) for family in FAMILIES}
    limits = {family: runner.max_positions for family, runner in runners.items()}
    assert limits == {family: None if family == "t5" else POSITIONS for family in FAMILIES}
    assert [family for family, runner in runners.items() if runner.is_encoder_decoder] == ENCODER_DECODER
