"""Every way of multiplying against `F.linear`, and when each is used."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from cmasd.errors import ModelError
from cmasd.kernels import Bits, Kernels, Norm, build, fours, kernels
from cmasd.kernels.calls import REALS
from cmasd.models import dense as room
from cmasd.models.dense import Dense, NativeDense, OneDnnDense, activated, added, dense

IN, OUT = 24, 40
RELU = torch.nn.ReLU()
ROWS = [1, 2, 3, 7, 16, 33, 65]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}
Kind = Callable[[Tensor, Tensor | None], Dense]


def linear(
    outputs: int = OUT, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0, inputs: int = IN
) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made.to(dtype).requires_grad_(False)


def rows_of(count: int, dtype: torch.dtype = torch.float32, inputs: int = IN) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count)).to(dtype)


def built(kind: Kind, weight_OI: Tensor, bias_O: Tensor | None) -> Dense:
    try:
        packed = kind(weight_OI, bias_O)
        packed(weight_OI.new_zeros(2, weight_OI.shape[1]))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        pytest.skip(f"this build of torch cannot: {error}")
    return packed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(NativeDense, torch.float32), (OneDnnDense, torch.float32), (OneDnnDense, torch.bfloat16)],
)
def test_each_kind_is_the_stock_product(kind: Kind, dtype: torch.dtype, bias: bool) -> None:
    layer = linear(bias=bias, dtype=dtype)
    product = built(kind, layer.weight, layer.bias)
    for count in ROWS:
        x_NI = rows_of(count, dtype)
        out_NO = product(x_NI)
        assert out_NO.dtype == dtype
        torch.testing.assert_close(out_NO, layer(x_NI), atol=TOLERANCE[dtype], rtol=0, msg=f"{count} rows")


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_whatever_is_chosen_here_is_the_stock_product(dtype: torch.dtype) -> None:
    layer = linear(dtype=dtype)
    product = dense(layer)
    for count in ROWS:
        x_NI = rows_of(count, dtype)
        torch.testing.assert_close(product(x_NI), layer(x_NI), atol=TOLERANCE[dtype], rtol=0)


# -------------------------------------------------------------------- joined layers


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("extra", [True, False])
def test_joined_layers_are_side_by_side(biases: tuple[bool, bool], extra: bool) -> None:
    """A layer without a bias counts as one of zeros; the given bias comes on top."""
    first, second = linear(16, biases[0], seed=1), linear(9, biases[1], seed=2)
    bias_O = torch.linspace(-1, 1, 25) if extra else None
    x_NI = rows_of(5)
    expected_NO = torch.cat([first(x_NI), second(x_NI)], dim=1) + (0 if bias_O is None else bias_O)
    torch.testing.assert_close(dense(first, second, bias=bias_O)(x_NI), expected_NO, atol=1e-5, rtol=0)


def test_a_bias_on_top_of_a_layers_own() -> None:
    layer, bias_O, x_NI = linear(), torch.linspace(-1, 1, OUT), rows_of(3)
    torch.testing.assert_close(dense(layer, bias=bias_O)(x_NI), layer(x_NI) + bias_O, atol=1e-5, rtol=0)


# -------------------------------------------------------------------- packing


def native() -> Kernels:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    found = kernels(torch.float32)
    assert found is not None
    return found


SMALLEST = {torch.float16: 1 + 2.0**-10, torch.bfloat16: 2.0**-130, torch.float32: 1 + 2.0**-23}
"""A number that only this format and wider ones hold; of two that hold it, the first is taken."""


@pytest.mark.parametrize("dtype", list(SMALLEST))
def test_weights_are_packed_in_the_least_format_that_holds_them(dtype: torch.dtype) -> None:
    if dtype != torch.float32 and dtype not in native().halves:
        pytest.skip("no kernel for it on this processor")
    layer = linear(outputs=200)
    weight_OI = layer.weight.to(torch.bfloat16).float()
    weight_OI[7, 3] = SMALLEST[dtype]
    packed = native().pack(weight_OI, layer.bias)
    assert packed.dtype == dtype
    for count in ROWS:
        x_NI = rows_of(count)
        expected_NO = F.linear(x_NI.double(), weight_OI.double(), layer.bias.double()).float()
        torch.testing.assert_close(native().product(x_NI, packed), expected_NO, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 63, 64, 200])
@pytest.mark.parametrize("is_half", [True, False])
def test_a_row_gets_the_same_bits_whatever_rows_are_beside_it(outputs: int, is_half: bool) -> None:
    layer = linear(outputs=outputs)
    weight_OI = layer.weight.half().float() if is_half else layer.weight
    packed, x_NI = native().pack(weight_OI, layer.bias), rows_of(130)
    together_NO = native().product(x_NI, packed)
    for count in range(1, len(x_NI), 7):
        for first in (0, 11):
            part = slice(first, first + count)
            assert torch.equal(native().product(x_NI[part], packed), together_NO[part])


FEWER = {"without VNNI": "-mno-avx512vnni", "with AVX2 alone": "-march=x86-64-v3"}
"""Processors that do not multiply bytes, as a compiler knows them: inputs stay whole."""


def kernels_of(processor: str) -> Kernels:
    """Those of this one, or as one with less would have them."""
    if processor == "as here" or native()._quad == 1:
        return native()
    found = Kernels(build.built("kernels.c", *build.FAST, *REALS[torch.float32], FEWER[processor]))
    assert found._quad == 1
    return found


PROCESSORS = ["as here", *FEWER]


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 24), (64, 23), (200, 1), (70, 50), (130, 96)])
def test_int4_rounds_weights_and_inputs_by_groups(
    outputs: int, inputs: int, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference reads the weights again, rounds inputs in the same way, and multiplies exactly."""
    known = kernels_of(processor)
    monkeypatch.setattr(room, "kernels_for", lambda tensor: known)
    layer, x_NI = linear(outputs, inputs=inputs), rows_of(65, inputs=inputs)
    layer.weight[0] = 0  # groups without a scale
    x_NI[7] = 0
    product = dense(layer, bits=4)
    assert isinstance(product, NativeDense)
    parts = [settled(part) for part in x_NI.split(fours.GROUP, dim=1)]
    x_NI = torch.cat(parts, dim=1)
    seen_NI = x_NI.double() if known._quad == 1 else torch.cat([rounded(part) for part in parts], dim=1)
    expected_NO = F.linear(seen_NI, product.packed.unpacked().double(), layer.bias.double()).float()
    torch.testing.assert_close(product(x_NI), expected_NO, atol=1e-5, rtol=1e-5)
    assert torch.equal(product(x_NI)[:, 0], layer.bias[0].expand(65))
    for first, count in ((3, 1), (2, 5), (0, 50), (9, 7)):
        part = slice(first, first + count)
        assert torch.equal(product(x_NI[part]), product(x_NI)[part])
    assert (activated(product, RELU)(x_NI) == product(x_NI).relu()).all()


def test_int4_takes_half_the_memory_of_int8() -> None:
    weight_OI = torch.randn(256, 512)
    fourths, halves = (native().pack(weight_OI, None, bits) for bits in (4, 8))
    assert 4.5 * weight_OI.numel() / 8 <= fourths.nbytes < 0.6 * halves.nbytes


@pytest.mark.parametrize("processor", PROCESSORS[:2])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 24), (64, 23), (200, 1), (70, 50)])
def test_int8_rounds_each_weight_by_its_channel_and_each_input_by_its_row(
    outputs: int, inputs: int, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference rounds in the same way, and multiplies exactly."""
    known = kernels_of(processor)
    monkeypatch.setattr(room, "kernels_for", lambda tensor: known)
    layer, x_NI = linear(outputs, inputs=inputs), rows_of(65, inputs=inputs)
    layer.weight[0] = 0  # a channel without a scale
    x_NI[7] = 0  # and a row
    product = dense(layer, bits=8)
    seen_NI = x_NI.double() if known._quad == 1 else rounded(x_NI)
    expected_NO = F.linear(seen_NI, rounded(layer.weight), layer.bias.double()).float()
    torch.testing.assert_close(product(x_NI), expected_NO, atol=1e-5, rtol=1e-5)
    for first, count in ((3, 1), (2, 5), (0, 50), (9, 7)):
        part = slice(first, first + count)
        assert torch.equal(product(x_NI[part]), product(x_NI)[part])
    assert (activated(product, RELU)(x_NI) == product(x_NI).relu()).all()


def settled(rows: Tensor) -> Tensor:
    """Rows without a number halfway between two steps, where a last digit would decide which is the nearest."""
    each = rows.abs().amax(1, keepdim=True) / 127
    each[each == 0] = 1
    steps = rows / each
    return (steps.round() + 0.6 * (steps - steps.round())) * each


def rounded(rows: Tensor) -> Tensor:
    """To 127ths of the largest number of each row."""
    each = rows.abs().amax(1, keepdim=True) / 127
    each[each == 0] = 1
    return (rows * (1 / each)).add(0.5).floor().double() * each.double()


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_without_kernels_says_what_it_needs(bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "kernels_for", lambda tensor: None)
    with pytest.raises(ModelError, match=f"int{bits} needs a CPU under Linux, a C compiler and a model loaded in"):
        dense(linear(), bits=bits)


def test_rows_with_gaps_between_them() -> None:
    layer, wide = linear(), torch.randn(5, 3 * IN, generator=torch.Generator().manual_seed(1))
    packed = native().pack(layer.weight, layer.bias)
    for x_NI in (wide[:, IN : 2 * IN], wide[:, ::3], wide[:0, :IN]):
        torch.testing.assert_close(native().product(x_NI, packed), layer(x_NI), atol=1e-5, rtol=0)


# -------------------------------------------------------------------- falling back


def refuse(*arguments: Any) -> Dense:
    raise RuntimeError("could not create a primitive")


def fails_when_used(weight_OI: Tensor, bias_O: Tensor | None) -> Dense:
    return lambda x_NI: refuse(x_NI)(x_NI)


def missing(weight_OI: Tensor, bias_O: Tensor | None) -> Dense:
    product: Dense = torch.ops.mkl.no_such_operator(weight_OI)
    return product


@pytest.mark.parametrize("broken", [refuse, fails_when_used, missing])
def test_a_door_that_fails_is_passed_by(broken: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tried = linear(), []

    def second(weight_OI: Tensor, bias_O: Tensor | None) -> Dense:
        tried.append(weight_OI.shape)
        return lambda x_NI: F.linear(x_NI, weight_OI, bias_O) + 1  # so that it can be told apart

    monkeypatch.setattr(room, "_candidates", lambda weight_OI: (broken, second))
    torch.testing.assert_close(dense(layer)(rows_of(3)), layer(rows_of(3)) + 1, atol=1e-5, rtol=0)
    assert tried
    monkeypatch.setattr(room, "_candidates", lambda weight_OI: (broken, broken))
    torch.testing.assert_close(dense(layer)(rows_of(3)), layer(rows_of(3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "kinds"),
    [
        (torch.float32, (NativeDense, OneDnnDense)),
        (torch.bfloat16, (OneDnnDense,)),
        (torch.float64, (NativeDense,)),
        (torch.float16, ()),
    ],
)
def test_the_doors_go_by_precision_and_machine(dtype: torch.dtype, kinds: tuple[Kind, ...]) -> None:
    assert tuple(room._candidates(torch.zeros(2, 2, dtype=dtype))) == kinds
    assert tuple(room._candidates(torch.zeros(2, 2, dtype=dtype, device="meta"))) == ()


# -------------------------------------------------------------------- what follows a product


@pytest.mark.parametrize("activation", [torch.nn.ReLU(), GELUActivation(), torch.nn.SiLU(), torch.nn.Tanh()])
@pytest.mark.parametrize("outputs", [1, 64, 200])
def test_activations_are_those_of_separate_operations(activation: torch.nn.Module, outputs: int) -> None:
    layer, x_NI = linear(outputs=outputs), rows_of(7) * 4
    torch.testing.assert_close(activated(dense(layer), activation)(x_NI), activation(layer(x_NI)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_relu_residual_and_norm_are_those_of_separate_operations(dtype: torch.dtype) -> None:
    layer, normal = linear(dtype=dtype), torch.Generator().manual_seed(3)
    gain_O, offset_O = torch.randn(2, OUT, generator=normal).to(dtype)
    norm = Norm(gain_O, offset_O, 1e-5)
    for count in ROWS:
        x_NI, residual_NO = rows_of(count, dtype), torch.randn(count, OUT, generator=normal).to(dtype)
        before = x_NI.clone(), residual_NO.clone()
        near = partial(torch.testing.assert_close, atol=4 * TOLERANCE[dtype], rtol=0)
        near(activated(dense(layer), RELU)(x_NI), layer(x_NI).relu())
        near(added(dense(layer), None)(x_NI, residual_NO), layer(x_NI) + residual_NO)
        expected_NO = F.layer_norm(layer(x_NI) + residual_NO, (OUT,), gain_O, offset_O, 1e-5)
        near(added(dense(layer), norm)(x_NI, residual_NO), expected_NO)
        assert torch.equal(x_NI, before[0])
        assert torch.equal(residual_NO, before[1])
