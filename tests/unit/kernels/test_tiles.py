"""Tiles of a matrix unit: the same numbers as elsewhere, for each row whatever rows are beside it."""

import pytest
import torch
from torch import Tensor

from cmasd.kernels import Kernels, Packed, kernels

ROWS = [1, 2, 3, 4, 5, 6, 10, 11, 16, 17, 33, 48, 49, 80, 100]
SHAPES = [(64, 64), (70, 64), (256, 1024), (1000, 256), (48, 96), (64, 8192)]


def native() -> Kernels:
    found = kernels(torch.float32)
    if found is None:
        pytest.skip("no kernels here")
    return found


def paired(weight_OI: Tensor, bias_O: Tensor | None = None) -> Packed:
    packed = native().pack(weight_OI, bias_O)
    if packed.inputs_abreast != 2:
        pytest.skip("this processor multiplies no tiles of 16 bits")
    return packed


def made_up(*shape: int, seed: int = 0) -> Tensor:
    """Of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_16_bits_are_those_of_whole_numbers(shape: tuple[int, int]) -> None:
    """As near to the true ones as sums of float32 can be; a bfloat16 of the inputs would be 2,000 times as far."""
    weight_OI, bias_O = made_up(*shape).bfloat16(), made_up(shape[0])
    packed = paired(weight_OI, bias_O)
    assert torch.equal(packed.stored(), weight_OI)
    for rows in ROWS:
        x_NI = made_up(rows, shape[1], seed=rows)
        exact_NO = x_NI.double() @ weight_OI.double().T + bias_O.double()
        sizes_NO = x_NI.double().abs() @ weight_OI.double().abs().T + bias_O.double().abs()
        found_NO = native().product(x_NI, packed)
        assert ((found_NO - exact_NO).abs() <= 1e-6 * sizes_NO).all()
        alone_NO = torch.cat([native().product(x_1I, packed) for x_1I in x_NI.split(1)])
        assert torch.equal(found_NO, alone_NO)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_8_bits_are_the_same_alone_and_in_tiles(shape: tuple[int, int]) -> None:
    """A row alone is multiplied without them."""
    packed = native().pack(made_up(*shape), made_up(shape[0]), 8)
    for rows in ROWS:
        x_NI = made_up(rows, shape[1], seed=rows)
        alone_NO = torch.cat([native().product(x_1I, packed) for x_1I in x_NI.split(1)])
        assert torch.equal(native().product(x_NI, packed), alone_NO)


def test_what_follows_a_product_is_done_behind_tiles_as_well() -> None:
    packed, x_NI = paired(made_up(256, 64).bfloat16()), made_up(7, 64, seed=1)
    plain_NO = native().product(x_NI, packed)
    assert torch.equal(native().product(x_NI, packed.followed("relu")), plain_NO.clamp_min(0))
    residual_NO = made_up(7, 256, seed=2)
    assert torch.equal(native().product(x_NI, packed, residual_NO), plain_NO + residual_NO)


def test_inputs_that_lie_apart_are_read_where_they_are() -> None:
    packed, x_NI = paired(made_up(64, 64).bfloat16()), made_up(7, 192)
    expected_NO = native().product(x_NI[:, 64:128].contiguous(), packed)
    assert torch.equal(native().product(x_NI[:, 64:128], packed), expected_NO)
