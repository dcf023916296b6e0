"""The two-level search against torch's own, where both paths meet: sizes around whole blocks, ties, masked values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmasd.confidence import largest
from cmasd.confidence.largest import BLOCK, LEAST_ROWS, argmax, top2

LEAST = 32 * BLOCK
SIZES = st.sampled_from([LEAST, LEAST + 1, LEAST + BLOCK - 1, LEAST + BLOCK, LEAST + BLOCK + 1, 3 * LEAST - 7])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """(..., size) with few distinct values, so that nearly every row has ties; some rows are mostly -inf."""
    size, levels = draw(SIZES), draw(st.sampled_from([1, 2, 3, 50, 10**6]))
    leading = draw(st.sampled_from([(LEAST_ROWS,), (2, 3), (7, 1), (5, 2)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randint(0, levels, (*leading, size), generator=generator).to(torch.float32)
    masked = torch.rand(values.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9999]))
    values = values.masked_fill(masked, -torch.inf)
    if draw(st.booleans()):  # the largest value in the last, short block or at either end of it
        values[..., draw(st.sampled_from([0, BLOCK - 1, BLOCK, size - BLOCK, size - 2, size - 1]))] = 2.0 * levels
    return values.to(draw(DTYPES))


def first_of_largest(values: Tensor) -> Tensor:
    """Straight from the definition; torch promises no order among equals."""
    position = torch.arange(values.shape[-1]).expand(values.shape)
    is_largest = values == values.amax(-1, keepdim=True)
    return position.masked_fill(~is_largest, values.shape[-1]).amin(-1)


@settings(max_examples=60)
@given(logits())
def test_argmax_is_the_first_of_the_largest(values: Tensor) -> None:
    assert largest._is_worth_it(values), "the case says nothing about the two levels"
    assert argmax(values).tolist() == first_of_largest(values).tolist()


@settings(max_examples=60)
@given(logits())
def test_top2_are_the_two_largest_values(values: Tensor) -> None:
    assert largest._is_worth_it(values), "the case says nothing about the two levels"
    two, where = top2(values)
    assert torch.equal(two, values.sort(-1, descending=True).values[..., :2])
    assert where.tolist() == first_of_largest(values).tolist()


@pytest.mark.parametrize("shape", [(1, LEAST), (LEAST_ROWS - 1, LEAST + 3), (40, LEAST - 1), (3, 2, 5)])
def test_small_inputs_go_the_short_way_with_the_same_answer(shape: tuple[int, ...]) -> None:
    values = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(0)).float()
    assert not largest._is_worth_it(values)
    assert argmax(values).tolist() == first_of_largest(values).tolist()
    two, where = top2(values)
    assert torch.equal(two, values.sort(-1, descending=True).values[..., :2])
    assert where.tolist() == first_of_largest(values).tolist()


def test_a_row_without_any_finite_value() -> None:
    values = torch.full((LEAST_ROWS, LEAST + 5), -torch.inf)
    assert argmax(values).tolist() == [0] * LEAST_ROWS
    two, where = top2(values)
    assert (two == -torch.inf).all()
    assert where.tolist() == [0] * LEAST_ROWS
