"""Formats without column types: records as dictionaries of plain values -> the common shape.

The type of a kept column is judged by the first rows of the first file (`infer`). A later value that does not fit
makes its row an error, so that nothing is changed or dropped unseen.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from cmasd.io.formats.base import PIECE_ROWS, Pieces, ReadSpec, Source, Wanted, abbreviate, canonical, check_text

PROBED_ROWS = 1000
"""Rows looked at to judge columns."""

Record = dict[str, Any] | str
"""Values by column, or what is wrong with the row."""


def to_canonical(records: Sequence[Record], first_row: int, source: Source, spec: ReadSpec) -> pa.Table:
    """`records` start at row `first_row` of the file."""
    ids, texts, errors = [], [], []
    kept: dict[str, list[Any]] = {name: [] for name in spec.keep.names}
    for row, record in enumerate(records, first_row):
        values = record if isinstance(record, dict) else {}
        text, error = check_text(values[spec.text_column]) if spec.text_column in values else _no_text(record, spec)
        for name in kept:
            value, misfit = _fit(values.get(name), spec.keep.field(name).type)
            kept[name].append(value)
            error = error or (misfit and f"column '{name}' {misfit}")
        ids.append(_id(values, f"{source.name}:{row}", spec.id_column))
        texts.append(None if error else text)
        errors.append(error)
    return canonical(ids, texts, errors, pa.table(kept, schema=spec.keep))


def _no_text(record: Record, spec: ReadSpec) -> tuple[None, str]:
    return None, record if isinstance(record, str) else f"no column '{spec.text_column}' in this row"


def _id(values: dict[str, Any], default: str, column: str | None) -> str:
    value = values.get(column) if column else None
    if value is None:
        return default
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _fit(value: Any, kind: pa.DataType) -> tuple[Any, str | None]:
    """(value as `kind`, null) or (null, what is wrong)."""
    if value is None:
        return None, None
    if kind == pa.string():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text.encode("utf-8", "replace").decode("utf-8"), None
    if isinstance(value, bool) is (kind == pa.bool_()) and isinstance(value, _FITTING[kind]):
        return _number(value, kind)
    return None, f"is {abbreviate(value)}, expected {kind} as in the first rows"


_FITTING: dict[pa.DataType, tuple[type, ...]] = {pa.bool_(): (bool,), pa.int64(): (int,), pa.float64(): (int, float)}


def _number(value: Any, kind: pa.DataType) -> tuple[Any, str | None]:
    if kind == pa.int64() and not -(2**63) <= value < 2**63:
        return None, f"is {value}, expected a 64-bit integer"
    return float(value) if kind == pa.float64() else value, None


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
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


def pieces(groups: Iterator[list[Any]], parse: Any, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
    """Parse only what is wanted, a group at a time."""
    row = 0
    for group in groups:
        if wanted(row, row + len(group)):
            yield row, to_canonical([parse(item) for item in group], row, source, spec)
        row += len(group)


def grouped(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of up to `PIECE_ROWS` items."""
    iterator = iter(items)
    while group := list(islice(iterator, PIECE_ROWS)):
        yield group
