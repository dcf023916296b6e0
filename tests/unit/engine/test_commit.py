"""What an iteration leaves behind is the same in C as in tensor operations, and is what its definition says."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmasd.core import Draft, Verdict
from cmasd.engine.commit import Committer
from cmasd.engine.slots import NewRow, SlotShape, SlotState
from cmasd.engine.trace import Outcome
from cmasd.kernels import kernels

WINDOW, VOCABULARY = 5, 6


def state(rows: int) -> SlotState:
    made = SlotState(SlotShape(rows, rows, 1, 20, 4, WINDOW), "none", torch.device("cpu"))
    made.enter(0, [NewRow(row, [2], [3, 4], 15) for row in range(rows)])
    made.lengths[:rows] += torch.arange(rows) % 4
    return made


def iteration(rows: int, drafted: int, seed: int) -> tuple[Draft, Verdict]:
    generator = torch.Generator().manual_seed(seed)

    def whole(high: Tensor | int, *size: int) -> Tensor:
        return (torch.rand(size, generator=generator) * high).long()

    lengths_B = whole(drafted + 1, rows)
    confidence_BK = torch.rand(rows, drafted, generator=generator)
    draft = Draft(
        whole(VOCABULARY, rows, drafted), lengths_B, confidence_BK, confidence_BK[..., None].expand(-1, -1, 3)
    )
    return draft, Verdict(whole(lengths_B + 1, rows), whole(VOCABULARY, rows), torch.zeros(rows, drafted))


def done(rows: int, draft: Draft, verdict: Verdict, eos: list[int], native: bool) -> tuple[Outcome, SlotState]:
    after = state(rows)
    committer = Committer(after, torch.tensor(eos))
    if not native:
        committer._kernels = None
    return committer(after.context(rows), draft, verdict), after


def everything(outcome: Outcome, after: SlotState) -> dict[str, Any]:
    tensors = {name: getattr(outcome, name) for name in ("emitted_BT", "count_B", "ended_B")}
    tensors |= {name: getattr(after, name) for name in ("tokens", "numbers", "lengths_2K")}
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@settings(max_examples=200)
@given(
    rows=st.integers(1, 6),
    drafted=st.integers(0, WINDOW - 1),
    seed=st.integers(0, 10**6),
    eos=st.lists(st.integers(0, VOCABULARY), max_size=2),
)
def test_in_c_as_in_tensor_operations(rows: int, drafted: int, seed: int, eos: list[int]) -> None:
    if kernels(torch.float32) is None:
        pytest.skip("no C compiler here")
    draft, verdict = iteration(rows, drafted, seed)
    native, tensors = (done(rows, draft, verdict, eos, way) for way in (True, False))
    assert everything(*native) == everything(*tensors)
    torch.testing.assert_close(native[1].confidence_sum, tensors[1].confidence_sum)


@pytest.mark.parametrize("native", [True, False])
def test_by_hand(native: bool) -> None:
    """A rejection; a whole draft and its bonus; an end in the accepted prefix; a row without a draft."""
    if native and kernels(torch.float32) is None:
        pytest.skip("no C compiler here")
    tokens_BK = torch.tensor([[10, 11], [12, 13], [1, 15], [16, 17]])
    confidence_BK = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25], [torch.nan, torch.nan]])
    draft = Draft(tokens_BK, torch.tensor([2, 2, 2, 0]), confidence_BK, confidence_BK[..., None].expand(-1, -1, 3))
    verdict = Verdict(torch.tensor([1, 2, 2, 0]), torch.tensor([20, 21, 22, 23]), torch.zeros(4, 2))
    outcome, after = done(4, draft, verdict, [1], native)
    gained = [row[:count] for row, count in zip(outcome.emitted_BT.tolist(), outcome.count_B.tolist(), strict=True)]
    assert gained == [[10, 20], [12, 13, 21], [1], [23]]
    assert outcome.ended_B.tolist() == [False, False, True, False]
    for row, (start, tokens) in enumerate(zip([1, 2, 3, 4], gained, strict=True)):
        assert after.tokens[row, start : start + len(tokens)].tolist() == tokens
    assert after.counters[:4].tolist() == [[1, 2, 1, 1, 1], [1, 2, 2, 1, 0], [1, 2, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert after.lengths_2K[:, :3].tolist() == [[1, 0, 3], [1, 2, 1]]
    assert after.confidence_sum[:4].tolist() == [0.75, 0.75, 0.75, 0]
    assert after.lengths[:4].tolist() == [1, 2, 3, 4]
