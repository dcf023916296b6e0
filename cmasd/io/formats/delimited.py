"""CSV with a header line (`.tsv`: tabs). Every value is text: guessed types would differ between files.

Quotes: `input.quote`. A quoted field may hold line ends, so that a stray quote can join lines that were rows of their
own: how many lines were joined is counted, and told. Only columns that are asked for must be there, once each.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import cast

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats import records
from cmasd.io.formats.base import Count, Pieces, ReadSpec, Source, Wanted, legible, printable

QUOTE = '"'
Row = tuple[int, list[str]]
"""The number of its first line, and its fields."""


class Csv:
    """One row per record after the header; quoted fields may span lines."""

    endings: tuple[str, ...] = (".csv", ".tsv")
    typed = False

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """By reading the file."""
        with _Reader(source) as reader:
            rows = in_quotes = 0
            for _, fields in reader.records:
                rows += 1
                in_quotes += not reader.quoted and any(map(_is_in_quotes, fields))
            return Count(rows, reader.joined, in_quotes, reader.blank if len(reader.names) == 1 else 0)

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType] | None:
        """From the header."""
        with _Reader(source) as reader:
            reader.check_once(names)
            return {name: pa.string() for name in reader.header} if reader.names else None

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Record by record."""
        with _Reader(source) as reader:
            reader.check_once(spec.columns)
            yield from records.pieces(records.grouped(reader.records, _size), reader.parse, source, spec, wanted)


def _size(row: Row) -> int:
    return sum(map(len, row[1]))


def _is_in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == QUOTE


class _Reader:
    """An open file: its header, then its records. Bytes that are not UTF-8 come as lone surrogates.

    A quote that never closes would swallow the rest of the file as one value: it is refused.
    """

    def __init__(self, source: Source) -> None:
        csv.field_size_limit(records.LONGEST_LINE_BYTES)
        self.source, self.name = source, source.name
        self.stream = source.storage.open(source.path)
        text = io.TextIOWrapper(cast(io.BufferedReader, self.stream), "utf-8-sig", "surrogateescape", newline="")
        self.text = text
        tabs = ".tsv" in source.name.lower()
        self.delimiter = "\t" if tabs else ","
        self.quoted = not tabs if source.quote == "auto" else source.quote == "double"
        self.joined = 0
        """Lines so far that continue the record of the line before."""
        self.blank = 0
        """Blank lines so far, before some row."""
        self._lines_before = 0
        """Read before the record that is being read."""
        self.current: list[str] = []
        """Lines of the record that is being read."""
        self.rows = csv.reader(
            self._lines(), delimiter=self.delimiter, quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        )
        self.names = [legible(name) for name in next(self._checked(), (0, []))[1]]
        """Of all columns; those without a name have an empty one."""
        self.header = [name for name in self.names if name]
        self.least = max((place for place, name in enumerate(self.names, 1) if name), default=len(self.names))
        """Fields that a record must have: columns without a name at the end are no columns."""
        self.records = self._checked()

    def check_once(self, names: Sequence[str]) -> None:
        """Raises `InputError` for a needed column that is there more than once."""
        for name in names:
            if (count := self.header.count(name)) > 1:
                shown = printable(name, 40)
                raise InputError(f"{self.name}: has {count} columns named '{shown}', expected one. Rename them.")

    def parse(self, fields: list[str]) -> records.Record:
        """A record; empty fields beyond the header's are what a comma at the end of a line makes."""
        if len(fields) < self.least or any(fields[len(self.names) :]):
            return f"record has {len(fields)} fields, the header {self.least}"
        return dict(zip(self.names, fields, strict=False))

    def _lines(self) -> Iterator[str]:
        for number, line in enumerate(self.text):
            if number == 0:
                records.check_encoding(line.encode("utf-8", "surrogateescape"), self.source)
            self.current.append(line)
            yield line
        if self.quoted:
            self._check_end()

    def _check_end(self) -> None:
        """The strict parser alone says that a quote is open at the end."""
        try:
            list(csv.reader(self.current, delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                first = self.rows.line_num - len(self.current) + 1
                raise InputError(
                    f"{self.name}: a quote opened at line {first} or after is never closed. Close or double it, or set "
                    "input.quote=none if quotes are plain characters there."
                ) from None

    def _checked(self) -> Iterator[Row]:
        waiting = 0
        try:
            for row in self.rows:
                first, self._lines_before = self._lines_before + 1, self.rows.line_num
                self.joined += self.rows.line_num - first
                self.current.clear()
                if row:
                    self.blank, waiting = self.blank + waiting, 0
                    yield first, row
                else:
                    waiting += 1
        except csv.Error as error:
            raise InputError(f"{self.name}: is not CSV at line {self.rows.line_num}: {error}.") from None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.text.close()
