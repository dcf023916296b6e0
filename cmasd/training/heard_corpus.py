"""Recordings with what a verifier said of them, for a parallel drafter of a model that hears.

Rows are recordings of one window, said without timestamps; longer ones are left out. The source side of the corpus is a
row's number, its target the verifier's tokens with the end of sequence; features lie in memory, about a megabyte each.

Shapes: B rows, T target tokens, S places of the encoder, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.dataset as pds
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cmasd.config.tree import Config
from cmasd.core import DETECTED, Sound
from cmasd.engine.speech_pair import Speech, speech_of
from cmasd.errors import ConfigError, InputError
from cmasd.models.masks import source_mask
from cmasd.runner.runners import padded
from cmasd.training.corpus import Corpus, Side
from cmasd.training.listening import Lesson
from cmasd.training.recipe import DataRecipe

KEPT_LESSONS = 256
"""Rows of which the verifier's states are kept from epoch to epoch: three megabytes each for a width of 512."""


@dataclass(frozen=True)
class HeardCorpus:
    """A corpus, and the recording of each row."""

    corpus: Corpus
    sounds: list[Sound]
    frames: int
    """Of a window."""


def build_heard_corpus(
    recipe: DataRecipe, verifier_name: str, verifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> HeardCorpus:
    """Read all of it; raises `ConfigError` without a language that is needed, and `InputError` without rows."""
    assert recipe.audio_column is not None, "asked for only with recordings"
    base = Config()
    config = replace(
        base,
        models=replace(base.models, verifier=verifier_name),
        input=replace(base.input, path=recipe.path),
        speech=replace(base.speech, audio_column=recipe.audio_column, language=recipe.language),
    )
    speech = speech_of(config, verifier, tokenizer)
    if speech is None or DETECTED in speech.vocabulary.first_tokens(recipe.language, "transcribe", timestamps=False):
        raise ConfigError(
            f"data.language: must name what is spoken, got {recipe.language} for {verifier_name}. Set it, such as en."
        )
    columns = [recipe.audio_column, recipe.target_column]
    dataset = pds.dataset(recipe.path, format="parquet")
    if missing := [column for column in columns if column not in dataset.schema.names]:
        raise InputError(f"{recipe.path}: has no column {missing[0]}, got {', '.join(dataset.schema.names)}.")
    sounds, targets = _rows(recipe, speech, dataset.to_table(columns=columns).to_pydict())
    if not sounds:
        raise InputError(f"{recipe.path}: no recording of one window has a text; expected what a verifier said of it.")
    numbers = [[row] for row in range(len(sounds))]
    return HeardCorpus(Corpus(_side(numbers), _side(targets), np.ones(len(sounds))), sounds, speech.sound.frames)


def _rows(recipe: DataRecipe, speech: Speech, table: dict[str, list[Any]]) -> tuple[list[Sound], list[list[int]]]:
    """Recordings and tokens of those that are of use."""
    texts = [text if isinstance(text, str) else "" for text in table[recipe.target_column]]
    ends = [speech.vocabulary.end]
    sounds, targets = [], []
    said = zip(table[str(recipe.audio_column)], texts, speech.codec.encode_outputs(texts), strict=True)
    for recording, text, ids in said:
        if not text or not ids or len(ids) >= recipe.max_tokens:
            continue
        [sound] = speech.codec.encode([recording])
        if isinstance(sound, Sound) and sound.frames <= speech.sound.frames:
            sounds.append(sound)
            targets.append([*ids, *ends])
    return sounds, targets


def _side(rows: Sequence[Sequence[int]]) -> Side:
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    return Side(tokens, np.cumsum([0, *map(len, rows)], dtype=np.int64))


@torch.no_grad()
def listen_to_sounds(model: PreTrainedModel, sounds: list[Sound], targets: list[list[int]], frames: int) -> Lesson:
    """Run the verifier over what it said of recordings; `frames` of a window."""
    verifier: Any = model
    device = model.device
    features_BMF = torch.from_numpy(np.stack([sound.window(frames) for sound in sounds])).to(device, model.dtype)
    encoded_BSd = verifier.get_encoder()(features_BMF).last_hidden_state
    rows = [[*sound.start, *target] for sound, target in zip(sounds, targets, strict=True)]
    tokens_BU, lengths_B = padded(rows, verifier.config.pad_token_id or 0, device)
    first_B = torch.tensor([len(sound.start) - 1 for sound in sounds], device=device)
    out = verifier.get_decoder()(input_ids=tokens_BU[:, :-1], encoder_hidden_states=encoded_BSd, use_cache=False)
    places = encoded_BSd.shape[1]
    mask = source_mask(torch.full_like(lengths_B, places), places, model.dtype)
    return Lesson(tokens_BU, first_B, lengths_B - 1, out.last_hidden_state, None, encoded_BSd, mask)


class Lessons:
    """Lessons of rows, kept as far as there is room: what a recording costs is its encoder."""

    def __init__(self, model: PreTrainedModel, heard: HeardCorpus) -> None:
        self._model = model
        self._heard = heard
        self._kept: dict[int, Lesson] = {}

    def of(self, rows: list[int]) -> Lesson:
        """Of these rows, as if they had been run together."""
        each = [self._one(row) for row in rows]
        longest = max(one.tokens_BU.shape[1] for one in each)
        masks = [one.source_mask for one in each if one.source_mask is not None]
        encoded = [one.encoded_BSd for one in each if one.encoded_BSd is not None]
        return Lesson(
            torch.cat([_widened(one.tokens_BU, longest) for one in each]),
            torch.cat([one.first_B for one in each]),
            torch.cat([one.ends_B for one in each]),
            torch.cat([_widened(one.hidden_BTd, longest - 1) for one in each]),
            None,
            torch.cat(encoded),
            torch.cat(masks),
        )

    def _one(self, row: int) -> Lesson:
        if row in self._kept:
            return self._kept[row]
        heard = self._heard
        found = listen_to_sounds(
            self._model, [heard.sounds[row]], heard.corpus.target.lists(np.array([row])), heard.frames
        )
        if len(self._kept) < KEPT_LESSONS:
            self._kept[row] = found
        return found


def _widened(values: Tensor, length: int) -> Tensor:
    """(B, length, ...), zeros behind the last."""
    rest = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
    return torch.cat([values, rest], dim=1)
