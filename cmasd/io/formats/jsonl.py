"""JSON lines: one object per line, compressed or not; blank lines are no rows."""

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats import records
from cmasd.io.formats.base import Pieces, ReadSpec, Source, Wanted, abbreviate


class JsonLines:
    """One row per line that is not blank."""

    endings: tuple[str, ...] = (".jsonl", ".ndjson", ".json")
    typed = False

    def count(self, source: Source) -> int:
        """By reading the file."""
        return sum(1 for _ in _lines(source))

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType] | None:
        """By the first rows."""
        first = next(_lines(source), b"")
        if isinstance(first, bytes) and first.lstrip().startswith(b"["):
            raise InputError(
                f"{source.name}: starts with a JSON array, expected one object per line. "
                "Convert it, e.g. with jq -c '.[]'."
            )
        return records.infer((parse(line) for line in _lines(source)), names)

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Line by line."""
        return records.pieces(records.grouped(_lines(source), records.line_size), parse, source, spec, wanted)


def _lines(source: Source) -> Iterator[records.Line]:
    with source.storage.open(source.path) as stream:
        for line in records.lines(stream):
            if not (isinstance(line, bytes) and line.isspace()):
                yield line


def parse(line: records.Line) -> records.Record:
    """One line."""
    if isinstance(line, int):
        return records.too_long(line)
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"line is not UTF-8 (byte {error.start})"
    except (ValueError, RecursionError) as error:
        return f"line is not JSON ({error})"
    if not isinstance(value, dict):
        return f"line is JSON but not an object: {abbreviate(value)}"
    return value
