"""Whisper's encoder and decoder over slots against the modules of transformers."""

from typing import Any

import pytest
import torch

from cmasd.core import Sound
from cmasd.models.early_exit import early_exit
from cmasd.models.families import family_of
from cmasd.runner import load_runner
from cmasd.runner.load import measure, share_encoder
from cmasd.window import Window
from tests.unit.runner import tiny_whisper as tiny


def sounds(count: int) -> list[Any]:
    extractor = tiny.extractor()
    features = [
        extractor(tiny.noise(2000 + 1500 * i, i), sampling_rate=tiny.RATE, return_tensors="np").input_features[0]
        for i in range(count)
    ]
    return [Sound(one, tiny.FRAMES, ()) for one in features]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@torch.no_grad()
def test_windows_over_slots_equal_whole_forwards(dtype: torch.dtype, tolerance: float) -> None:
    model: Any = tiny.tiny_whisper()
    model.to(dtype)
    runner = load_runner(model, 4, tiny.POSITIONS, tiny.PLACES)
    heard = sounds(3)
    runner.prefill([2, 0, 1], heard)
    features = torch.stack([torch.from_numpy(one.features_MF) for one in heard]).to(dtype)
    states_BSd = model.get_encoder()(features).last_hidden_state
    assert runner.encoded_BSd is not None
    assert torch.allclose(runner.encoded_BSd, states_BSd, atol=tolerance)
    tokens_RT = torch.tensor([[tiny.START, 62, 66, 5, 9], [tiny.START, 63, 66, 8, 7], [tiny.START, 64, 65, 1, 2]])
    slots_R, lengths_R = torch.tensor([2, 0, 1]), torch.tensor([5, 3, 4])
    logits_NV = runner.run(Window.prefixes(tokens_RT, lengths_R, slots_R))
    whole_BTV = model(input_features=features, decoder_input_ids=tokens_RT).logits
    wanted = [whole_BTV[row, : int(length)] for row, length in enumerate(lengths_R)]
    assert torch.allclose(logits_NV, torch.cat(wanted), atol=tolerance, rtol=0)


def test_what_is_the_same_is_encoded_once_and_a_drafter_shares_it() -> None:
    model: Any = tiny.tiny_whisper()
    verifier, drafter = (load_runner(model, 4, tiny.POSITIONS, tiny.PLACES) for _ in range(2))
    other = load_runner(tiny.tiny_whisper(seed=5), 4, tiny.POSITIONS, tiny.PLACES)
    assert share_encoder(drafter, verifier)
    assert not share_encoder(other, verifier)
    calls = []
    hook = model.get_encoder().conv1.register_forward_hook(lambda *_: calls.append(1))
    silence = verifier.made_up(7)
    two = sounds(1)
    rows = [silence, two[0], silence]
    verifier.prefill([0, 1, 2], rows)
    drafter.prefill([0, 1, 2], rows)
    assert len(calls) == 2
    drafter.prefill([2], [two[0]])  # later, by itself
    assert len(calls) == 2
    assert drafter.encoded_BSd is not None
    assert verifier.encoded_BSd is not None
    assert torch.equal(drafter.encoded_BSd[0], verifier.encoded_BSd[1])
    drafter.prefill([0, 1, 2], rows)
    assert len(calls) == 2
    hook.remove()
    assert torch.equal(verifier.encoded_BSd[0], verifier.encoded_BSd[2])


def test_a_model_that_ends_early_has_caches_of_its_own_layers() -> None:
    model = tiny.tiny_whisper(layers=3)
    shapes = {layers: measure(early_exit(model, layers), family_of(model)).layers for layers in (1, 2)}
    assert shapes == {1: 1, 2: 2}
    assert measure(model, family_of(model)).layers == 3


def test_a_window_is_cut_from_a_recording_and_filled_with_silence() -> None:
    features = torch.arange(2 * 50, dtype=torch.float32).view(2, 50).numpy()
    sound = Sound(features, 50, (), begin=30)
    window = sound.window(40)
    assert window.shape == (2, 40)
    assert (window[:, :20] == features[:, 30:]).all()
    assert not window[:, 20:].any()
    assert len(sound) == 10
    assert list(sound) == []
    assert sound != Sound(features, 50, (), begin=30)
