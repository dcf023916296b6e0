"""Captured forwards against forwards one by one, on a GPU; run with -m gpu."""

import random
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from cmasd.runner import graphs, load_runner
from cmasd.runner.cache import Extent
from cmasd.runner.runners import DecoderOnlyRunner, EncoderDecoderRunner
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, tiny_config, tiny_pair, tokens_of
from tests.unit.runner.tiny import FAMILIES, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]

DEVICE = "cuda"
SLOTS, MAX_LENGTH, MAX_SOURCE = 6, 72, 12
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Logits are about 1 to 10; rounded shapes may choose other kernels, which add up in another order."""


@pytest.fixture(autouse=True)
def first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "USES_BEFORE_CAPTURE", 2)


def built(family: str, dtype: torch.dtype, mode: Any) -> DecoderOnlyRunner | EncoderDecoderRunner:
    model = cast(Any, tiny_model(family)).to(device=DEVICE, dtype=dtype)
    with torch.inference_mode(False):
        runner = load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE, graphs=mode)
    return cast(DecoderOnlyRunner | EncoderDecoderRunner, runner)


def drive(runner: DecoderOnlyRunner | EncoderDecoderRunner, rounds: int) -> list[Tensor]:
    """Windows of all lengths over rows that come, grow, go back, and move; the same ones for the same runner."""
    choose, logits = random.Random(5), []
    rows, starts = 0, [0] * SLOTS
    for _ in range(rounds):
        while rows < choose.randint(1, SLOTS):
            source = choose.choices(range(4, 64), k=choose.randint(2, MAX_SOURCE))
            runner.prefill([rows], [source])
            starts[rows] = 0 if runner.is_encoder_decoder else len(source) - 1
            rows += 1
        window = choose.randint(1, 4)
        tokens_BT = torch.tensor([choose.choices(range(4, 64), k=window) for _ in range(rows)], device=DEVICE)
        starts_B = torch.tensor(starts[:rows], device=DEVICE)
        logits.append(runner.forward(tokens_BT, starts_B))
        starts = [start + choose.randint(0, window) for start in starts]
        for row in reversed(range(rows)):
            if starts[row] > MAX_LENGTH - 4 or choose.random() < 0.05:
                rows -= 1
                if row != rows:
                    runner.move(rows, row)
                    starts[row] = starts[rows]
    return logits


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_equal_forwards_one_by_one(family: str, dtype: torch.dtype) -> None:
    runner = built(family, dtype, "on")
    with torch.inference_mode():
        replayed, plain = drive(runner, 60), drive(built(family, dtype, "off"), 60)
    assert runner.graphs is not None
    assert len(runner.graphs.captured) > 8
    tolerance = max(TOLERANCE[dtype], 1e-3 if family not in ("marian", "bart", "mbart", "pegasus", "gpt2") else 0)
    for one, other in zip(replayed, plain, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@torch.inference_mode()
def test_a_replay_repeats_what_was_captured() -> None:
    """The same bucket before and after its capture: the same kernels, so the same bits."""
    runner = built("marian", torch.bfloat16, "on")
    runner.prefill([0, 1, 2], [[5, 6, 7], [8, 9], [10, 11]])
    window, starts_B = torch.tensor([[4, 5]] * 3, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    logits = [runner.forward(window, starts_B) for _ in range(5)]
    assert runner.graphs is not None
    assert len(runner.graphs.captured) == 1
    for later in logits[1:]:
        assert torch.equal(later, logits[0])


@torch.inference_mode()
def test_a_forward_waits_for_nothing_when_the_bound_is_known() -> None:
    runner = built("marian", torch.bfloat16, "on")
    runner.prefill([0, 1], [[5, 6, 7], [8, 9]])
    window, starts_B = torch.tensor([[4], [5]], device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    for _ in range(4):
        runner.forward(window, starts_B, longest=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        runner.forward(window, starts_B, longest=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_dropped_graphs_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_BUCKETS", 3)
    runner = built("marian", torch.float32, "on")
    assert runner.graphs is not None
    runner.graphs.prepare([Extent(6, 4, 32, 8), Extent(1, 1, 32, 8)])
    plain = built("marian", torch.float32, "off")
    for one, other in zip(drive(runner, 40), drive(plain, 40), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_the_engine_stays_exact(family: str) -> None:
    pair, requests = tiny_pair(family), ragged_requests(40, seed=3)
    for model in (pair.verifier, pair.drafter):
        cast(Any, model).to(DEVICE)
    sections: dict[str, dict[str, Any]] = {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 3}}
    fast = decode(pair, tiny_config(**sections, engine={"slots": 8, "graphs": "on"}), requests)
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
