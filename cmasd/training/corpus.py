"""Sentence pairs as padded batches of token ids, in a seeded order.

The order depends on (seed, epoch) alone, so a resumed run sees the batches it would have seen.
Texts are read and tokenised piece by piece. Token ids lie in a file, one flat int32 array per side;
memory holds 24 bytes a row.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cmasd.checkpoints.by_name import SHORTLIST
from cmasd.errors import ConfigError, InputError
from cmasd.telemetry.schema import teacher_fields
from cmasd.training.recipe import DataRecipe

TEACHER_COLUMNS = tuple(column.name for column in teacher_fields(1))
Arrays = list[NDArray[Any]]
CHUNK_ROWS = 20_000
"""Rows read and tokenised at once."""


@dataclass(frozen=True)
class Side:
    """Token ids of one language, flat, with row offsets."""

    tokens: NDArray[np.int32]
    """(total,) ids."""
    offsets: NDArray[np.int64]
    """(rows + 1,) where each row begins, and the end of the last."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) tokens per row, eos included."""
        return np.diff(self.offsets)

    def lists(self, rows: NDArray[np.int64]) -> list[list[int]]:
        """Token ids of some rows."""
        return [self.tokens[self.offsets[row] : self.offsets[row + 1]].tolist() for row in rows]

    def padded(self, rows: NDArray[np.int64], pad: int) -> torch.Tensor:
        """(len(rows), longest) int64 token ids."""
        width = int(self.lengths[rows].max())
        out = np.full((len(rows), width), pad, dtype=np.int64)
        for i, row in enumerate(rows):
            ids = self.tokens[self.offsets[row] : self.offsets[row + 1]]
            out[i, : len(ids)] = ids
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Teacher:
    """What the verifier thought of each target token: its k most likely ones, token by token as in the target side."""

    ids_Nk: NDArray[np.int32]
    logprobs_Nk: NDArray[np.float32]

    def of(self, target: Side, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (N, k) int64 and probabilities (N, k) that sum to 1, of the tokens of some rows, row after row."""
        spans = [slice(target.offsets[row], target.offsets[row + 1]) for row in rows]
        ids_Nk = torch.from_numpy(np.concatenate([self.ids_Nk[span] for span in spans])).long()
        return ids_Nk, torch.from_numpy(np.concatenate([self.logprobs_Nk[span] for span in spans])).softmax(-1)


@dataclass(frozen=True)
class Corpus:
    """A tokenised parallel corpus."""

    source: Side
    target: Side
    share: NDArray[np.float64]
    """(rows,) the chance that an epoch takes this row; 0 for rows that are left out."""
    teacher: Teacher | None = None

    def batches(self, seed: int, epoch: int, batch_tokens: int) -> list[NDArray[np.int64]]:
        """Row indices by batch: rows of like length together, batches in random order.

        Rows times the longer padded side stays within `batch_tokens`, except for a batch of one longer row.
        """
        rng = np.random.default_rng([seed, epoch])
        rows = np.flatnonzero(rng.random(len(self.share)) < self.share)
        source, target = self.source.lengths[rows], self.target.lengths[rows]
        order = np.lexsort((rng.random(len(rows)), source, target + 0.01 * source))
        rows, cost = rows[order], np.maximum(source, target)[order]
        batches, start = [], 0
        for stop in range(1, len(rows) + 1):
            full = stop < len(rows) and cost[start : stop + 1].max() * (stop + 1 - start) > batch_tokens
            if full or stop == len(rows):
                batches.append(rows[start:stop])
                start = stop
        rng.shuffle(batches)
        return batches


@dataclass(frozen=True)
class Pairs:
    """Some rows of the data, in file order."""

    sources: list[str]
    targets: list[str]
    shares: list[float]
    """The chance that an epoch takes the row."""
    top_ids: Arrays = field(default_factory=list)
    """(tokens, k) int32 of each target, where the recipe asks for the teacher."""
    top_logprobs: Arrays = field(default_factory=list)
    """(tokens, k) float32"""


def read_pairs(recipe: DataRecipe, chunk_rows: int = CHUNK_ROWS) -> Iterator[Pairs]:
    """Read piece by piece; rows without text on either side are left out."""
    if recipe.mix and not recipe.group_column:
        raise ConfigError("data.mix: needs to know the corpus of a row. Set data.group_column, or remove data.mix.")
    columns = [recipe.source_column, recipe.target_column, *(TEACHER_COLUMNS if recipe.teacher else ())]
    if recipe.group_column:
        columns.append(recipe.group_column)
    dataset = pds.dataset(recipe.path, format="parquet")
    if missing := [column for column in columns if column not in dataset.schema.names]:
        advice = " Decode it with telemetry.teacher_top_k." if missing[0] in TEACHER_COLUMNS else ""
        raise InputError(f"{recipe.path}: has no column {missing[0]}, got {', '.join(dataset.schema.names)}.{advice}")
    for batch in dataset.to_batches(columns=columns, batch_size=chunk_rows):
        sources: list[Any] = batch[recipe.source_column].to_pylist()
        targets: list[Any] = batch[recipe.target_column].to_pylist()
        groups = batch[recipe.group_column].to_pylist() if recipe.group_column else [None] * batch.num_rows
        kept = [row for row, pair in enumerate(zip(sources, targets, strict=True)) if all(pair)]
        if kept:
            yield Pairs(
                [sources[row] for row in kept],
                [targets[row] for row in kept],
                [recipe.mix.get(str(groups[row]), 1.0) for row in kept],
                *([_arrays(batch[name], kept) for name in TEACHER_COLUMNS] if recipe.teacher else ()),
            )


def _arrays(column: Any, rows: list[int]) -> Arrays:
    """(tokens, k) of some rows of a column of lists of lists of one length."""
    lists = column.take(pa.array(rows))
    inner = lists.flatten()
    flat = inner.flatten().to_numpy(zero_copy_only=False)
    values_Nk = flat.reshape(len(inner), -1 if len(inner) else 1)
    return np.split(values_Nk, np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))[:-1])


def read_texts(recipe: DataRecipe) -> Iterator[str]:
    """Both sides of every pair, as a tokenizer is trained on them."""
    for pairs in read_pairs(recipe):
        yield from chain.from_iterable(zip(pairs.sources, pairs.targets, strict=True))


class _SideBuilder:
    """Grows a side by a piece at a time, in a file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the mapping keeps it, and its end removes it
        self._lengths: list[NDArray[np.int64]] = []

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        np.fromiter(chain.from_iterable(rows), dtype=np.int32).tofile(self._file)
        self._lengths.append(np.fromiter(map(len, rows), dtype=np.int64))

    def side(self) -> Side:
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths])
        self._file.flush()
        tokens: NDArray[np.int32] = np.memmap(self._file, dtype=np.int32, mode="r")
        return Side(tokens, np.cumsum(lengths))


class _TeacherBuilder:
    """Grows by a piece at a time, in two files without a name."""

    def __init__(self) -> None:
        self._files = [tempfile.TemporaryFile() for _ in TEACHER_COLUMNS]  # noqa: SIM115 - the mappings keep them
        self._width = 0

    def add(self, pairs: Pairs) -> list[list[int]]:
        """Keep the pairs' teaching; returns its targets."""
        ids_Nk = np.concatenate(pairs.top_ids).astype(np.int32)
        self._width = ids_Nk.shape[1]
        ids_Nk.tofile(self._files[0])
        np.concatenate(pairs.top_logprobs).astype(np.float32).tofile(self._files[1])
        return [ids[:, 0].tolist() for ids in pairs.top_ids]

    def teacher(self) -> Teacher:
        for file in self._files:
            file.flush()
        ids: NDArray[np.int32] = np.memmap(self._files[0], dtype=np.int32, mode="r")
        logprobs: NDArray[np.float32] = np.memmap(self._files[1], dtype=np.float32, mode="r")
        return Teacher(ids.reshape(-1, self._width), logprobs.reshape(-1, self._width))


class Sides(Protocol):
    """How both sides of pairs become token ids."""

    def sources(self, texts: list[str]) -> list[list[int]]:
        """None of what cannot be encoded, which is left out."""

    def targets(self, texts: list[str]) -> list[list[int]]:
        """With the end of sequence."""


@dataclass(frozen=True)
class Bare:
    """Texts as the tokenizer takes them."""

    tokenizer: PreTrainedTokenizerBase

    def sources(self, texts: list[str]) -> list[list[int]]:
        """See `Sides`."""
        ids: list[list[int]] = self.tokenizer(texts, return_attention_mask=False)["input_ids"]
        return ids

    targets = sources


def build_corpus(recipe: DataRecipe, sides: Sides) -> Corpus:
    """Read, tokenise, and leave out pairs longer than `max_tokens` or of wildly different length."""
    builders, shares, taught = (_SideBuilder(), _SideBuilder()), [], _TeacherBuilder()
    for pairs in read_pairs(recipe):
        builders[0].add(sides.sources(pairs.sources))
        builders[1].add(taught.add(pairs) if recipe.teacher else sides.targets(pairs.targets))
        shares.extend(pairs.shares)
    if not shares:
        raise InputError(f"{recipe.path}: no row has text on both sides; expected sentence pairs.")
    source, target = builders[0].side(), builders[1].side()
    longest = np.maximum(source.lengths, target.lengths)
    shortest = np.minimum(source.lengths, target.lengths)
    keep = (longest <= recipe.max_tokens) & (source.lengths > 0)
    if recipe.max_ratio is not None:
        keep &= longest <= recipe.max_ratio * shortest + 8
    share = np.where(keep, np.array(shares), 0.0)
    if not share.any():
        raise InputError(
            f"{recipe.path}: no pair is left to train on, {len(share)} were read. Raise data.max_tokens "
            f"({recipe.max_tokens}) or the shares in data.mix."
        )
    return Corpus(source, target, share, taught.teacher() if recipe.teacher else None)


def frequent(corpus: Corpus, known: int = 0) -> list[int]:
    """Every id of the targets, most frequent first; behind these all others under `known`, lowest first, for
    tokenizers number what they join as it was frequent in their own texts.
    """
    counts = np.bincount(corpus.target.tokens, minlength=known)
    count = known if known else np.count_nonzero(counts)
    ids: list[int] = np.argsort(-counts, kind="stable")[:count].tolist()
    return ids


def write_shortlist(corpus: Corpus, folder: Path, ids: Sequence[int] = ()) -> None:
    """The ids of `frequent`, for `drafter.shortlist`; behind them what else is among `ids`."""
    listed = dict.fromkeys([*frequent(corpus), *ids])
    (folder / SHORTLIST).write_text(json.dumps(list(listed)) + "\n")


def stream(corpus: Corpus, seed: int, batch_tokens: int, skip: int) -> Iterator[NDArray[np.int64]]:
    """Batches for ever, epoch after epoch, starting after the first `skip` ones."""
    epoch = 0
    while True:
        batches = corpus.batches(seed, epoch, batch_tokens)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1
