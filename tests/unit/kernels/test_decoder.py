"""A decoder, or an encoder, in one call computes what tensor operations do, row by row, whatever is beside a row."""

import shutil

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from cmasd.runner.load import load_runner
from cmasd.runner.runners import EncoderDecoderRunner, padded
from cmasd.runner.stacks import BartStack
from tests.unit.runner.tiny import tiny_model

SOURCES = [[5, 1, 7, 8, 9], [10, 11], [1, 13, 14, 1, 1, 17, 18]]
"""With the padding id of m2m100 inside, as its text in a row makes it."""
PAST = torch.tensor([[3, 1, 20, 21, 22], [4, 23, 24, 1, 25], [6, 26, 27, 28, 29]])
WINDOW, STARTS = torch.tensor([[30, 1, 31], [32, 33, 34], [0, 35, 36]]), torch.tensor([5, 2, 3])


def runner(family: str, activation: str | None = None, packed: bool = True) -> EncoderDecoderRunner:
    """Its rows have a past of five tokens."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    model = tiny_model(family)
    if activation is not None:
        for layer in model.get_decoder().layers:
            layer.activation_fn = ACT2FN[activation]
    built = load_runner(model, slots=3, max_length=16, max_source_length=8)
    assert isinstance(built, EncoderDecoderRunner)
    if not packed:
        stack(built)._packed = None
    built.prefill([0, 1, 2], SOURCES)
    built.forward(PAST, torch.zeros(3, dtype=torch.int64))
    return built


def stack(runner: EncoderDecoderRunner) -> BartStack:
    assert isinstance(runner._stack, BartStack)
    return runner._stack


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "swish"])
@pytest.mark.parametrize("family", ["marian", "bart", "mbart", "pegasus", "m2m100"])
def test_it_computes_what_tensor_operations_do_and_leaves_the_same_cache(family: str, activation: str | None) -> None:
    one, other = runner(family, activation), runner(family, activation, packed=False)
    assert stack(one)._packed is not None
    close(one.forward(WINDOW, STARTS), other.forward(WINDOW, STARTS))
    close(one._cache.buffer_KSHLP, other._cache.buffer_KSHLP)
    for row, start in enumerate(STARTS.tolist()):
        assert one._cache.buffer_KSHLP[:, row, :, start : start + 3].abs().amin() > 0


@pytest.mark.parametrize("family", ["marian", "mbart"])
def test_a_row_gets_the_same_bits_alone_and_token_by_token(family: str) -> None:
    together, alone = runner(family), runner(family)
    logits_BTV = together.forward(WINDOW, STARTS)
    for t in range(3):
        one_V = alone.forward(WINDOW[:1, t : t + 1], STARTS[:1] + t)[0, 0]
        assert torch.equal(one_V, logits_BTV[0, t])


@pytest.mark.parametrize("family", ["marian", "mbart"])
def test_a_row_that_moves_takes_its_source_along(family: str) -> None:
    """And leaves a place for another row."""
    stayed, moved = runner(family), runner(family)
    logits_BTV = stayed.forward(WINDOW, STARTS)
    moved.move(2, 0)
    assert torch.equal(moved.forward(WINDOW[2:], STARTS[2:]), logits_BTV[2:])
    moved.prefill([2], SOURCES[:1])
    again = torch.stack([PAST[2], PAST[1], PAST[0]])
    moved.forward(again, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(moved.forward(WINDOW.flip(0), STARTS.flip(0)), logits_BTV.flip(0))
    by_tensors = moved.forward(WINDOW.flip(0), STARTS.flip(0), extent=moved.extent(3, 3, 5))
    close(by_tensors, logits_BTV.flip(0))


@pytest.mark.parametrize("family", ["marian", "mbart"])
def test_any_number_of_threads_computes_the_same_bits(family: str) -> None:
    """Whether they share the rows, or what is computed of each: source, past and window."""
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            one = runner(family)
            assert one.encoded_BSd is not None
            made.append((one.encoded_BSd, one._cache.buffer_KSHLP, one.forward(WINDOW, STARTS)))
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        for mine, theirs in zip(made[0], other, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("family", ["marian", "bart", "mbart", "pegasus", "m2m100"])
def test_an_encoder_too_and_every_source_gets_the_same_bits_alone(family: str) -> None:
    encoder = stack(runner(family)).encoder
    assert encoder._packed is not None
    ids_BS, lengths_B = padded(SOURCES, 1, torch.device("cpu"))
    native = encoder._encode(ids_BS, lengths_B)
    packed, encoder._packed = encoder._packed, None
    tensors = encoder._encode(ids_BS, lengths_B)
    encoder._packed = packed
    for row, source in enumerate(SOURCES):
        close(native[row, : len(source)], tensors[row, : len(source)])
        alone = encoder._encode(ids_BS[row : row + 1, : len(source)], lengths_B[row : row + 1])
        assert torch.equal(alone[0], native[row, : len(source)])


def test_an_activation_that_c_does_not_know_goes_by_tensor_operations() -> None:
    one, other = runner("bart", "gelu_new"), runner("bart", "gelu")
    assert stack(one)._packed is None
    logits_BTV = one.forward(WINDOW, STARTS)
    torch.testing.assert_close(logits_BTV, other.forward(WINDOW, STARTS), rtol=0, atol=0.1)
    assert not torch.equal(logits_BTV, other.forward(WINDOW, STARTS))
