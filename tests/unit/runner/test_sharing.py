"""A drafter with the verifier's own encoder: sources are encoded once, and nobody's results change."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cmasd.kernels import kernels
from cmasd.models.bart import BartEncoder
from cmasd.models.early_exit import early_exit
from cmasd.runner import Runner, load_runner, runners
from cmasd.runner.load import share_encoder, share_sources
from tests.unit.runner.tiny import tiny_model

SOURCES = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
WINDOW = torch.tensor([[20, 21, 22], [30, 31, 32], [40, 41, 42]])
BART_KIN = ["marian", "bart", "mbart", "pegasus", "m2m100"]


@torch.no_grad()
def with_another_decoder(model: PreTrainedModel) -> Any:
    """The same encoder, embeddings and output layer; other decoder layers."""
    other: Any = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for weight in other.get_decoder().layers.parameters():
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return other


def runner_of(model: PreTrainedModel) -> Runner:
    return load_runner(model, 3, 24, 12)


def logits_of(runner: Runner, sources: list[list[int]] = SOURCES) -> Tensor:
    runner.prefill(list(range(len(sources))), sources)
    return runner.forward(WINDOW[: len(sources)], torch.zeros(len(sources), dtype=torch.int64))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each batch that an encoder really ran on."""
    batches: list[int] = []
    real = BartEncoder._encode

    def counted(self: BartEncoder, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        batches.append(len(ids_BS))
        return real(self, ids_BS, lengths_B)

    monkeypatch.setattr(BartEncoder, "_encode", counted)
    return batches


@pytest.mark.parametrize("family", BART_KIN)
def test_one_encoding_serves_both(family: str, encoded: list[int]) -> None:
    verifier = tiny_model(family)
    drafter = with_another_decoder(verifier)
    alone = logits_of(runner_of(verifier)), logits_of(runner_of(drafter))
    assert not torch.allclose(*alone, atol=0.1), "the two models say the same"
    ours, theirs = runner_of(drafter), runner_of(verifier)
    assert share_encoder(ours, theirs)
    encoded.clear()
    torch.testing.assert_close(logits_of(theirs), alone[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits_of(ours), alone[1], atol=1e-6, rtol=0)
    assert encoded == [3]


def test_another_batch_is_encoded_anew(encoded: list[int]) -> None:
    """Rows that the drafter takes up later come in batches of their own."""
    verifier = tiny_model("marian")
    drafter = with_another_decoder(verifier)
    ours, theirs = runner_of(drafter), runner_of(verifier)
    assert share_encoder(ours, theirs)
    logits_of(theirs)
    late = [SOURCES[2], SOURCES[0]]
    expected = logits_of(runner_of(drafter), late)
    encoded.clear()
    torch.testing.assert_close(logits_of(ours, late), expected, atol=1e-6, rtol=0)
    assert encoded == [2]


@torch.no_grad()
def nudged(model: PreTrainedModel) -> Any:
    """One weight of the encoder differs in its last digits."""
    other: Any = copy.deepcopy(model)
    other.get_encoder().layers[-1].fc2.weight[0, 0] += 1e-6
    return other


def test_any_other_encoder_is_refused(encoded: list[int]) -> None:
    verifier = tiny_model("marian")
    different = [nudged(verifier), copy.deepcopy(verifier).double(), tiny_model("marian", layers=1), tiny_model("bart")]
    for drafter in different:
        expected = logits_of(runner_of(drafter))
        ours, theirs = runner_of(drafter), runner_of(verifier)
        assert not share_encoder(ours, theirs)
        encoded.clear()
        logits_of(theirs)
        assert torch.equal(logits_of(ours), expected)
        assert encoded == [3, 3]


@pytest.mark.parametrize(("one", "other"), [("t5", "t5"), ("llama", "llama"), ("marian", "t5"), ("marian", "llama")])
def test_other_kinds_of_models_keep_their_own(one: str, other: str) -> None:
    assert not share_encoder(runner_of(tiny_model(one)), runner_of(tiny_model(other)))


@pytest.mark.parametrize("family", [*BART_KIN, "t5"])
def test_the_beginning_of_a_decoder_reads_the_sources_that_the_whole_one_keeps(family: str, encoded: list[int]) -> None:
    """Wherever rows move to, and without a prefill of its own."""
    verifier = tiny_model(family)
    alone, ours, theirs = (runner_of(one) for one in (early_exit(verifier, 1), early_exit(verifier, 1), verifier))
    share_sources(ours, theirs)
    logits_of(theirs)
    encoded.clear()
    for runner in (alone, theirs, ours):  # one after the other, as in an engine
        if runner is alone:
            runner.prefill([0, 1, 2], SOURCES)
        runner.leave([0])
        runner.move(2, 0)
    starts_B = torch.zeros(2, dtype=torch.int64)
    encoded.clear()
    torch.testing.assert_close(
        ours.forward(WINDOW[:2], starts_B), alone.forward(WINDOW[:2], starts_B), atol=1e-6, rtol=0
    )
    ours.prefill([1], [SOURCES[1]])
    assert encoded == []


def test_of_long_sources_a_rounded_decoder_reads_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which say about the same, wherever rows move to; without a compiler it reads them as they are."""
    monkeypatch.setattr(runners, "LONG_SOURCE", 12)
    verifier = tiny_model("marian")
    whole, ours, theirs = (runner_of(verifier) for _ in range(3))
    share_sources(ours, theirs, may_round=True)
    for runner in (whole, theirs, ours):
        runner.prefill([0, 1, 2], SOURCES)
    for runner in (whole, theirs, ours):
        runner.leave([0])
        runner.move(2, 0)
    starts_B = torch.zeros(2, dtype=torch.int64)
    expected, kept, found = (runner.forward(WINDOW[:2], starts_B) for runner in (whole, theirs, ours))
    assert torch.equal(kept, expected)
    assert torch.equal(found, expected) == (kernels(torch.float32) is None)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
