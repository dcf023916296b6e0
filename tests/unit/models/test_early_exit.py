"""The beginning of a model computes what a model of that many layers with the same weights does, and copies nothing."""

from typing import Any

import pytest
import torch

from cmasd.errors import ConfigError
from cmasd.models.early_exit import early_exit
from cmasd.runner.load import load_runner, share_weights
from tests.unit.runner.tiny import ENCODER_DECODER, FAMILIES, tiny_model

SOURCES = [[5, 9, 11, 17], [7, 3], [8, 21, 33, 40, 12]]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_model_of_that_many_layers(family: str) -> None:
    """Layers that the short model lacks are dropped from the long one's weights; every other weight is the same."""
    whole = tiny_model(family, layers=3).double()
    begun = early_exit(whole, 2)
    short = tiny_model(family, seed=9, layers=2).double()
    if family in ENCODER_DECODER:  # the encoder is not cut
        encoder = "encoder" if family == "t5" else "model.encoder"
        short.set_submodule(encoder, whole.get_submodule(encoder))
    assert begun.state_dict().keys() == short.state_dict().keys()
    assert len(whole.state_dict()) > len(begun.state_dict())
    short.load_state_dict(begun.state_dict())
    tokens = torch.tensor([[4, 6, 8]] * len(SOURCES))
    starts = torch.tensor([0] * 3 if family in ENCODER_DECODER else [len(source) - 1 for source in SOURCES])
    logits = []
    for model in (begun, short):
        runner = load_runner(model, 3, 16, 8)
        runner.prefill([0, 1, 2], SOURCES)
        logits.append(runner.forward(tokens, starts))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_models_own_and_the_model_is_left_alone(family: str) -> None:
    whole = tiny_model(family, layers=3)
    before = list(whole.state_dict())
    begun = early_exit(whole, 1)
    assert list(whole.state_dict()) == before
    theirs = {weight.data_ptr() for weight in whole.parameters()}
    assert {weight.data_ptr() for weight in begun.parameters()} < theirs


@pytest.mark.parametrize("family", ["marian", "pegasus", "t5", "llama"])
def test_runners_that_share_weights_compute_the_same(family: str) -> None:
    whole = tiny_model(family, layers=3).double()
    tokens = torch.tensor([[4, 6, 8]] * len(SOURCES))
    starts = torch.tensor([0] * 3 if family in ENCODER_DECODER else [len(source) - 1 for source in SOURCES])
    verifier, sharing, alone = (load_runner(model, 3, 16, 8) for model in (whole, *[early_exit(whole, 2)] * 2))
    share_weights(sharing, verifier)
    logits = []
    for runner in (sharing, alone):
        runner.prefill([0, 1, 2], SOURCES)
        logits.append(runner.forward(tokens, starts))
    assert torch.equal(logits[0], logits[1])


def test_how_many_layers() -> None:
    model: Any = tiny_model("marian", layers=6)
    half: Any = early_exit(tiny_model("llama", layers=2), None)
    begun: Any = early_exit(model, None)
    assert len(begun.get_decoder().layers) == 3
    assert len(half.base_model.layers) == 1
    for count in (6, 7):
        with pytest.raises(
            ConfigError, match=rf"drafter\.self_layers: must be fewer than .*6 decoder layers, got {count}"
        ):
            early_exit(model, count)
    with pytest.raises(ConfigError, match=r"fewer than the verifier's 1 decoder layers, got 1"):
        early_exit(tiny_model("gpt2", layers=1), None)
