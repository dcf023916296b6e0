"""Stock models with packed linear layers: the same numbers, rounded only where that is asked for, and nothing twice."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmasd.errors import ModelError
from cmasd.kernels import Bits, Packed, fours, kernels
from cmasd.models.families import ANY_WORD, Words
from cmasd.models.packed import LookUp, PackedLinear, bytes_to_pack, is_packed, linears, pack_in_place, packed_form
from cmasd.runner import load_runner
from cmasd.runner.load import share_encoder
from cmasd.window import Window
from tests.unit.runner.tiny import DECODER_ONLY, tiny_model

STOCK = [*DECODER_ONLY, "t5"]
BITS: list[Bits] = [8, 4]
pytestmark = pytest.mark.skipif(kernels(torch.float32) is None, reason="no kernels here")


def ids_for(model: Any, ids_BT: Tensor) -> dict[str, Tensor]:
    more = {"decoder_input_ids": ids_BT} if model.config.is_encoder_decoder else {}
    return {"input_ids": ids_BT, **more}


@torch.no_grad()
def logits_of(model: Any, ids_BT: Tensor) -> Tensor:
    logits: Tensor = model(**ids_for(model, ids_BT)).logits
    return logits


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.mark.parametrize("family", STOCK)
def test_every_linear_layer_is_packed_and_the_given_model_stays(family: str) -> None:
    model = tiny_model(family)
    before, layers = logits_of(model, IDS), len(linears(model))
    packed = packed_form(model)
    assert sum(isinstance(one, PackedLinear) for one in packed.modules()) == layers > 4
    assert not is_packed(model)
    torch.testing.assert_close(logits_of(packed, IDS), before, atol=1e-5, rtol=0)
    assert torch.equal(logits_of(model, IDS), before)
    assert packed_form(packed) is packed
    assert bytes_to_pack(packed, None) == 0 < bytes_to_pack(model, None)


def rounded_weights(model: Any, bits: Bits) -> Any:
    """The reference: weights on a grid of 127 steps each way, by output; in 4 bits the nearest of the levels of each
    group, of a scale in bfloat16.
    """
    for layer in linears(model):
        turned = type(layer).__name__ == "Conv1D"
        weight_OI = layer.weight.T if turned else layer.weight
        found = by_output(weight_OI) if bits == 8 else by_group(weight_OI)
        layer.weight = nn.Parameter(found.T if turned else found)
    return model


def by_output(weight_OI: Tensor) -> Tensor:
    scale = weight_OI.abs().amax(1, keepdim=True) / 127
    return (weight_OI / scale).round() * scale


def by_group(weight_OI: Tensor) -> Tensor:
    parts = []
    for part in weight_OI.float().split(fours.GROUP, dim=1):
        farthest = part.take_along_dim(part.abs().argmax(1, keepdim=True), dim=1)
        levels = (farthest / -127).bfloat16().float() * torch.tensor(fours.LEVELS)
        nearest = (part[..., None] - levels[:, None]).abs().argmin(-1)
        parts.append(levels.take_along_dim(nearest, dim=1))
    return torch.cat(parts, dim=1).to(weight_OI.dtype)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", STOCK)
def test_weights_are_rounded_by_output_or_by_group(family: str, bits: Bits) -> None:
    """In float64 nothing else is rounded, so the reference is exact; in float32 inputs are too where bytes multiply."""
    wide = packed_form(tiny_model(family).double(), bits)
    expected = logits_of(rounded_weights(tiny_model(family).double(), bits), IDS)
    torch.testing.assert_close(logits_of(wide, IDS), expected, atol=1e-4, rtol=0)
    narrow = packed_form(tiny_model(family), bits)
    assert all(layer.packed.bits == bits for layer in linears(narrow))
    distance = (logits_of(narrow, IDS) - expected).abs().max() / expected.abs().max()
    assert 1e-7 < distance < 0.1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", STOCK)
def test_rounded_logits_do_not_depend_on_the_rows_beside(family: str, bits: Bits) -> None:
    """By scale and by channel or group: a row's products have the same bits alone and in a batch."""
    for layer in linears(packed_form(tiny_model(family), bits)):
        x_NI = torch.randn(9, layer.in_features, generator=torch.Generator().manual_seed(1))
        x_NI[3] *= 1000
        together = layer(x_NI)
        for row in range(9):
            assert torch.equal(layer(x_NI[row : row + 1])[0], together[row])


@pytest.mark.parametrize("bits", BITS)
def test_a_packed_model_is_rounded_from_what_it_keeps(bits: Bits) -> None:
    """As the verifier's own weights draft: from 16 bits to fewer, equal to rounding the model itself."""
    model = tiny_model("llama").bfloat16().float()
    packed = packed_form(model)
    assert {layer.packed.dtype for layer in linears(packed)} <= {torch.bfloat16, torch.float16}
    twice, once = packed_form(packed, bits), packed_form(model, bits)
    assert torch.equal(logits_of(twice, IDS), logits_of(once, IDS))
    assert packed_form(twice, bits) is twice
    assert {layer.packed.bits for layer in linears(twice)} == {bits}
    assert is_packed(packed)
    assert not any(layer.packed.bits for layer in linears(packed))


@pytest.mark.parametrize("bits", [None, *BITS])
def test_packed_weights_can_be_read_again(bits: Bits) -> None:
    native, weight_OI = kernels(torch.float32), torch.randn(70, 23)
    assert native is not None
    packed = native.pack(weight_OI, None, bits)
    near = weight_OI.abs().amax(1, keepdim=True) / {None: 1e9, 8: 200, 4: 8}[bits]
    assert ((packed.unpacked() - weight_OI).abs() <= near).all()
    ids = torch.tensor([[69, 0], [7, 7]])
    assert torch.equal(packed.rows(ids), packed.unpacked()[ids])
    x_NI, bias_O = torch.randn(3, 23), torch.randn(70)
    expected = native.product(x_NI, packed) + bias_O
    torch.testing.assert_close(native.product(x_NI, packed.with_bias(bias_O)), expected, atol=1e-5, rtol=0)


def test_an_embedding_is_looked_up_in_the_output_layer() -> None:
    native, weight_Vd = kernels(torch.float32), torch.randn(70, 24).bfloat16()
    assert native is not None
    packed, ids = native.pack(weight_Vd, None), torch.tensor([[69, 0], [7, 7]])
    assert isinstance(packed, Packed)
    for table in (packed, weight_Vd):
        expected = nn.functional.embedding(ids, weight_Vd.float())
        assert torch.equal(LookUp(table, torch.float32, None)(ids), expected)
        torch.testing.assert_close(LookUp(table, torch.float32, 3.0)(ids), 3 * expected)
        assert torch.equal(LookUp(table, torch.float32, 3.0).unpacked(), weight_Vd.float())


@pytest.mark.parametrize("words", [ANY_WORD, Words(banned=(5, 60)), Words(shortlist=(3, 9, 44))], ids=str)
@pytest.mark.parametrize("family", ["llama", "t5", "gemma2"])
def test_what_may_be_said_is_the_same_over_a_packed_output_layer(family: str, words: Words) -> None:
    model = tiny_model(family)
    runners = [load_runner(one, 1, 16, 8, words) for one in (model, pack_in_place(tiny_model(family)))]
    for runner in runners:
        runner.prefill([0], [[5, 6, 7]])
    tokens_11, start_1 = torch.tensor([[7]]), torch.tensor([0 if model.config.is_encoder_decoder else 2])
    ours, theirs = (runner.forward(tokens_11, start_1) for runner in runners)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours.shape[-1] == (3 if words.shortlist else 64)


def test_a_rounded_t5_shares_the_encoder() -> None:
    """One model, twice: sources are encoded once, in whole weights, and only the decoder is rounded."""
    model = tiny_model("t5")
    verifier, drafter = load_runner(model, 1, 16, 8), load_runner(model, 1, 16, 8, bits=8)
    assert share_encoder(drafter, verifier)
    assert not share_encoder(load_runner(tiny_model("t5"), 1, 16, 8), verifier)
    sources = [[5, 6, 7]]
    for runner in (verifier, drafter):
        runner.prefill([0], sources)
    assert drafter.encoded_BSd is verifier.encoded_BSd


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_prompts_are_run_a_few_at_a_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = tiny_model(family), [[5, 6, 7, 8, 9], [7], [4, 4, 9], [8, 3], [6]]
    whole, parts = (load_runner(model, 5, 16, 8) for _ in range(2))
    whole.wants_states = parts.wants_states = True
    whole.prefill([4, 2, 0, 1, 3], sources)
    monkeypatch.setattr("cmasd.runner.decoder_only.PREFILL_TOKENS", {"cpu": 8})
    parts.prefill([4, 2, 0, 1, 3], sources)
    assert whole.hidden_BTd is not None
    assert parts.hidden_BTd is not None
    assert parts.hidden_BTd.shape == whole.hidden_BTd.shape
    for row, source in enumerate(sources):
        count = len(source) - 1
        torch.testing.assert_close(parts.hidden_BTd[row, :count], whole.hidden_BTd[row, :count], atol=1e-5, rtol=0)
    window, starts = torch.tensor([[4], [3], [7], [6], [9]]), torch.tensor([2, 1, 0, 0, 4])
    torch.testing.assert_close(parts.forward(window, starts), whole.forward(window, starts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", BITS)
def test_rounding_in_another_format_says_what_it_needs(bits: Bits) -> None:
    with pytest.raises(ModelError, match=rf"int{bits} needs a CPU under Linux, .* got bfloat16 on cpu"):
        load_runner(tiny_model("llama").bfloat16(), 1, 8, 8, bits=bits)


ROTATED = ["llama", "qwen2", "qwen2-sliding", "qwen3", "mistral", "mistral-sliding", "gemma", "gemma3"]


@pytest.mark.parametrize("bits", [None, *BITS])
@pytest.mark.parametrize("family", DECODER_ONLY)
def test_a_window_has_the_same_bits_whatever_is_beside_it(family: str, bits: Bits) -> None:
    """Llama's kin run in one call: a row's hidden states depend on no other row, and on no padding."""
    runner: Any = load_runner(tiny_model(family), 4, 40, 40, bits=bits)
    assert (runner._whole is not None) == (family in ROTATED)
    if runner._whole is None:
        return
    sources = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [7, 3], [4], [8, 3, 30, 31]]
    runs = [[20, 21, 22], [30], [40, 41, 42, 43, 44], [50, 51]]
    together: list[Tensor] = []
    for rows in ([0, 1, 2, 3], [2], [3, 0], [1]):
        runner.prefill(rows, [sources[row] for row in rows])
        ends = torch.tensor([len(runs[row]) for row in rows]).cumsum(0)
        window = Window(
            torch.tensor([token for row in rows for token in runs[row]]),
            torch.tensor(rows),
            torch.tensor([len(sources[row]) - 1 for row in rows]),
            torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
            5,
        )
        runner.run(window)
        states = runner.ran[1].split([len(runs[row]) for row in rows])
        together = together or list(states)
        for row, mine in zip(rows, states, strict=True):
            assert torch.equal(mine, together[row])
