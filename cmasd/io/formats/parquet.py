"""Parquet files. Row groups without an unfinished row are not read."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.io.formats.base import PIECE_ROWS, Pieces, ReadSpec, Source, Wanted
from cmasd.io.formats.columnar import to_canonical


class Parquet:
    """One row per Parquet row."""

    endings: tuple[str, ...] = (".parquet", ".pq")
    typed = True

    def count(self, source: Source) -> int:
        """From the footer."""
        with source.storage.open_raw(source.path) as stream:
            return int(pq.read_metadata(stream).num_rows)

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType]:
        """From the footer."""
        with source.storage.open_raw(source.path) as stream:
            schema = pq.read_schema(stream)
        return {field.name: field.type for field in schema}

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Row group by row group."""
        with source.storage.open_raw(source.path) as stream:
            file = pq.ParquetFile(stream)
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if wanted(row, row + rows):
                    yield from _group(file, group, row, source, spec, wanted)
                row += rows


def _group(file: pq.ParquetFile, group: int, row: int, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
    for batch in file.iter_batches(batch_size=PIECE_ROWS, row_groups=[group], columns=spec.columns):
        if wanted(row, row + batch.num_rows):
            yield row, to_canonical(pa.Table.from_batches([batch]), row, source, spec)
        row += batch.num_rows
