"""Plain text: one row per line; a blank line is an empty text, so that row n of the output belongs to line n."""

from collections.abc import Sequence

import pyarrow as pa

from cmasd.io.formats import records
from cmasd.io.formats.base import Count, Pieces, ReadSpec, Source, Wanted


class TextLines:
    """One column, under whatever name `input.text_column` gives it."""

    endings: tuple[str, ...] = (".txt", ".text")
    typed = False

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """By reading the file."""
        rows = returns = 0
        for _, line in records.numbered_lines(source):
            rows += 1
            if isinstance(line, bytes):
                returns += line.rstrip(b"\r\n").count(b"\r")
        return Count(rows, returns=returns)

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType] | None:
        """The text column, which is the first name asked for."""
        return {names[0]: pa.string()}

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Line by line."""

        def parse(line: records.Line) -> records.Record:
            if isinstance(line, int):
                return records.too_long(line)
            try:
                return {spec.text_column: line.rstrip(b"\r\n").decode("utf-8")}
            except UnicodeDecodeError as error:
                return f"is not UTF-8 (byte {error.start})"

        groups = records.grouped(records.numbered_lines(source), records.line_size)
        return records.pieces(groups, parse, source, spec, wanted)
