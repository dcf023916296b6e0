"""Rounded shapes, padding and replay: on a CPU, with a recorded tape in place of a CUDA graph."""

import logging
from functools import partial
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmasd.models import dense, packed
from cmasd.runner import graphs, load_runner
from cmasd.runner.base import Extent, Pass
from cmasd.runner.decoder_only import DecoderOnlyRunner
from cmasd.runner.graphs import USES_BEFORE_CAPTURE, Graphs, rounded
from cmasd.runner.runners import EncoderDecoderRunner
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of
from tests.unit.runner import test_parity as parity
from tests.unit.runner.tape import Tape, TapeRecorder
from tests.unit.runner.tiny import FAMILIES, tiny_model

CPU = torch.device("cpu")
MOST = Extent(8, 40, 40, 12)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets are captured, as on a GPU; a tape records operations of torch alone."""
    for room in (dense, packed):
        monkeypatch.setattr(room, "kernels_for", lambda tensor: None)
    monkeypatch.setattr(graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(graphs, "Recorder", TapeRecorder)


def built(family: str, **settings: Any) -> DecoderOnlyRunner | EncoderDecoderRunner:
    """A runner of four slots that goes through buckets."""
    settings = {"slots": 4, "max_length": 40, "max_source_length": 12, "graphs": "on", **settings}
    return cast(DecoderOnlyRunner | EncoderDecoderRunner, load_runner(tiny_model(family), **settings))


def graphs_of(runner: DecoderOnlyRunner | EncoderDecoderRunner) -> Graphs:
    assert runner.graphs is not None
    return runner.graphs


class TestRounding:
    def test_the_buckets(self) -> None:
        assert sorted({rounded(count) for count in range(1, 200)}) == [
            *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
        ]

    @given(st.integers(1, 5000))
    def test_little_is_added(self, count: int) -> None:
        assert count <= rounded(count) < 2 * count
        assert count <= graphs.FINE_FROM or rounded(count) < 1.5 * count
        assert rounded(rounded(count)) == rounded(count)

    def test_an_extent_stays_within_the_cache(self) -> None:
        whole = Graphs(lambda given: given.tokens_BT, Extent(40, 90, 90, 40), CPU)
        assert whole.round(Extent(3, 5, 8, 7)) == Extent(4, 5, 32, 32)
        assert whole.round(Extent(33, 1, 64, 33)) == Extent(40, 1, 64, 40)
        assert whole.round(Extent(17, 2, 70, 0)) == Extent(24, 2, 90, 0)


def walk(monkeypatch: pytest.MonkeyPatch, family: str, rounds: int) -> tuple[float, Graphs]:
    """The walk of the parity test through buckets."""
    made: list[Any] = []

    def load(model: Any, slots: int, max_length: int, max_source_length: int) -> Any:
        made.append(load_runner(model, slots, max_length, max_source_length, graphs="on"))
        return made[-1]

    monkeypatch.setattr(parity, "load_runner", load)
    worst = parity.walk(tiny_model(family), rounds, seed=11)
    return worst, graphs_of(made[0])


@pytest.mark.parametrize("family", ["marian", "bart", "m2m100", "t5", "llama", "mistral-sliding", "gemma3"])
def test_padded_windows_equal_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    worst, used = walk(monkeypatch, family, rounds=12)
    assert worst < 1e-5
    assert len(used.extents) > 3
    assert not used.captured


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_windows_equal_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Every family: nothing that a capture forbids is in its forward, and nothing in it depends on Python."""
    monkeypatch.setattr(graphs, "USES_BEFORE_CAPTURE", 1)
    worst, used = walk(monkeypatch, family, rounds=14)
    assert worst < 1e-5
    assert used.captured == used.extents
    assert len(used.extents) < 14, "no bucket was used twice"


@torch.no_grad()
@pytest.mark.parametrize("family", ["marian", "t5", "llama"])
def test_padding_neither_harms_nor_is_harmed(family: str) -> None:
    """Three rows in a bucket of four: slot 3 may hold a waiting row, and stale contents may be anything."""
    sources = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15, 16]]
    window, starts_B = torch.tensor([[4, 5], [6, 7], [8, 9]]), torch.tensor([2, 1, 3])
    padded, plain = built(family), built(family, graphs="off")
    for runner in (padded, plain):
        runner.prefill([0, 1, 2, 3], sources)
    waiting = padded._cache.buffer_KSHLP[:, 3].clone()
    padded._cache.buffer_KSHLP[:, 4] = float("nan")
    padded.forward(window, starts_B)
    assert torch.equal(padded._cache.buffer_KSHLP[:, 3], waiting)
    padded._cache.buffer_KSHLP[:, 3:] = float("nan")
    logits_BTV = padded.forward(window, starts_B)
    plain.forward(window, starts_B)
    torch.testing.assert_close(logits_BTV, plain.forward(window, starts_B), atol=1e-5, rtol=0)
    assert [extent.rows for extent in graphs_of(padded).extents] == [4]


def test_padding_follows_the_number_of_rows() -> None:
    """Four rows, then three, then four again in one bucket: the fourth writes, rests and writes."""
    runner, plain = built("llama"), built("llama", graphs="off")
    sources, window = [[5, 6], [7, 8], [9, 10], [11, 12]], torch.tensor([[4], [5], [6], [7]])
    for one in (runner, plain):
        one.prefill([0, 1, 2, 3], sources)
    for rows, start in ((4, 1), (3, 2), (4, 2), (4, 3)):
        starts_B = torch.full((rows,), start)
        expected = plain.forward(window[:rows] + start, starts_B)
        torch.testing.assert_close(runner.forward(window[:rows] + start, starts_B), expected, atol=1e-5, rtol=0)
    assert len(graphs_of(runner).extents) == 1


def test_logits_are_the_callers_to_keep() -> None:
    runner = built("marian")
    runner.prefill([0], [[5, 6, 7]])
    first = runner.forward(torch.tensor([[4]]), torch.tensor([0]))
    kept = first.clone()
    runner.forward(torch.tensor([[9]]), torch.tensor([1]))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_an_extent_that_is_given_changes_nothing(mode: str) -> None:
    runner, other = built("marian", graphs=mode), built("marian", graphs=mode)
    for one in (runner, other):
        one.prefill([0, 1], [[5, 6, 7], [8, 9]])
    for start in range(0, 39, 3):
        window, starts_B = torch.tensor([[4, 5], [6, 7]]), torch.tensor([start, start // 2])
        bounded = other.forward(window, starts_B, extent=other.extent(2, 2, min(38, start + 9)))
        torch.testing.assert_close(bounded, runner.forward(window, starts_B), atol=1e-5, rtol=0)


def test_buffers_serve_callers_inside_and_outside_of_inference_mode() -> None:
    runner = built("marian")
    with torch.inference_mode():
        runner.prefill([0], [[5, 6, 7]])
        inside = runner.forward(torch.tensor([[4]]), torch.tensor([0]))
    assert torch.equal(runner.forward(torch.tensor([[4]]), torch.tensor([0])), inside)


class Counted:
    """A function over buckets that says how often it was called."""

    def __init__(self) -> None:
        self.calls: list[Extent] = []

    def __call__(self, given: Pass) -> Tensor:
        self.calls.append(given.extent)
        return (given.tokens_BT + given.starts_B[:, None])[..., None].double()


def feed(through: Graphs, extent: Extent, start: int = 0) -> list[int]:
    """Tokens of 100 from `start` on; their sum by row."""
    tokens_BT = torch.full((extent.rows, extent.window), 100)
    return cast(list[int], through(Pass(tokens_BT, torch.full((extent.rows,), start), extent))[:, 0, 0].tolist())


@pytest.mark.usefixtures("tapes")
class TestCapture:
    def test_what_recurs_is_captured_and_then_replayed(self) -> None:
        function = Counted()
        through = Graphs(function, MOST, CPU)
        for use in range(1, 9):
            rows = 3 + use % 2
            assert feed(through, Extent(rows, 2, 8, 5), start=use) == [100 + use] * rows
            assert (through.captured == through.extents) == (use >= USES_BEFORE_CAPTURE)
        bucket = Extent(4, 2, 32, 12)
        assert through.extents == [bucket]
        calls = function.calls.count(bucket)
        assert calls == USES_BEFORE_CAPTURE - 1 + 2, "uses before the capture, and what the recorder asks for"
        assert function.calls[3] == Extent(1, 1, MOST.length, MOST.sources), "tables grow before the first capture"

    def test_the_least_recently_used_bucket_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graphs, "MOST_BUCKETS", 2)
        through = Graphs(Counted(), MOST, CPU)
        for window in (1, 2, 1, 3, 1):
            feed(through, Extent(1, window, 8, 0))
        assert [extent.window for extent in through.extents] == [3, 1]

    @pytest.mark.parametrize("insist", [True, False])
    def test_what_cannot_be_captured(self, insist: bool, caplog: pytest.LogCaptureFixture) -> None:
        """With `auto`, decoding goes on without graphs and says so once."""

        def waits(given: Pass) -> Tensor:
            return (given.tokens_BT[..., None] + int(given.starts_B.max())).double()

        through = Graphs(waits, MOST, CPU, insist)
        if insist:
            for use in range(USES_BEFORE_CAPTURE - 1):
                feed(through, Extent(1, 1, 8, 0), start=use)
            with pytest.raises(RuntimeError, match="_local_scalar_dense cannot be captured"):
                feed(through, Extent(1, 1, 8, 0), start=USES_BEFORE_CAPTURE)
            return
        with caplog.at_level(logging.WARNING, logger="cmasd.runner.graphs"):
            for use in range(3 * USES_BEFORE_CAPTURE):
                assert feed(through, Extent(2, 1 + use % 2, 8, 0), start=use) == [100 + use] * 2
        assert [record.getMessage() for record in caplog.records] == [
            "{'event': 'runner.graphs_off', 'extent': (2, 1, 32, 0), 'cause': '_local_scalar_dense cannot be captured'}"
        ]
        assert not through.captured


@pytest.mark.parametrize(
    "upload", [lambda x: x + torch.tensor([1.0]), lambda x: x[x > 0], lambda x: x * x.max().item()]
)
def test_the_tape_refuses_what_a_graph_would(upload: Any) -> None:
    with pytest.raises(RuntimeError, match="cannot be captured"), Tape():
        upload(torch.ones(3))


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("family", ["marian", "llama"])
def test_an_engine_that_looks_stays_exact(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Where whole iterations cannot be graphs (`tests/unit/engine/test_ahead.py`), their forwards are."""
    monkeypatch.setattr(graphs, "USES_BEFORE_CAPTURE", 2)
    captured: list[Extent] = []
    monkeypatch.setattr(graphs, "Recorder", partial(_Counting, captured))
    pair, requests = shared_pair(family, "noisy"), ragged_requests(12, seed=3)
    sections: dict[str, dict[str, Any]] = {"policy": {"kind": "survival", "threshold": 0.0}}
    sections["drafter"] = {"max_draft_tokens": 3}
    fast = decode(pair, tiny_config(**sections, engine={"slots": 3, "graphs": "on"}), requests)
    assert len(captured) > 4
    assert tokens_of(fast) == tokens_of(decode_plain(pair, requests))
    assert sum(result.num_accepted_tokens for result in fast.values()) > 0


class _Counting(TapeRecorder):
    def __init__(self, captured: list[Any], device: torch.device) -> None:
        super().__init__(device)
        self._captured = captured

    def record(self, function: Any, warm_ups: int) -> tuple[Tape, Any]:
        recorded = super().record(function, warm_ups)
        self._captured.append(recorded)
        return recorded


@pytest.mark.parametrize(("mode", "device", "expected"), [("auto", "cpu", False), ("auto", "cuda", True)])
def test_auto_goes_by_the_device(mode: Any, device: str, expected: bool) -> None:
    assert graphs.uses_graphs(mode, torch.device(device)) == expected
    assert graphs.uses_graphs("on", torch.device(device))
    assert not graphs.uses_graphs("off", torch.device(device))
