"""Pairs of tiny Whispers, recordings for them, and what `generate` of transformers makes of these."""

from functools import cache
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from cmasd.codecs.speech import SpeechCodec, Vocabulary
from cmasd.codecs.text import TextCodec
from cmasd.config.speech import SpeechConfig
from cmasd.core import Request, Sound
from cmasd.engine import Pair
from cmasd.engine.hearing import SoundRules
from cmasd.engine.speech_pair import Speech
from cmasd.generation.constraints import Constraints
from tests.unit.engine.pairs import noisy_copy
from tests.unit.runner import tiny_whisper as tiny

LANGUAGE_IDS = tuple(sorted(tiny.LANGUAGES.values()))


@cache
def whisper(seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """A float64 model, made once; tests must not change it."""
    return tiny.tiny_whisper(seed, layers).double()


@cache
def noisy(seed: int = 0, noise: float = 0.3) -> PreTrainedModel:
    """A drafter that is right now and then."""
    return noisy_copy(whisper(seed), noise)


def rules() -> SoundRules:
    return SoundRules(tiny.START, 4, LANGUAGE_IDS, tiny.FIRST, tiny.FRAMES, 2, 2 * tiny.HOP / tiny.RATE)


def vocabulary(model: PreTrainedModel) -> Vocabulary:
    return Vocabulary.of(cast(Any, model).generation_config, tiny.START)


def hearing_pair(verifier: PreTrainedModel, drafter: PreTrainedModel | None, **changed: Any) -> Pair:
    generation = cast(Any, verifier).generation_config
    found = Constraints.from_generation_config(generation, tiny.VOCABULARY)
    speech = Speech(cast(SpeechCodec, None), rules(), vocabulary(verifier))
    settings: dict[str, Any] = {
        "verifier": verifier,
        "drafter": drafter,
        "codec": cast(TextCodec, None),
        "constraints": speech.constraints(found, verifier),
        "max_new_tokens": tiny.POSITIONS - 1,
        "max_source_tokens": tiny.PLACES,
        "max_length": tiny.POSITIONS,
        "sound": rules(),
        **changed,
    }
    return Pair(**settings)


def codec(model: PreTrainedModel, **settings: Any) -> SpeechCodec:
    """Of samples, without a tokenizer."""
    tokenizer: Any = type("NoWords", (), {"all_special_ids": []})()
    asked = SpeechConfig(**settings)
    return SpeechCodec(tiny.extractor(), tokenizer, vocabulary(model), asked, tiny.FRAMES, cast(Any, lambda one: one))


def sound(model: PreTrainedModel, samples: int, seed: int, **settings: Any) -> Sound:
    made = codec(model, **settings).encode([tiny.noise(samples, seed)])[0]
    assert isinstance(made, Sound)
    return made


def requests(sounds: list[Sound]) -> list[Request]:
    return [Request(key, one, tiny.POSITIONS) for key, one in enumerate(sounds)]


@torch.no_grad()
def generated(
    model: Any, samples: int, seed: int, language: str | None = None, timestamps: bool = False, task: str = "transcribe"
) -> list[int]:
    """What `generate` makes of the same recording, control tokens left out; long ones by its long-form rule."""
    is_long = samples > tiny.SAMPLES
    how = {"truncation": False, "padding": "longest"} if is_long else {}
    made = tiny.extractor()(tiny.noise(samples, seed), sampling_rate=tiny.RATE, return_tensors="pt", **how)
    begins = set()

    def watch(progress: torch.Tensor) -> None:
        assert int(progress[0, 0]) not in begins, "generate goes round in circles"
        begins.add(int(progress[0, 0]))

    ids = model.generate(
        made.input_features.to(model.dtype),
        task=task,
        language=language,
        return_timestamps=timestamps or is_long,
        return_segments=True,
        monitor_progress=watch,
    )
    return [token for segment in ids["segments"][0] for token in segment["tokens"].tolist()]
