"""Every way of multiplying against `F.linear`, and when each is used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmasd.runner import dense as room
from cmasd.runner.dense import ROW_COUNTS, USES_BEFORE_PACKING, Dense, MklDense, OneDnnDense, dense, rounded

IN, OUT = 24, 40
ROWS = [1, 2, 3, 7, 16, 33, 65]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}
Kind = Callable[[Tensor, Tensor | None], Dense]


def linear(outputs: int = OUT, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    made = nn.Linear(IN, outputs, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made.to(dtype).requires_grad_(False)


def rows_of(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, IN, generator=torch.Generator().manual_seed(count)).to(dtype)


def built(kind: Kind, weight_OI: Tensor, bias_O: Tensor | None) -> Dense:
    try:
        packed = kind(weight_OI, bias_O)
        packed(weight_OI.new_zeros(2, weight_OI.shape[1]))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        pytest.skip(f"this build of torch cannot: {error}")
    return packed


def mkl(weight_OI: Tensor, bias_O: Tensor | None) -> MklDense:
    packed = built(MklDense, weight_OI, bias_O)
    assert isinstance(packed, MklDense)
    return packed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [MklDense, OneDnnDense])
def test_each_kind_is_the_stock_product(kind: Kind, dtype: torch.dtype, bias: bool) -> None:
    if kind is MklDense and dtype != torch.float32:
        pytest.skip("MKL packs float32 alone")
    layer = linear(bias=bias, dtype=dtype)
    product = built(kind, layer.weight, layer.bias)
    for count in ROWS:
        for use in range(USES_BEFORE_PACKING + 2):  # before and after the weights are packed for this count
            x_NI = rows_of(count, dtype)
            out_NO = product(x_NI)
            assert out_NO.dtype == dtype
            torch.testing.assert_close(out_NO, layer(x_NI), atol=TOLERANCE[dtype], rtol=0, msg=f"{count} rows, {use}")


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("recurs", [True, False])
def test_whatever_is_chosen_here_is_the_stock_product(dtype: torch.dtype, recurs: bool) -> None:
    layer = linear(dtype=dtype)
    product = dense(layer, recurs=recurs)
    for count in ROWS * USES_BEFORE_PACKING:
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


def test_a_row_count_is_packed_once_it_has_come_up_often_enough() -> None:
    product = mkl(linear().weight, None)
    for use in range(1, USES_BEFORE_PACKING + 3):
        product(rows_of(7))
        assert (8 in product._packed) == (use >= USES_BEFORE_PACKING), "rows are padded up"


def test_counts_between_share_a_packed_copy() -> None:
    layer = linear()
    product = mkl(layer.weight, layer.bias)
    for count in [5, 6, 7, 8] * USES_BEFORE_PACKING:
        x_NI = rows_of(count)
        out_NO = product(x_NI)
        assert out_NO.shape == (count, OUT)
        torch.testing.assert_close(out_NO, layer(x_NI), atol=1e-5, rtol=0)
    assert set(product._packed) == {4, 8}


def test_padding_less_than_doubles_a_batch() -> None:
    counts = {rows: rounded(rows) for rows in range(1, 2 * ROW_COUNTS[-1])}
    assert [rows for rows, count in counts.items() if count is None] == [1, 2, *range(65, 128)]
    assert all(rows <= count < 2 * rows for rows, count in counts.items() if count is not None)


@pytest.mark.parametrize("count", [1, 2, ROW_COUNTS[-1] + 1])
def test_where_packing_does_not_pay_nothing_is_packed(count: int) -> None:
    product = mkl(linear().weight, None)
    for _ in range(2 * USES_BEFORE_PACKING):
        product(rows_of(count))
    assert set(product._packed) == {ROW_COUNTS[0]}


def test_of_a_large_weight_the_oldest_row_count_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear()
    monkeypatch.setattr(room, "LARGE_BYTES", layer.weight.nbytes - 1)
    product = mkl(layer.weight, layer.bias)
    counts = ROW_COUNTS[1 : 1 + product._kept]
    for count in counts:
        for _ in range(USES_BEFORE_PACKING):
            product(rows_of(count))
    assert set(product._packed) == set(counts), "the first count was the oldest"
    for _ in range(2 * USES_BEFORE_PACKING):  # what was dropped has to earn its place again
        torch.testing.assert_close(product(rows_of(4)), layer(rows_of(4)), atol=1e-5, rtol=0)
    assert set(product._packed) == {*counts, 4} - {counts[0]}


def test_large_weights_keep_fewer_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear()
    assert mkl(layer.weight, None)._kept == room.COPIES
    monkeypatch.setattr(room, "LARGE_BYTES", layer.weight.nbytes - 1)
    assert mkl(layer.weight, None)._kept == room.COPIES_OF_LARGE < room.COPIES


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


def test_weights_that_are_used_now_and_then_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_candidates", lambda weight_OI: pytest.fail("a door was tried"))
    layer = linear()
    torch.testing.assert_close(dense(layer, recurs=False)(rows_of(3)), layer(rows_of(3)))


@pytest.mark.parametrize(
    ("dtype", "is_intel", "kinds"),
    [
        (torch.float32, True, (MklDense, OneDnnDense)),
        (torch.float32, False, (OneDnnDense,)),
        (torch.bfloat16, True, (OneDnnDense,)),
        (torch.float64, True, ()),
        (torch.float16, True, ()),
    ],
)
def test_the_doors_go_by_precision_and_machine(
    dtype: torch.dtype, is_intel: bool, kinds: tuple[Kind, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_is_intel", lambda: is_intel)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert tuple(room._candidates(torch.zeros(2, 2, dtype=dtype))) == kinds
    assert tuple(room._candidates(torch.zeros(2, 2, dtype=dtype, device="meta"))) == ()
