"""Arrow tables with typed columns -> the common shape; shared by Parquet and Hugging Face datasets."""

from typing import Any

import pyarrow as pa

from cmasd.io.formats.base import ReadSpec, Source, canonical, check_text


def to_canonical(table: pa.Table, first_row: int, source: Source, spec: ReadSpec) -> pa.Table:
    """`table` holds `spec.columns`; its first row is row `first_row` of the file."""
    checked = [check_text(value) for value in _values(table[spec.text_column])]
    ids = [f"{source.name}:{row}" for row in range(first_row, first_row + table.num_rows)]
    if spec.id_column:
        given = _values(table[spec.id_column])
        ids = [default if value is None else _as_text(value) for default, value in zip(ids, given, strict=True)]
    keep = table.select(spec.keep.names).cast(spec.keep)
    return canonical(ids, [text for text, _ in checked], [error for _, error in checked], keep)


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _values(column: "pa.ChunkedArray[Any]") -> list[Any]:
    """Python values; strings that are not UTF-8 come as bytes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [_text_or_bytes(value) for value in column.cast(binary).to_pylist()]


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(test(kind) for test in (*tests, pa.types.is_large_binary, pa.types.is_null))
