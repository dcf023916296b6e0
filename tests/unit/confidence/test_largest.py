"""Statistics of logits against their definitions: ties, masked values, number formats, with and without kernels."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmasd.confidence import largest
from cmasd.confidence.largest import argmax, statistics, top_and_mass
from cmasd.kernels import kernels, kernels_for

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@pytest.fixture(autouse=True, params=["kernels", "tensor operations"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of computing."""
    if request.param == "kernels":
        if kernels(torch.float32) is None:
            pytest.skip("no C compiler here")
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(largest, "kernels_for", lambda tensor: None)
        yield request.param


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """(..., size) with few distinct values, so that nearly every row has ties; some rows are mostly -inf."""
    size, levels = draw(st.sampled_from([2, 3, 64, 65, 2048, 5003])), draw(st.sampled_from([1, 2, 3, 50, 10**6]))
    leading = draw(st.sampled_from([(), (1,), (4,), (2, 3), (7, 1)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randint(0, levels, (*leading, size), generator=generator).to(torch.float32)
    masked = torch.rand(values.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9999]))
    masked[..., draw(st.integers(0, size - 1))] = False
    values = values.masked_fill(masked, -torch.inf)
    if draw(st.booleans()):  # the largest value at either end
        values[..., draw(st.sampled_from([0, size - 1]))] = 2.0 * levels
    return values.to(draw(DTYPES))


def first_of_largest(values: Tensor) -> Tensor:
    """Straight from the definition; torch promises no order among equals."""
    position = torch.arange(values.shape[-1]).expand(values.shape)
    is_largest = values == values.amax(-1, keepdim=True)
    return position.masked_fill(~is_largest, values.shape[-1]).amin(-1)


@settings(max_examples=60)
@given(logits())
def test_argmax_is_the_first_of_the_largest(values: Tensor) -> None:
    assert argmax(values).tolist() == first_of_largest(values).tolist()


@settings(max_examples=60)
@given(logits())
def test_statistics_are_what_their_names_say(values: Tensor) -> None:
    found, exact = statistics(values.float()), values.double()
    top2, log_p = exact.sort(-1, descending=True).values[..., :2], exact.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.clamp_min(-1e30)).sum(-1)
    assert found.token.tolist() == first_of_largest(values.float()).tolist()
    first, second = top2.unbind(-1)
    p1, p2 = log_p.exp().sort(-1, descending=True).values[..., :2].unbind(-1)
    scores = [1 - entropy / math.log(values.shape[-1]), 2 * torch.sigmoid(first - second) - 1, p1 - p2, p1]
    assert torch.equal(found.top, values.float().amax(-1))
    torch.testing.assert_close(-found.log_mass.double(), log_p.amax(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scores.double(), torch.stack(scores, -1), rtol=1e-3, atol=1e-5)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


@settings(max_examples=60)
@given(logits())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_largest_and_its_probability_with_and_without_a_kernel(dtype: torch.dtype, values: Tensor) -> None:
    top, log_mass = top_and_mass(values.to(dtype))
    exact, near = values.to(dtype).double(), 1e-4 if dtype == torch.float32 else 0.05
    assert torch.equal(top.double(), exact.amax(-1))
    torch.testing.assert_close(-log_mass.double(), exact.log_softmax(-1).amax(-1), rtol=near, atol=near)


def test_a_view_and_a_single_column() -> None:
    values = torch.tensor([[3.0, 1.0, 9.0, 9.0], [0.0, 5.0, 5.0, 1.0]])
    assert argmax(values.T).tolist() == [0, 1, 0, 0]
    assert argmax(values[:, 1:3]).tolist() == [1, 0]
    assert argmax(values[:, :1]).tolist() == [0, 0]


def test_no_finite_value_but_one() -> None:
    found = statistics(torch.tensor([[-math.inf, 2.0, -math.inf]]))
    assert found.token.tolist() == [1]
    assert found.top.item() == 2
    assert found.log_mass.item() == pytest.approx(0, abs=1e-6)
    assert found.scores.tolist() == [pytest.approx([1, 1, 1, 1], abs=1e-6)]


def test_formats_that_the_kernels_do_not_have() -> None:
    assert kernels_for(torch.zeros(2, dtype=torch.bfloat16)) is None
