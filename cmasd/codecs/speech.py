"""Recordings to features and what a model says of them to text: the codec of Whisper, beside those of texts.

A recording is decoded by whoever is given (`Listen`), its log-mel features are made by transformers' own extractor, and
its decoding begins with language, task and whether there are timestamps, its own or those of `speech.*`. A row that
cannot be heard becomes a RowError value in its place. Whisper's settings that are not offered, temperature fallback
first, are refused by name.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from transformers import GenerationConfig, PretrainedConfig
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from cmasd.checkpoints.by_name import Tokenizer
from cmasd.codecs.text import Ids, TextCodec
from cmasd.config.speech import SpeechConfig
from cmasd.config.tree import EngineConfig
from cmasd.core import DETECTED, Result, RowError, Sound
from cmasd.errors import ConfigError, ModelError
from cmasd.generation.settings import DEFAULT_MAX_NEW_TOKENS, Limits
from cmasd.generation.timestamps import Timestamps
from cmasd.signals import Float32

Listen = Callable[[object], Float32]
"""A row to its samples at 16 kHz; raises ValueError with the reason where there are none."""
HELD_SECONDS = 3600.0
"""Of recordings of a shard, whose features are in memory at once."""
FALLBACK = "temperature fallback is not offered"
REFUSED: dict[str, str] = {
    "logprob_threshold": FALLBACK,
    "compression_ratio_threshold": FALLBACK,
    "no_speech_threshold": FALLBACK,
    "condition_on_prev_tokens": "each window is decoded by itself",
    "return_token_timestamps": "words are not timed one by one",
}
"""Settings of Whisper's generation config that change what is said."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one checkpoint's control tokens."""

    start: int
    end: int
    no_timestamps: int
    languages: dict[str, int]
    """By code; empty where the model knows one language."""
    tasks: dict[str, int]

    @classmethod
    def of(cls, generation: GenerationConfig, start: int) -> "Vocabulary":
        """From a generation config; raises ModelError for what is refused, and for what is lacking."""
        given: Any = generation
        for name, why in REFUSED.items():
            if getattr(given, name, None) not in (None, False):
                value = getattr(given, name)
                raise ModelError(
                    f"generation_config.{name}: is not supported, got {value!r}; expected null ({why}). Remove it "
                    "from the checkpoint's generation_config.json."
                )
        if isinstance(given.temperature, list | tuple):
            raise ModelError(
                f"generation_config.temperature: is not supported, got {given.temperature!r}; expected one number "
                f"({FALLBACK}). Remove it from the checkpoint's generation_config.json."
            )
        end, none = given.eos_token_id, getattr(given, "no_timestamps_token_id", None)
        if not isinstance(end, int) or not isinstance(none, int):
            raise ModelError(
                "models.verifier: its generation_config.json is not one of Whisper as it is today, got eos_token_id "
                f"{end} and no_timestamps_token_id {none}; expected both. Take it from a newer copy of the checkpoint."
            )
        many = bool(getattr(given, "is_multilingual", True))
        languages = (getattr(given, "lang_to_id", None) or {}) if many else {}
        tasks = (getattr(given, "task_to_id", None) or {}) if many else {}
        return cls(start, end, none, {name.strip("<|>"): one for name, one in languages.items()}, dict(tasks))

    def timestamps(self, generation: GenerationConfig) -> Timestamps:
        """Their rules."""
        most = getattr(generation, "max_initial_timestamp_index", None)
        likely = getattr(generation, "_detect_timestamp_from_logprob", True)
        return Timestamps(self.no_timestamps, self.no_timestamps + 1, self.end, most, bool(likely))

    def first_tokens(self, language: str | None, task: str, timestamps: bool) -> tuple[int, ...]:
        """Of the decoder; raises ValueError for a language or task that the model does not know."""
        said: list[int] = [self.start]
        if self.languages:
            said.append(DETECTED if language is None else self._language(language))
        elif language not in (None, "en"):
            raise ValueError(f"the model knows English alone, got language {language!r}")
        if self.tasks:
            said.append(self.tasks[task])
        elif task != "transcribe":
            raise ValueError(f"the model knows no tasks, got {task!r}")
        return (*said, *(() if timestamps else (self.no_timestamps,)))

    def _language(self, name: str) -> int:
        code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
        if code not in self.languages:
            some = ", ".join(sorted(self.languages)[:8])
            raise ValueError(f"unknown language, got {name!r}; expected a code of this model, such as {some}")
        return self.languages[code]


class SpeechCodec(TextCodec):
    """One feature extractor and tokenizer of a model that hears."""

    def __init__(
        self,
        extractor: Any,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        settings: SpeechConfig,
        frames: int,
        listen: Listen,
    ) -> None:
        """`frames`: of a window. Raises ConfigError for settings that the model does not know."""
        self._tokenizer = cast(Any, tokenizer)
        self._extractor = extractor
        self._vocabulary = vocabulary
        self._settings = settings
        self._frames = frames
        self._listen = listen
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._seconds_each = 2 * extractor.hop_length / extractor.sampling_rate
        self.forced_bos_token_id = None
        if extractor.nb_max_frames != frames:
            raise ModelError(
                f"models.verifier: its feature extractor makes windows of {extractor.nb_max_frames} frames, and the "
                f"model hears {frames}. Take both from one checkpoint."
            )
        try:
            vocabulary.first_tokens(settings.language, settings.task, settings.timestamps)
        except ValueError as error:
            raise ConfigError(f"speech: {error}. Set speech.language and speech.task, or leave them out.") from None

    def encode(self, texts: Sequence[object]) -> list[Ids | RowError]:
        """A `Sound` for every recording in order, or why a row has none."""
        return [self._encode(recording) for recording in texts]

    def parts(self, texts: Sequence[object]) -> Iterator[list[Ids | RowError]]:
        """See `TextCodec.parts`: about an hour each, or one longer recording."""
        part: list[Ids | RowError] = []
        places = 0
        for recording in texts:
            part.append(one := self._encode(recording))
            places += 0 if isinstance(one, RowError) else len(one)
            if places * self._seconds_each >= HELD_SECONDS:
                yield part
                part, places = [], 0
        if part:
            yield part

    def _encode(self, recording: object) -> Ids | RowError:
        own = recording if isinstance(recording, Mapping) else {}
        language = own.get("language") or self._settings.language
        task = own.get("task") or self._settings.task
        timed = self._settings.timestamps if own.get("timestamps") is None else bool(own["timestamps"])
        try:
            samples = self._listen(recording)
            is_long = len(samples) > self._extractor.n_samples
            start = self._vocabulary.first_tokens(language, task, timed or is_long)
        except ValueError as error:
            return RowError("encode", str(error))
        features_MF = self.features(samples)
        return Sound(features_MF, max(1, min(features_MF.shape[1], len(samples) // self._extractor.hop_length)), start)

    def normalised(self, text: str) -> str:
        """As Whisper's authors do, before words are counted (arXiv 2212.04356, C): without case and punctuation,
        and in English one spelling, as far as the tokenizer brings a list of these.
        """
        if self._settings.language in ("en", "english"):
            return cast(str, EnglishTextNormalizer(self._tokenizer.english_spelling_normalizer or {})(text)).strip()
        return cast(str, BasicTextNormalizer()(text)).strip()

    def features(self, samples: Float32) -> Float32:
        """(M, F) log-mel: a window, or for a longer recording all of it."""
        extractor, is_long = self._extractor, len(samples) > self._extractor.n_samples
        how = {"truncation": False, "padding": "longest"} if is_long else {}
        made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np", **how)
        features_MF: Float32 = np.ascontiguousarray(made["input_features"][0], dtype=np.float32)
        return features_MF

    def decode(self, rows: list[Ids]) -> list[str | RowError]:
        """What was said, without timestamps and other special tokens."""
        return [self._text(row) for row in rows]

    def say(self, results: list[Result]) -> list[str | RowError]:
        """See `TextCodec.say`; as segments where that is asked for."""
        if self._settings.output == "text":
            return super().say(results)
        return [self._segments(result) for result in results]

    def _text(self, row: Ids) -> str | RowError:
        words = [one for one in row if one not in self._special and one <= self._vocabulary.no_timestamps]
        try:
            return cast(str, self._tokenizer.decode(words, clean_up_tokenization_spaces=False)).strip()
        except Exception as error:  # noqa: BLE001  (whatever one row's ids provoke, the other rows have their text)
            return RowError("detokenise", f"the tokenizer failed on this row's ids ({type(error).__name__})")

    def _segments(self, result: Result) -> str | RowError:
        segments: list[dict[str, Any]] = []
        tokens, end = result.token_ids.tolist(), result.num_input_tokens * self._seconds_each
        place = 0
        for count, begin in result.windows:
            offset = begin / 2 * self._seconds_each
            for start, stop, words in self._timed(tokens[place : place + count]):
                text = self._text(words)
                if isinstance(text, RowError):
                    return text
                until = end if stop is None else offset + stop * self._seconds_each
                if text:
                    times = {"start": offset + start * self._seconds_each, "end": until}
                    rounded = {name: round(min(value, end), 2) for name, value in times.items()}  # silence is behind
                    segments.append({**rounded, "text": text})
            place += count
        return json.dumps(segments, ensure_ascii=False)

    def _timed(self, tokens: Ids) -> list[tuple[int, int | None, Ids]]:
        """(start, end, words) of a window's segments, in places of the encoder; null: as long as the recording."""
        first, found = self._vocabulary.no_timestamps + 1, []
        start, words = 0, list[int]()
        for token in tokens:
            if token < first:
                words.append(token)
            elif words:
                found.append((start, token - first, words))
                start, words = token - first, []
            else:
                start = token - first
        return [*found, *([(start, None, words)] if words else [])]

    def encode_outputs(self, texts: list[str]) -> list[Ids]:
        """See `TextCodec.encode_outputs`: words follow each other behind spaces."""
        return self._output_ids([f" {text}" for text in texts])


def speech_limits(engine: EngineConfig, generation: GenerationConfig, config: PretrainedConfig) -> Limits:
    """As in transformers: a row's start and what is said share the decoder's positions."""
    positions: int = config.max_target_positions
    most = engine.max_new_tokens or generation.max_new_tokens or generation.max_length or DEFAULT_MAX_NEW_TOKENS
    told = () if engine.max_new_tokens is None or most < positions else (
        f"engine.max_new_tokens: allows {most} tokens; the model has {positions} positions, where windows end.",
    )  # fmt: skip
    return Limits(config.max_source_positions, min(most, positions - 1), positions, told)
