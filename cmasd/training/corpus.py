"""Sentence pairs as padded batches of token ids, in a seeded order.

The order depends on (seed, epoch) alone, so a resumed run sees the batches it would have seen.
Texts are read and tokenised piece by piece. Token ids lie in a file, one flat int32 array per side;
memory holds 24 bytes a row.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.dataset as pds
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cmasd.errors import ConfigError, InputError
from cmasd.runner.models import SHORTLIST
from cmasd.training.recipe import DataRecipe

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
class Corpus:
    """A tokenised parallel corpus."""

    source: Side
    target: Side
    share: NDArray[np.float64]
    """(rows,) the chance that an epoch takes this row; 0 for rows that are left out."""

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


def read_pairs(recipe: DataRecipe, chunk_rows: int = CHUNK_ROWS) -> Iterator[Pairs]:
    """Read piece by piece; rows without text on either side are left out."""
    if recipe.mix and not recipe.group_column:
        raise ConfigError("data.mix: needs to know the corpus of a row. Set data.group_column, or remove data.mix.")
    columns = [recipe.source_column, recipe.target_column]
    if recipe.group_column:
        columns.append(recipe.group_column)
    dataset = pds.dataset(recipe.path, format="parquet")
    if missing := [column for column in columns if column not in dataset.schema.names]:
        raise InputError(f"{recipe.path}: has no column {missing[0]}, got {', '.join(dataset.schema.names)}.")
    for batch in dataset.to_batches(columns=columns, batch_size=chunk_rows):
        values = [column.to_pylist() for column in batch.columns]
        groups = values[2] if recipe.group_column else [None] * batch.num_rows
        shares = [recipe.mix.get(str(group), 1.0) for group in groups]
        kept = [row for row in zip(values[0], values[1], shares, strict=True) if row[0] and row[1]]
        if kept:
            sources, targets, taken = zip(*kept, strict=True)
            yield Pairs(list(sources), list(targets), list(taken))


def read_texts(recipe: DataRecipe) -> Iterator[str]:
    """Both sides of every pair, as a tokenizer is trained on them."""
    for pairs in read_pairs(recipe):
        yield from chain.from_iterable(zip(pairs.sources, pairs.targets, strict=True))


class _SideBuilder:
    """Grows a side by a piece at a time, in a file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the mapping keeps it, and its end removes it
        self._lengths: list[NDArray[np.int64]] = []

    def add(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """Tokenise with eos appended."""
        rows = tokenizer(texts, return_attention_mask=False)["input_ids"]
        np.fromiter(chain.from_iterable(rows), dtype=np.int32).tofile(self._file)
        self._lengths.append(np.fromiter(map(len, rows), dtype=np.int64))

    def side(self) -> Side:
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths])
        self._file.flush()
        tokens: NDArray[np.int32] = np.memmap(self._file, dtype=np.int32, mode="r")
        return Side(tokens, np.cumsum(lengths))


def build_corpus(recipe: DataRecipe, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Read, tokenise, and leave out pairs longer than `max_tokens` or of wildly different length."""
    builders, shares = (_SideBuilder(), _SideBuilder()), []
    for pairs in read_pairs(recipe):
        builders[0].add(pairs.sources, tokenizer)
        builders[1].add(pairs.targets, tokenizer)
        shares.extend(pairs.shares)
    if not shares:
        raise InputError(f"{recipe.path}: no row has text on both sides; expected sentence pairs.")
    source, target = builders[0].side(), builders[1].side()
    longest = np.maximum(source.lengths, target.lengths)
    shortest = np.minimum(source.lengths, target.lengths)
    keep = longest <= recipe.max_tokens
    if recipe.max_ratio is not None:
        keep &= longest <= recipe.max_ratio * shortest + 8
    share = np.where(keep, np.array(shares), 0.0)
    if not share.any():
        raise InputError(
            f"{recipe.path}: no pair is left to train on, {len(share)} were read. Raise data.max_tokens "
            f"({recipe.max_tokens}) or the shares in data.mix."
        )
    return Corpus(source, target, share)


def frequent(corpus: Corpus) -> list[int]:
    """Every id of the targets, most frequent first."""
    counts = np.bincount(corpus.target.tokens)
    ids: list[int] = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    return ids


def write_shortlist(corpus: Corpus, folder: Path) -> None:
    """The ids of `frequent`, for `drafter.shortlist`."""
    (folder / SHORTLIST).write_text(json.dumps(frequent(corpus)) + "\n")


def stream(corpus: Corpus, seed: int, batch_tokens: int, skip: int) -> Iterator[NDArray[np.int64]]:
    """Batches for ever, epoch after epoch, starting after the first `skip` ones."""
    epoch = 0
    while True:
        batches = corpus.batches(seed, epoch, batch_tokens)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1
