"""Captured forwards against forwards one by one, on a GPU; run with -m gpu."""

import copy
import random
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cmasd.engine import Engine, Pair
from cmasd.engine.ahead import Ahead
from cmasd.generation.constraints import Constraints
from cmasd.runner import graphs, load_runner
from cmasd.runner.base import Extent
from cmasd.runner.decoder_only import DecoderOnlyRunner
from cmasd.runner.runners import EncoderDecoderRunner
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of
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
def test_a_forward_waits_for_nothing_when_its_extent_is_given() -> None:
    runner = built("marian", torch.bfloat16, "on")
    runner.prefill([0, 1], [[5, 6, 7], [8, 9]])
    window, starts_B = torch.tensor([[4], [5]], device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    for _ in range(4):
        runner.forward(window, starts_B, extent=runner.extent(2, 1, 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        runner.forward(window, starts_B, extent=runner.extent(2, 1, 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_dropped_graphs_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_BUCKETS", 3)
    runner = built("marian", torch.float32, "on")
    assert runner.graphs is not None
    plain = built("marian", torch.float32, "off")
    for one, other in zip(drive(runner, 40), drive(plain, 40), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def gpu_pair(family: str, quality: str = "noisy") -> Pair:
    """In float64; copies, because tests share the models on the CPU."""
    pair = shared_pair(family, quality, Constraints(eos_token_ids=(9,), min_new_tokens=2))
    parts = {name: copy.deepcopy(getattr(pair, name)).to(DEVICE) for name in ("verifier", "drafter", "parallel")}
    return replace(pair, **parts)


def sections_of(policy: str, kind: str, mode: str) -> dict[str, dict[str, Any]]:
    drafter = {"kind": kind, "max_draft_tokens": 3}
    return {"policy": {"kind": policy}, "drafter": drafter, "engine": {"slots": 8, "graphs": mode}}


@pytest.mark.parametrize("policy", ["fixed", "goodput", "plain", "survival"])
@pytest.mark.parametrize("kind", ["model", "parallel"])
@pytest.mark.parametrize("family", ["marian", "t5", "llama"])
def test_the_engine_stays_exact(family: str, kind: str, policy: str) -> None:
    """More rows than slots; whole iterations are graphs, but for `survival`."""
    pair, requests = gpu_pair(family), ragged_requests(60, seed=3)
    engine = Engine(pair, tiny_config(**sections_of(policy, kind, "on")))
    fast = {result.key: result for result in engine.decode(requests)}
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
    assert (engine._ahead is not None) == (policy != "survival")
    assert engine._ahead is None or engine._ahead.graphs.captured
    if policy == "fixed":
        slow = decode(pair, tiny_config(**sections_of(policy, kind, "off")), requests)
        for key, result in fast.items():
            for name in ("finish_reason", "num_iterations", "num_drafted_tokens", "num_accepted_tokens"):
                assert getattr(result, name) == getattr(slow[key], name), name
            one, other = result.tokens, slow[key].tokens
            assert one is not None
            assert other is not None
            np.testing.assert_allclose(one.values_NC, other.values_NC, atol=1e-5)


@pytest.mark.parametrize("kind", ["model", "parallel"])
def test_an_iteration_waits_for_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is a graph; with the copies of what the host reads later."""
    launch, replayed = Ahead.launch, []

    def watched(self: Ahead, extent: Extent) -> Any:
        if self.graphs.round(extent) in self.graphs.captured:
            replayed.append(extent)
            torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(self, extent)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Ahead, "launch", watched)
    decode(gpu_pair("marian"), tiny_config(**sections_of("fixed", kind, "on")), ragged_requests(40, seed=4))
    assert len(replayed) > 10
