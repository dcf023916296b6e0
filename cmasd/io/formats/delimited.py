"""CSV with a header line (`.tsv`: tabs). Every value is text: guessed types would differ between files."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import cast

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats import records
from cmasd.io.formats.base import Pieces, ReadSpec, Source, Wanted, legible


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

            yield from records.pieces(records.grouped(reader.records, _size), parse, source, spec, wanted)


def _size(fields: list[str]) -> int:
    return sum(map(len, fields))


class _Reader:
    """An open file: its header, then its records. Bytes that are not UTF-8 come as lone surrogates.

    A quote that never closes would swallow the rest of the file as one value: it is refused.
    """

    def __init__(self, source: Source) -> None:
        csv.field_size_limit(records.LONGEST_LINE_BYTES)
        self.name = source.name
        self.stream = source.storage.open(source.path)
        text = io.TextIOWrapper(cast(io.BufferedReader, self.stream), "utf-8-sig", "surrogateescape", newline="")
        self.text = text
        delimiter = "\t" if ".tsv" in source.name.lower() else ","
        self.delimiter = delimiter
        self.current: list[str] = []
        """Lines of the record that is being read."""
        self.rows = csv.reader(self._lines(), delimiter=delimiter)
        self.header = [legible(name) for name in next(self._checked(), [])]
        if twice := [name for name in self.header if self.header.count(name) > 1]:
            raise InputError(f"{self.name}: has {len(twice)} columns named '{twice[0]}', expected one. Rename them.")
        self.records = self._checked()

    def _lines(self) -> Iterator[str]:
        for line in self.text:
            self.current.append(line)
            yield line
        self._check_end()

    def _check_end(self) -> None:
        """The strict parser alone says that a quote is open at the end."""
        try:
            list(csv.reader(self.current, delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                first = self.rows.line_num - len(self.current) + 1
                raise InputError(
                    f"{self.name}: a quote opened at line {first} or after is never closed. Close or double it."
                ) from None

    def _checked(self) -> Iterator[list[str]]:
        try:
            for row in self.rows:
                self.current.clear()
                if row:
                    yield row
        except csv.Error as error:
            raise InputError(f"{self.name}: is not CSV at line {self.rows.line_num}: {error}.") from None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.text.close()
