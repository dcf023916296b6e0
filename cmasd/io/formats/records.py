"""Formats without column types: records as dictionaries of plain values -> the common shape.

The type of a kept column is judged by the first rows of the first file (`infer`). A later value that does not fit
makes its row an error, so that nothing is changed or dropped unseen.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedIOBase
from itertools import islice
from typing import Any

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats.base import (
    PIECE_BYTES,
    PIECE_ROWS,
    Pieces,
    ReadSpec,
    Source,
    Wanted,
    abbreviate,
    canonical,
    check_messages,
    check_text,
    legible,
    partition_values,
)
from cmasd.io.formats.recordings import check_recording

PROBED_ROWS = 1000
"""Rows looked at to judge columns."""

LONGEST_LINE_BYTES = PIECE_BYTES
"""A longer line is a bad row, and is not held in memory."""

ENCODING_BYTES, LEAST_PAIRS = 64, 4
"""Of a file's start, looked at to tell other encodings."""

Line = bytes | int
"""A line with its end, or the bytes of one that is too long."""
Numbered = tuple[int, Any]
"""The number of a row's first line, as an editor shows it, and the row unparsed."""
Record = dict[str, Any] | str
"""Values by column, or what is wrong with the row."""


def to_canonical(
    records: Sequence[Record], lines: Sequence[int], first_row: int, source: Source, spec: ReadSpec
) -> pa.Table:
    """`records` start at row `first_row` of the file, each at its line."""
    ids, texts, errors = [], [], []
    kept: dict[str, list[Any]] = {name: [] for name in spec.keep.names}
    in_folders = partition_values(source, spec)
    for row, (record, line) in enumerate(zip(records, lines, strict=True), first_row):
        values = record if isinstance(record, dict) else {}
        text, error = _text(record, values, source, spec)
        for name in kept:
            value, misfit = _fit(values.get(name), spec.keep.field(name).type)
            value = in_folders.get(name) if name not in values else value
            kept[name].append(value)
            error = error or (misfit and f"column '{name}' {misfit}")
        ids.append(_id(values, f"{source.name}:{row}", spec))
        texts.append(None if error else text)
        errors.append(error and f"line {line}: {error}")
    return canonical(ids, texts, errors, pa.table(kept, schema=spec.keep), spec)


def _text(record: Record, values: dict[str, Any], source: Source, spec: ReadSpec) -> tuple[Any, str | None]:
    if isinstance(record, str):
        return None, record
    found, value = _value(values, spec)
    if not found:
        return None, f"no column '{spec.text_column}' in this row"
    if spec.settings is not None:
        return check_recording(value, values, source, spec)
    check = check_messages if spec.is_messages else check_text
    return check(value, spec.max_text_bytes)


def _value(values: dict[str, Any], spec: ReadSpec) -> tuple[bool, Any]:
    """Whether there is what is decoded from, of messages perhaps inside another column, and it."""
    if spec.text_column in values:
        return True, values[spec.text_column]
    inside: Any = values if spec.is_messages else None
    for name in spec.text_column.split("."):
        if not isinstance(inside, dict) or name not in inside:
            return False, None
        inside = inside[name]
    return True, inside


def _id(values: dict[str, Any], default: str, spec: ReadSpec) -> str | int:
    value = values.get(spec.id_column) if spec.id_column else None
    if not spec.ids_are_text:
        assert isinstance(value, int), "every row of this file had an integer when it was counted"
        return value
    return default if value is None else _as_text(value)


def is_integer(value: Any) -> bool:
    """Whether 64 bits hold it."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _as_text(value: Any) -> str:
    return legible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _fit(value: Any, kind: pa.DataType) -> tuple[Any, str | None]:
    """(value as `kind`, null) or (null, what is wrong)."""
    if value is None:
        return None, None
    if kind == pa.string():
        return _as_text(value), None
    if isinstance(value, bool) is (kind == pa.bool_()) and isinstance(value, _FITTING[kind]):
        return _number(value, kind)
    return None, f"is {abbreviate(value)}, expected {kind} as in the first rows"


_FITTING: dict[pa.DataType, tuple[type, ...]] = {pa.bool_(): (bool,), pa.int64(): (int,), pa.float64(): (int, float)}


def _number(value: Any, kind: pa.DataType) -> tuple[Any, str | None]:
    if kind == pa.int64() and not -(2**63) <= value < 2**63:
        return None, f"is {abbreviate(value)}, expected a 64-bit integer"
    try:
        return float(value) if kind == pa.float64() else value, None
    except OverflowError:
        return None, f"is {abbreviate(value)}, expected a 64-bit floating-point number"


def infer(records: Iterable[Record], names: Sequence[str]) -> dict[str, pa.DataType] | None:
    """Types of all columns seen in the first rows; null without rows. Mixed and nested columns become JSON text."""
    seen: dict[str, set[type]] = {}
    rows = 0
    for record in islice(records, PROBED_ROWS):
        rows += 1
        for name, value in record.items() if isinstance(record, dict) else ():
            seen.setdefault(name, set()).update(() if value is None else (type(value),))
    if not seen:
        return None if rows == 0 else {}
    return {name: _type(kinds) if name in names else pa.null() for name, kinds in seen.items()}


def _type(kinds: set[type]) -> pa.DataType:
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def pieces(
    groups: Iterator[list[Numbered]], parse: Callable[[Any], Record], source: Source, spec: ReadSpec, wanted: Wanted
) -> Pieces:
    """Parse only what is wanted, a group at a time."""
    row = 0
    for group in groups:
        if wanted(row, row + len(group)):
            lines = [line for line, _ in group]
            yield row, to_canonical([parse(item) for _, item in group], lines, row, source, spec)
        row += len(group)


def grouped(items: Iterable[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Lists of up to `PIECE_ROWS` items and, but for the last item, `PIECE_BYTES`."""
    group: list[Any] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if len(group) == PIECE_ROWS or total >= PIECE_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def check_encoding(start: bytes, source: Source) -> None:
    """Raises `InputError` for UTF-16 and UTF-32: with a byte order mark, or with every second byte NUL at the start."""
    start = start[:ENCODING_BYTES]
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    pairs = len(start) // 2
    unmarked = pairs >= LEAST_PAIRS and any(start[odd::2][:pairs] == bytes(pairs) for odd in (0, 1))
    if marked or (unmarked and any(start)):
        raise InputError(
            f"{source.name}: is UTF-16 or UTF-32, expected UTF-8. Convert it, e.g. with iconv -f UTF-16 -t UTF-8."
        )


def numbered_lines(source: Source) -> Iterator[tuple[int, Line]]:
    """All lines of a file, from 1."""
    with source.storage.open(source.path) as stream:
        for number, line in enumerate(lines(stream), 1):
            if number == 1 and isinstance(line, bytes):
                check_encoding(line, source)
            yield number, line


def lines(stream: BufferedIOBase) -> Iterator[Line]:
    """Lines ended by a line feed, without a byte order mark at the start."""
    first = True
    while line := stream.readline(LONGEST_LINE_BYTES):
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        if len(line) < LONGEST_LINE_BYTES or line.endswith(b"\n"):
            yield line
        else:
            yield len(line) + _skip_line(stream)


def _skip_line(stream: BufferedIOBase) -> int:
    """Bytes up to the end of the line."""
    skipped = 0
    while rest := stream.readline(LONGEST_LINE_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def line_size(numbered: tuple[int, Line]) -> int:
    """Bytes in memory."""
    return len(numbered[1]) if isinstance(numbered[1], bytes) else 0


def too_long(size: int) -> str:
    """What is wrong with a line of that many bytes."""
    return f"has {size} bytes; expected at most {LONGEST_LINE_BYTES}"
