"""JSON lines: one object per line, compressed or not; blank lines are no rows."""

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats import records
from cmasd.io.formats.base import Count, Pieces, ReadSpec, Source, Wanted, abbreviate

LONGEST_START_BYTES = 1024 * 1024
"""Looked at to tell an object that is spread over lines."""


class JsonLines:
    """One row per line that is not blank."""

    endings: tuple[str, ...] = (".jsonl", ".ndjson", ".json")
    typed = False

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """By reading the file; lines are parsed only as long as their ids are integers."""
        rows, integers = 0, id_column is not None
        for _, line in _lines(source):
            rows += 1
            if integers:
                record = parse(line)
                integers = isinstance(record, dict) and records.is_integer(record.get(id_column or ""))
        return Count(rows, ids_are_integers=integers and rows > 0)

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType] | None:
        """By the first rows."""
        _check_start(source)
        return records.infer((parse(line) for _, line in _lines(source)), names)

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """Line by line."""
        return records.pieces(records.grouped(_lines(source), records.line_size), parse, source, spec, wanted)


def _check_start(source: Source) -> None:
    """Raises `InputError` for an array, and for an object that is spread over lines."""
    start: list[bytes] = []
    for _, line in _lines(source):
        start.append(line if isinstance(line, bytes) else b"")
        if len(start) == 1 and isinstance(parse(line), dict):
            return
        if sum(map(len, start)) > LONGEST_START_BYTES:
            break
    text = b"".join(start).decode("utf-8", "replace").lstrip()
    if text.startswith("["):
        found, advice = "a JSON array", "jq -c '.[]'"
    elif start and (start[0].strip() == b"{" or _is_object(text)):
        found, advice = "a JSON object over several lines", "jq -c ."
    else:
        return
    raise InputError(
        f"{source.name}: starts with {found}, expected one object per line. Convert it, e.g. with {advice}."
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.JSONDecoder().raw_decode(text)[0], dict)
    except (ValueError, RecursionError):
        return False


def _lines(source: Source) -> Iterator[tuple[int, records.Line]]:
    for number, line in records.numbered_lines(source):
        if not (isinstance(line, bytes) and line.isspace()):
            yield number, line


def parse(line: records.Line) -> records.Record:
    """One line."""
    if isinstance(line, int):
        return records.too_long(line)
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        return f"is not JSON ({error.msg} at column {error.pos + 1})"
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    if not isinstance(value, dict):
        return f"is JSON but not an object: {abbreviate(value)}"
    return value
