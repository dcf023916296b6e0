"""Arrow tables with typed columns -> the common shape; shared by Parquet and Hugging Face datasets."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmasd.errors import InputError
from cmasd.io.formats.base import (
    UNREADABLE,
    ReadSpec,
    Source,
    abbreviate,
    canonical,
    check_messages,
    check_text,
    column_of,
    named,
    one_line,
    partition_values,
)
from cmasd.io.formats.recordings import check_recording

EXTENSION_KEY = b"ARROW:extension:name"


def to_canonical(table: pa.Table, first_row: int, source: Source, spec: ReadSpec) -> pa.Table:
    """`table` holds those of `spec.columns` that the file has; its first row is row `first_row` of the file."""
    checked = _checked(table, source, spec)
    texts, errors = [text for text, _ in checked], [error for _, error in checked]
    given = ids_of(table[spec.id_column], spec) if spec.id_column else [None] * table.num_rows
    ids = named(given, [f"{source.name}:{row}" for row in range(first_row, first_row + table.num_rows)], spec)
    kept = {}
    for name in spec.keep.names:
        kept[name], wrong = _kept(table, spec.keep.field(name), source, spec)
        for row, what in wrong.items():
            texts[row], errors[row] = None, errors[row] or f"column '{name}' {what}"
    return canonical(ids, texts, errors, pa.table(kept, schema=spec.keep), spec)


def _checked(table: pa.Table, source: Source, spec: ReadSpec) -> list[tuple[Any, str | None]]:
    """(what is decoded from, null) or (null, what is wrong with it)."""
    column = _inside(table, spec) if spec.is_messages else table[spec.text_column]
    values = python_values(column)
    if spec.settings is None:
        check = check_messages if spec.is_messages else check_text
        return [check(value, spec.max_text_bytes) for value in values]
    named = [name for name in dict.fromkeys(spec.settings.values()) if name in table.column_names]
    columns = {name: python_values(table[name]) for name in named}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(values))]
    return [check_recording(value, row, source, spec) for value, row in zip(values, rows, strict=True)]


def _inside(table: pa.Table, spec: ReadSpec) -> "pa.ChunkedArray[Any]":
    """The column of messages, which may be a field of another; a null around it is null."""
    owner = column_of(spec.text_column, table.column_names)
    column: Any = table[owner]
    for name in _path(spec.text_column.removeprefix(owner)):
        column = pc.struct_field(column, name)
    return cast("pa.ChunkedArray[Any]", column)


def _path(rest: str) -> list[str]:
    return rest.removeprefix(".").split(".") if rest else []


def type_inside(kind: pa.DataType, rest: str) -> pa.DataType | None:
    """Of the field that the rest of a name with dots leads to; None where there is none."""
    for name in _path(rest):
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold lists of messages."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _kept(
    table: pa.Table, field: "pa.Field[Any]", source: Source, spec: ReadSpec
) -> tuple["pa.ChunkedArray[Any]", dict[int, str]]:
    """A kept column as every reader can read it, and what was wrong in which rows."""
    if field.name not in table.column_names:
        value = partition_values(source, spec).get(field.name)
        if value is None:
            return pa.chunked_array([no_values(table.num_rows, field.type)]), {}
        return pa.chunked_array([pa.array([value] * table.num_rows, field.type)]), {}
    column, misfits = _cast(_without_null_entries(table[field.name]), field.type)
    column, faults = _sound(column)
    return column, {**faults, **misfits}


def _without_null_entries(column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    """Decoded where null is an entry of the dictionary, which Parquet does not allow."""
    kind, chunks = column.type, cast(Any, column.chunks)
    if not isinstance(kind, pa.DictionaryType) or not any(chunk.dictionary.null_count for chunk in chunks):
        return column
    decoded: pa.ChunkedArray[Any] = column.cast(kind.value_type)
    return decoded


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
            misfits[row] = f"is {abbreviate(python_values(value)[0])}, expected a value that {kind} can hold"
    return pa.chunked_array(parts), misfits


def ids_of(column: "pa.ChunkedArray[Any]", spec: ReadSpec) -> list[str | int | None]:
    """Ids, as text unless all are integers; bytes that are not UTF-8 become escapes, and what has no text null."""
    if not spec.ids_are_text:
        return list(column.to_pylist())
    return [None if value is None else _as_text(value) for value in python_values(column)]


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _sound(column: "pa.ChunkedArray[Any]") -> tuple["pa.ChunkedArray[Any]", dict[int, str]]:
    """A kept column that every reader can read, and what is wrong in the rows that had to be changed for it."""
    fault = _fault(column)
    if fault is None:
        return column, {}
    if is_text(column.type):
        values = python_values(column)
        array = pa.array([None if value is None else _as_text(value) for value in values], pa.string())
        bad = [row for row, value in enumerate(values) if isinstance(value, bytes)]
        return pa.chunked_array([array]).cast(column.type), dict.fromkeys(bad, fault)
    parts: list[Any] = []
    faults: dict[int, str] = {}
    for row in range(len(column)):
        one, wrong = _taken(column, row)
        parts += one.chunks
        faults |= {row: wrong} if wrong else {}
    return pa.chunked_array(parts), faults


def _taken(column: "pa.ChunkedArray[Any]", row: int) -> tuple["pa.ChunkedArray[Any]", str | None]:
    """A value on its own, null where something is wrong with it, and what."""
    try:
        one = column.take(pa.array([row]))
        wrong = _fault(one)
    except pa.ArrowException as error:  # of some types no single value can be taken
        wrong = one_line(error)
    return (pa.chunked_array([no_values(1, column.type)]), wrong) if wrong else (one, None)


def _fault(column: "pa.ChunkedArray[Any]") -> str | None:
    """Why a column cannot be read by others, or written."""
    try:
        column.validate(full=True)
        if _narrows(column.type):
            pq.write_table(pa.table({"": column}), pa.BufferOutputStream())
    except UNREADABLE as error:
        return "is not UTF-8" if "UTF8" in str(error) else f"cannot be kept: {one_line(error)}"
    return None


def _narrows(kind: Any) -> bool:
    """Whether Parquet does not hold all values of the type: it has other units of time, and no null in dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    in_seconds = pa.types.is_timestamp(kind) and kind.unit == "s"
    own = in_seconds or kind == pa.date64() or isinstance(kind, pa.DictionaryType)
    return own or any(_narrows(kind.field(place).type) for place in range(kind.num_fields))


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


def python_values(column: "pa.ChunkedArray[Any]") -> list[Any]:
    """Python values; strings that are not UTF-8 come as bytes, and a time beyond Python's as its bare number.

    Null stands for what has neither.
    """
    try:
        return column.to_pylist()
    except Exception:  # noqa: BLE001 - whatever the constructors of Python's types raise
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _bytes_value(scalar)
    except Exception:  # noqa: BLE001 - as above
        number = getattr(scalar, "value", None)
        return number if isinstance(number, int) else _cast_value(scalar, pa.string())


def _bytes_value(scalar: Any) -> Any:
    """With bytes in place of strings; null for a kind of which no array can be made, or seen so."""
    try:
        return pa.array([scalar], scalar.type).view(bytes_type(scalar.type))[0].as_py()
    except (pa.ArrowException, ValueError):
        return None


def bytes_type(kind: Any) -> pa.DataType:
    """The type with bytes in place of strings, also inside lists and structs."""
    plain: dict[pa.DataType, pa.DataType] = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    if kind in plain:
        return plain[kind]
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(bytes_type(field.type)) for field in kind])
    for test, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if test(kind):
            return make(kind.value_field.with_type(bytes_type(kind.value_type)))
    return cast(pa.DataType, kind)


def _cast_value(scalar: Any, kind: pa.DataType) -> Any:
    try:
        return scalar.cast(kind).as_py()
    except (pa.ArrowException, ValueError):
        return None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(test(kind) for test in (*tests, pa.types.is_large_binary, pa.types.is_null))
