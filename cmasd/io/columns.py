"""The input columns of a plan: that they are there, and one type for each kept column over all files.

Types differ as data do: integers of two widths, a column of nulls, plain and large strings. A kept column gets the type
that can hold all of them, by Arrow's own rules. It is null in files that lack it, unless the names of their folders
give it (`year=2024/`). Values that do not fit are found row by row, when they are read.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.config.corpus import InputConfig
from cmasd.config.tree import Config
from cmasd.errors import InputError
from cmasd.io.formats.base import UNREADABLE, Count, column_of, partitions, printable
from cmasd.io.formats.columnar import is_list, is_text, no_values, type_inside
from cmasd.io.formats.recordings import is_recording
from cmasd.io.inputs import InputFile
from cmasd.telemetry.schema import ROW_FIELDS, output_schema

Types = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Known:
    """A file with rows, and the columns that it says it has."""

    file: InputFile
    types: Types


def kept_names(config: InputConfig) -> list[str]:
    """Without `id` where it identifies the rows: the output has it anyway."""
    kept = [name for name in config.keep_columns if not name == config.id_column == "id"]
    taken = set(output_schema("token", teacher_top_k=1, keeps_source=True).names)
    for name in kept:
        if name in taken:
            own = (
                "identifies the rows there; set input.id_column=id instead"
                if name == ROW_FIELDS[0].name
                else "is its own"
            )
            raise InputError(f"input.keep_columns: the output has a column '{name}' already, which {own}.")
    return list(dict.fromkeys(kept))


def check_columns(config: Config, one: Known, typed: bool, hears: bool = False) -> None:
    """Raises `InputError` unless there are ids, and what is decoded from: texts, messages, or if it `hears` sound."""
    asked, column = config.input, config.source_column
    is_messages = not hears and asked.messages_column is not None
    key = config.source_key
    owner = column_of(column, one.types) if is_messages else column
    named = [(key, owner), ("input.id_column", asked.id_column)]
    named += [(f"speech.{name}_column", own) for name, own in config.speech.columns.items()] if hears else []
    for setting, name in named:
        if name is not None and name not in one.types:
            raise _missing(setting, name, one)
    if not typed:
        return
    kind = type_inside(one.types[owner], column.removeprefix(owner))
    if kind is None:
        raise InputError(f"{one.file.name}: column '{owner}' has no '{column}' inside. Set {key}.")
    if hears:
        fits, expected = is_recording(kind), "bytes, paths, or both"
    elif is_messages:
        fits, expected = is_text(kind) or is_list(kind), "lists of messages"
    else:
        fits, expected = is_text(kind), "strings"
    if not fits:
        raise InputError(f"{one.file.name}: column '{column}' is {kind}, expected {expected}. Set {key}.")


def _missing(key: str, name: str, one: Known) -> InputError:
    has = ", ".join(printable(other, 40) for other in list(one.types)[:20]) or "none"
    return InputError(
        f"{one.file.name}: no column '{printable(name)}' (has: {has}).{_near(name, one.types)} Set {key}."
    )


def _near(name: str, names: Types) -> str:
    alike = [other for other in names if other.strip(" \t\"'").casefold() == name.strip().casefold()]
    alike = alike or difflib.get_close_matches(name, names, n=1)
    if not alike:
        return ""
    advice = " If quotes enclose the fields, set input.quote=double." if alike[0].strip() == f'"{name}"' else ""
    return f" Did you mean '{printable(alike[0], 40)}'?{advice}"


def kept_schema(names: Sequence[str], known: Sequence[Known], typed: bool) -> pa.Schema:
    """Name and type of each kept column; raises `InputError` where a column is nowhere, or has no common type."""
    return pa.schema([(name, _kept_type(name, known, typed)) for name in names])


def id_type(column: str | None, known: Sequence[tuple[Known, Count]]) -> pa.DataType:
    """That of integers where all files have one in every row, else text."""
    if column is None or not known or not all(count.ids_are_integers for _, count in known):
        return pa.string()
    kinds = sorted({one.types[column] for one, _ in known}, key=str)
    signed = {bool(pa.types.is_signed_integer(kind)) for kind in kinds}
    common = _common(kinds, typed=True) if len(signed) == 1 else None
    return pa.string() if common is None else common


def missing(names: Sequence[str], one: Known) -> tuple[str, ...]:
    """Kept columns that neither the file nor its folders have."""
    return tuple(name for name in names if name not in one.types and name not in partitions(one.file.path))


def _kept_type(name: str, known: Sequence[Known], typed: bool) -> pa.DataType:
    if known and all(missing([name], one) for one in known):
        raise _missing("input.keep_columns", name, known[0])
    first: dict[pa.DataType, str] = {}
    for one in known:
        if name in one.types:
            first.setdefault(one.types[name], one.file.name)
    in_folders = {
        text: one.file.name
        for one in known
        if name not in one.types and (text := partitions(one.file.path).get(name)) is not None
    }
    if in_folders:
        numbers = all(_is_integer(text) for text in in_folders)
        first.setdefault(pa.int64() if numbers else pa.string(), next(iter(in_folders.values())))
    common = _common(list(first), typed)
    if common is None:
        stated = ", ".join(f"{kind} in {printable(file)}" for kind, file in first.items())
        raise InputError(
            f"input.keep_columns: '{name}' has several types ({stated}), expected types with a common one."
        )
    if not _can_be_written(common):
        raise InputError(f"input.keep_columns: '{name}' is {common}, which Parquet cannot hold. Leave it out.")
    return common


def _is_integer(text: str) -> bool:
    """Whether a number says the same: `01` and `+1` do not."""
    return text.lstrip("-").isdecimal() and len(text) < 19 and str(int(text)) == text


def _common(kinds: list[pa.DataType], typed: bool) -> pa.DataType | None:
    """The type that can hold all; text where files do not state types, and those found in them have no other."""
    for candidates in (kinds, [_plain(kind) for kind in kinds]):
        try:
            schemas = [pa.schema([("", kind)]) for kind in candidates]
            common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type if schemas else pa.null()
            for kind in kinds:
                no_values(0, kind).cast(_without_dictionary(common))
        except pa.ArrowException:
            continue
        return pa.string() if common == pa.null() and not typed else _without_dictionary(common)
    return None if typed else pa.string()


def _without_dictionary(kind: pa.DataType) -> pa.DataType:
    """Dictionaries of texts alone can be made again where one has to be changed."""
    return kind.value_type if isinstance(kind, pa.DictionaryType) and not is_text(kind) else kind


def _plain(kind: pa.DataType) -> pa.DataType:
    """Without the ways of storing a type that Arrow does not unify."""
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    views: dict[pa.DataType, pa.DataType] = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(kind, kind)


def _can_be_written(kind: pa.DataType) -> bool:
    try:
        pq.write_table(pa.table({"": no_values(1, kind)}), pa.BufferOutputStream())
    except UNREADABLE:
        return False
    return True
