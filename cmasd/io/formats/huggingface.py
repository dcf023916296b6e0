"""Hugging Face datasets: the Arrow files of a `save_to_disk` folder, read directly, or a dataset by name.

A name may carry a configuration (`owner/name:config`). The `datasets` library keeps a named dataset in its cache on
every machine that reads it; rows are memory-mapped, not loaded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from cmasd.io.formats.base import PIECE_ROWS, Count, Pieces, ReadSpec, Source, Wanted, one_line, unreadable
from cmasd.io.formats.columnar import bytes_type, check_schema, to_canonical


class ArrowFiles:
    """One file of a `save_to_disk` folder: an Arrow IPC stream."""

    endings: tuple[str, ...] = (".arrow",)
    typed = True

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """By walking the batches; on disk they are mapped, not read."""
        rows, integers = 0, id_column is not None
        for batch in _batches(source):
            rows += batch.num_rows
            integers = integers and _has_integers(pa.Table.from_batches([batch]), id_column)
        return Count(rows, ids_are_integers=integers)

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType]:
        """From the stream's schema."""
        with source.storage.open_raw(source.path) as stream:
            return check_schema(pa.ipc.open_stream(stream).schema, names, source)

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Batch by batch."""
        row = 0
        for batch in _batches(source):
            check_schema(batch.schema, spec.columns_in(batch.schema.names), source)
            broken = _broken(batch, spec)
            for start in range(0, batch.num_rows, PIECE_ROWS):
                part = batch.slice(start, PIECE_ROWS)
                if wanted(row, row + part.num_rows):
                    table = pa.Table.from_batches([part]).select(spec.columns_in(batch.schema.names))
                    lost = unreadable(row, [None] * part.num_rows, broken, source, spec) if broken else None
                    yield row, lost if lost is not None else to_canonical(table, row, source, spec)
                row += part.num_rows


def _broken(batch: pa.RecordBatch, spec: ReadSpec) -> str | None:
    """Why a batch must not be touched: offsets that lie would have us read anywhere in memory."""
    for name in spec.columns_in(batch.schema.names):
        column = batch.column(name)
        try:
            _as_bytes(column).validate(full=True)
        except pa.ArrowInvalid as error:
            return f"column '{name}' is damaged: {one_line(error)}"
    return None


def _as_bytes(column: "pa.Array[Any]") -> "pa.Array[Any]":
    """Strings, also inside lists and structs, without the demand that they are UTF-8, which is asked row by row."""
    kind = bytes_type(column.type)
    return column if kind == column.type else column.view(kind)


def _has_integers(table: Any, column: str | None) -> bool:
    if column is None or table.column_names.count(column) != 1:
        return False
    ids = table.column(column)
    return bool(pa.types.is_integer(ids.type)) and ids.null_count == 0


def _batches(source: Source) -> Iterator[pa.RecordBatch]:
    if source.storage.is_local:
        with pa.memory_map(source.path) as stream:
            yield from pa.ipc.open_stream(stream)
        return
    with source.storage.open_raw(source.path) as stream:
        yield from pa.ipc.open_stream(stream)


class HubDataset:
    """A dataset by name; `Source.path` is `name[:config]@split`."""

    endings: tuple[str, ...] = ()
    typed = True

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """Known to the library."""
        dataset = load(source.path)
        return Count(len(dataset), ids_are_integers=_has_integers(dataset.data, id_column))

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType]:
        """From the dataset's features."""
        return check_schema(load(source.path).features.arrow_schema, names, source)

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Slice by slice."""
        dataset = load(source.path)
        dataset = dataset.select_columns(spec.columns_in(dataset.column_names)).with_format("arrow")
        for row in range(0, len(dataset), PIECE_ROWS):
            stop = min(row + PIECE_ROWS, len(dataset))
            if wanted(row, stop):
                yield row, to_canonical(dataset[row:stop], row, source, spec)


@lru_cache(maxsize=2)
def load(path: str) -> Any:
    """The dataset behind `name[:config]@split`."""
    import datasets

    datasets.disable_progress_bars()
    name, _, split = path.rpartition("@")
    name, _, config = name.partition(":")
    return datasets.load_dataset(name, config or None, split=split)


def stamp(path: str) -> str:
    """Changes with the library's own fingerprint (of the tags or times of its source files), the features, the number
    of rows, or the first or last eight rows.
    """
    dataset = load(path)
    count = len(dataset)
    ends = [*range(min(8, count)), *range(max(0, count - 8), count)]
    sample = repr((dataset._fingerprint, count, dataset.features, [dataset[i] for i in ends]))
    return "dataset:" + hashlib.sha256(sample.encode("utf-8", "replace")).hexdigest()[:32]
