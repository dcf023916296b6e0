"""CSV with a header line (`.tsv`: tabs). Every value is text: guessed types would differ between files."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from typing import cast

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats import records
from cmasd.io.formats.base import Pieces, ReadSpec, Source, Wanted


class Csv:
    """One row per record after the header; quoted fields may span lines."""

    endings: tuple[str, ...] = (".csv", ".tsv")
    typed = False

    def count(self, source: Source) -> int:
        """By reading the file."""
        with _Reader(source) as reader:
            return sum(1 for _ in reader.records)

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType] | None:
        """From the header."""
        with _Reader(source) as reader:
            return {name: pa.string() for name in reader.header} or None

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Record by record."""
        with _Reader(source) as reader:
            header = reader.header

            def parse(fields: list[str]) -> records.Record:
                if len(fields) != len(header):
                    return f"record has {len(fields)} fields, the header {len(header)}"
                return dict(zip(header, fields, strict=True))

            yield from records.pieces(records.grouped(reader.records), parse, source, spec, wanted)


class _Reader:
    """An open file: its header, then its records. Bytes that are not UTF-8 come as lone surrogates."""

    def __init__(self, source: Source) -> None:
        csv.field_size_limit(sys.maxsize)
        self.name = source.name
        self.stream = source.storage.open(source.path)
        text = io.TextIOWrapper(cast(io.BufferedReader, self.stream), "utf-8-sig", "surrogateescape", newline="")
        self.text = text
        delimiter = "\t" if ".tsv" in source.name.lower() else ","
        self.rows = csv.reader(text, delimiter=delimiter)
        self.header = next(self._checked(), [])
        self.records = self._checked()

    def _checked(self) -> Iterator[list[str]]:
        try:
            yield from (row for row in self.rows if row)
        except csv.Error as error:
            raise InputError(f"{self.name}: is not CSV at line {self.rows.line_num}: {error}.") from None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.text.close()
