"""Arrow tables with typed columns -> the common shape; shared by Parquet and Hugging Face datasets."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats.base import ReadSpec, Source, abbreviate, canonical, check_text, partition_values

EXTENSION_KEY = b"ARROW:extension:name"


def to_canonical(table: pa.Table, first_row: int, source: Source, spec: ReadSpec) -> pa.Table:
    """`table` holds those of `spec.columns` that the file has; its first row is row `first_row` of the file."""
    checked = [check_text(value, spec.max_text_bytes) for value in _values(table[spec.text_column])]
    texts, errors = [text for text, _ in checked], [error for _, error in checked]
    given = ids_of(table[spec.id_column]) if spec.id_column else [None] * table.num_rows
    ids = [f"{source.name}:{row}" if one is None else one for row, one in enumerate(given, first_row)]
    kept = {}
    for name in spec.keep.names:
        kept[name], wrong = _kept(table, spec.keep.field(name), source, spec)
        for row, what in wrong.items():
            texts[row], errors[row] = None, errors[row] or f"column '{name}' {what}"
    return canonical(ids, texts, errors, pa.table(kept, schema=spec.keep))


def _kept(
    table: pa.Table, field: "pa.Field[Any]", source: Source, spec: ReadSpec
) -> tuple["pa.ChunkedArray[Any]", dict[int, str]]:
    """A kept column as every reader can read it, and what was wrong in which rows."""
    if field.name not in table.column_names:
        value = partition_values(source, spec).get(field.name)
        if value is None:
            return pa.chunked_array([no_values(table.num_rows, field.type)]), {}
        return pa.chunked_array([pa.array([value] * table.num_rows, field.type)]), {}
    column, misfits = _cast(table[field.name], field.type)
    column, bad = _legible(column)
    return column, {**dict.fromkeys(bad, "is not UTF-8"), **misfits}


def _cast(column: "pa.ChunkedArray[Any]", kind: pa.DataType) -> tuple["pa.ChunkedArray[Any]", dict[int, str]]:
    """The column as another type, with nulls where a value does not fit, and which those are."""
    if column.type == kind:
        return column, {}
    try:
        return column.cast(kind), {}
    except pa.ArrowException:
        pass
    parts: list[Any] = []
    misfits: dict[int, str] = {}
    for row in range(len(column)):
        value = column.slice(row, 1)
        try:
            parts += value.cast(kind).chunks
        except pa.ArrowException:
            parts.append(no_values(1, kind))
            misfits[row] = f"is {abbreviate(_values(value)[0])}, expected a value that {kind} can hold"
    return pa.chunked_array(parts), misfits


def ids_of(column: "pa.ChunkedArray[Any]") -> list[str | None]:
    """Ids as text; bytes that are not UTF-8 become escapes."""
    return [None if value is None else _as_text(value) for value in _values(column)]


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _legible(column: "pa.ChunkedArray[Any]") -> tuple["pa.ChunkedArray[Any]", list[int]]:
    """A kept column that every reader can read, and the rows that had to be changed for it."""
    try:
        column.validate(full=True)
        return column, []
    except pa.ArrowInvalid:
        pass
    if not is_text(column.type):  # strings inside lists or structs
        return pa.chunked_array([no_values(len(column), column.type)]), list(range(len(column)))
    values = _values(column)
    bad = [row for row, value in enumerate(values) if isinstance(value, bytes)]
    array = pa.array([None if value is None else _as_text(value) for value in values], pa.string())
    return pa.chunked_array([array]).cast(column.type), bad


def no_values(count: int, kind: pa.DataType) -> "pa.Array[Any]":
    """So many nulls; the stubs know `pa.nulls` by type only."""
    nulls: Any = pa.nulls
    array: pa.Array[Any] = nulls(count, kind)
    return array


def check_schema(schema: pa.Schema, names: Sequence[str], source: Source) -> dict[str, pa.DataType]:
    """Types by column; raises `InputError` for a needed column that comes twice or whose type is an extension.

    The values of an extension type are made by code that some library registered for it; Ray's unpickles them, which
    runs whatever the file says. Arrow's own (`arrow.*`) are safe.
    """
    for name in names:
        if (count := schema.names.count(name)) > 1:
            raise InputError(f"{source.name}: has {count} columns named '{name}', expected one. Rename them.")
        if name in schema.names and (found := next(_extensions(schema.field(name)), None)):
            raise InputError(
                f"{source.name}: column '{name}' has the extension type {found}, expected a plain type: reading such a "
                "type can run code. Write the column as text or numbers."
            )
    return {field.name: field.type for field in schema}


def _extensions(field: "pa.Field[Any]") -> Iterator[str]:
    """Names of extension types in a column, registered here or not."""
    kind: Any = field.type
    name = (field.metadata or {}).get(EXTENSION_KEY, b"").decode("utf-8", "replace")
    if isinstance(kind, pa.BaseExtensionType):
        name = kind.extension_name
    if name and not name.startswith("arrow."):
        yield name
    for place in range(kind.num_fields):
        yield from _extensions(kind.field(place))


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
