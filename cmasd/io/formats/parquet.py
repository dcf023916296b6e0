"""Parquet files. Row groups without an unfinished row are not read; rows that cannot be read are bad rows.

Page checksums are checked where the file has them.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.io.formats.base import (
    PIECE_BYTES,
    PIECE_ROWS,
    UNREADABLE,
    Count,
    Pieces,
    ReadSpec,
    Source,
    Wanted,
    one_line,
    unreadable,
)
from cmasd.io.formats.columnar import check_schema, ids_of, to_canonical


class Parquet:
    """One row per Parquet row."""

    endings: tuple[str, ...] = (".parquet", ".pq")
    typed = True

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """From the footer."""
        with source.storage.open_raw(source.path) as stream:
            metadata = pq.read_metadata(stream)
            return Count(int(metadata.num_rows), ids_are_integers=_has_integers(metadata, id_column))

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType]:
        """From the footer."""
        with source.storage.open_raw(source.path) as stream:
            return check_schema(pq.read_schema(stream), names, source)

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Row group by row group."""
        with source.storage.open_raw(source.path) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            present = spec.columns_in(file.schema_arrow.names)
            check_schema(file.schema_arrow, present, source)
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if wanted(row, row + rows):
                    yield from _group(file, group, present, row, source, spec, wanted)
                row += rows


def _has_integers(metadata: pq.FileMetaData, column: str | None) -> bool:
    """By the statistics; without them it is not known, and not so."""
    schema = metadata.schema.to_arrow_schema()
    if column is None or column not in schema.names or not pa.types.is_integer(schema.field(column).type):
        return False
    place = next(place for place in range(metadata.num_columns) if metadata.schema.column(place).path == column)
    statistics = (metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups))
    return all(one is not None and one.null_count == 0 for one in statistics)


def _group(
    file: pq.ParquetFile, group: int, columns: list[str], row: int, source: Source, spec: ReadSpec, wanted: Wanted
) -> Pieces:
    metadata = file.metadata.row_group(group)
    start, stop = row, row + metadata.num_rows
    size = PIECE_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
    batches = file.iter_batches(min(max(size, 1), PIECE_ROWS), row_groups=[group], columns=columns)
    while row < stop:
        try:
            batch = next(batches, None)
            reason = "it has fewer rows than the file says"
        except UNREADABLE as error:
            batch, reason = None, one_line(error)
        if batch is None:
            if wanted(row, stop):
                ids = _ids(file, group, spec)[row - start :]
                yield row, unreadable(row, ids, f"row group {group} cannot be read: {reason}", source, spec)
            return
        if wanted(row, row + batch.num_rows):
            yield row, to_canonical(pa.Table.from_batches([batch]), row, source, spec)
        row += batch.num_rows


def _ids(file: pq.ParquetFile, group: int, spec: ReadSpec) -> list[str | int | None]:
    """Of a damaged row group, as far as that column can be read."""
    rows = file.metadata.row_group(group).num_rows
    try:
        column = file.read_row_group(group, columns=[spec.id_column])[spec.id_column] if spec.id_column else None
        ids = ids_of(column, spec) if column is not None else []
    except UNREADABLE:
        ids = []
    return [*ids, *[None] * rows][:rows]
