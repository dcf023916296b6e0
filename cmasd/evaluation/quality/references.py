"""The first rows of an input together with their references, for scores."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.errors import InputError
from cmasd.io.formats.base import KEEP_PREFIX
from cmasd.io.plan import make_plan
from cmasd.io.samples import tables


def first_pairs(config: Config, column: str, count: int) -> list[tuple[str, str]]:
    """(text, reference) of the first rows that have both; raises `InputError` without such a column."""
    return list(islice(_pairs(with_kept(config, column), column), count))


def with_kept(config: Config, *columns: str) -> Config:
    """The configuration that keeps these columns, and no others; without any as it is."""
    return replace(config, input=replace(config.input, keep_columns=sorted(columns))) if columns else config


def reference_texts(rows: pa.Table, column: str) -> list[str | None]:
    """A kept column as text; raises `InputError` where it has none."""
    values = rows[KEEP_PREFIX + column]
    try:
        texts: list[str | None] = values.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise InputError(f"{column}: is {values.type}, expected texts. Name a column of references.") from None
    return texts


def _pairs(config: Config, column: str) -> Iterator[tuple[str, str]]:
    for rows in tables(config, make_plan(config)):
        references = reference_texts(rows, column)
        for text, reference in zip(rows["text"].to_pylist(), references, strict=True):
            if text and reference:
                yield text, reference
