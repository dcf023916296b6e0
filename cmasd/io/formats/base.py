"""What a format must do, and the one table shape in which every format hands rows on.

That shape is `id` (text, or integers), `text` (text, messages as JSON, or a `RECORDING`; null when the row is bad),
`error` (why it is bad, else null), and the kept columns behind `KEEP_PREFIX`, so that no input column can collide with
the first three.
"""

import lzma
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import pyarrow as pa

from cmasd.io.storage import Storage
from cmasd.messages import MessagesError, as_text, conversation

KEEP_PREFIX = "keep."
PIECE_ROWS, PIECE_BYTES = 1024, 64 * 1024 * 1024
"""Rows parsed at a time: no more than both say, so that long rows do not add up."""
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""In the name of a folder: null."""
UNREADABLE = (OSError, EOFError, ValueError, KeyError, pa.ArrowException, zlib.error, lzma.LZMAError)
"""What parsers raise on content that is not what its name says; failures of a storage are `CmasdError` instead."""

RECORDING: pa.DataType = pa.struct(
    [
        ("bytes", pa.large_binary()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("task", pa.string()),
        ("timestamps", pa.bool_()),
    ]
)
"""What stands in the place of a text where rows are recordings: encoded, or where it lies, and settings of its own."""

Wanted = Callable[[int, int], bool]
"""Whether any row in [start, stop) is still to be read."""
Pieces = Iterator[tuple[int, pa.Table]]
"""(number of the first row, rows) in file order; unwanted rows may be left out."""


def partitions(path: str) -> dict[str, str | None]:
    """Columns that the names of a file's folders give, as Hive writes them: `year=2024/`."""
    parts = (part.partition("=") for part in path.split("/")[:-1] if "=" in part[1:])
    return {unquote(name): None if value == NO_PARTITION else unquote(value) for name, _, value in parts}


def _empty_schema() -> pa.Schema:
    return pa.schema([])


@dataclass(frozen=True)
class Source:
    """One input file."""

    storage: Storage
    path: str
    name: str
    """How users see it, and the first half of default row ids."""
    quote: str = "auto"
    """See `input.quote`."""


class Count(NamedTuple):
    """What is in a file."""

    rows: int
    joined: int = 0
    """Line ends inside quoted fields: so many lines are no rows of their own."""
    in_quotes: int = 0
    """Rows with a field between quotes that were read as plain characters."""
    blank: int = 0
    """Blank lines of a file of one column, which may have been meant as empty values, and are no rows."""
    returns: int = 0
    """Carriage returns inside lines of text, which end no line."""
    ids_are_integers: bool = False
    """Whether the id column was asked for, and has an integer of 64 bits in every row."""


@dataclass(frozen=True)
class ReadSpec:
    """Which columns are read."""

    text_column: str
    id_column: str | None = None
    keep: pa.Schema = field(default_factory=_empty_schema)
    """Names and types of `input.keep_columns`."""
    max_text_bytes: int = 1_000_000
    """See `input.max_text_bytes`."""
    id_type: pa.DataType = field(default_factory=pa.string)
    """Of integers where every row of all files has one as its id; else text."""
    is_messages: bool = False
    """Whether the text column holds conversations, perhaps inside another column: `body.messages`."""
    settings: Mapping[str, str] | None = None
    """Columns of recordings' own settings, by the setting; None: rows are no recordings."""

    @property
    def text_type(self) -> pa.DataType:
        """Of what is decoded from."""
        return pa.string() if self.settings is None else RECORDING

    @property
    def ids_are_text(self) -> bool:
        """Whether a row without an id gets one by its place."""
        return self.id_type == pa.string()

    @property
    def columns(self) -> list[str]:
        """Input columns needed, each once."""
        wanted = [self.text_column, *([self.id_column] if self.id_column else []), *self.keep.names]
        wanted += (self.settings or {}).values()
        return list(dict.fromkeys(wanted))

    def columns_in(self, names: Collection[str]) -> list[str]:
        """Those of `columns` that are there, one of messages by the column that holds it."""
        inside = {self.text_column: column_of(self.text_column, names)} if self.is_messages else {}
        return list(dict.fromkeys(name for one in self.columns if (name := inside.get(one, one)) in names))


def column_of(name: str, names: Collection[str]) -> str:
    """The column of a name that may look inside one: `body` of `body.messages`, unless there is one called so."""
    first = name.partition(".")[0]
    return first if name not in names and first in names else name


class Format(Protocol):
    """One way of keeping rows in files."""

    endings: tuple[str, ...]
    """File name endings, compression aside."""
    typed: bool
    """Whether files state the types of their columns; else bad values are found row by row."""

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """Rows in the file, and what else a look at all of them tells."""

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType] | None:
        """Type of each column; null when the file has no rows to tell.

        Formats without types judge by the first rows, and only the columns in `names`.
        """

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """The rows, in the shape described above."""


def partition_values(source: Source, spec: ReadSpec) -> dict[str, Any]:
    """Values of the kept columns that the names of the file's folders give."""
    given = partitions(source.path)
    kept = [field for field in spec.keep if field.name in given]
    return {field.name: pa.scalar(given[field.name], pa.string()).cast(field.type).as_py() for field in kept}


def canonical(
    ids: Sequence[str | int | None],
    texts: Sequence[Any],
    errors: Sequence[str | None],
    keep: pa.Table,
    spec: ReadSpec,
) -> pa.Table:
    """Assemble the shape described above."""
    table = pa.table({"id": pa.array(list(ids), spec.id_type), "text": pa.array(texts, spec.text_type)})
    table = table.append_column("error", pa.array(errors, pa.string()))
    for name in keep.column_names:
        table = table.append_column(pa.field(KEEP_PREFIX + name, keep.schema.field(name).type), keep[name])
    return table


def unreadable(
    first_row: int, ids: Sequence[str | int | None], reason: str, source: Source, spec: ReadSpec
) -> pa.Table:
    """Rows whose content is lost: an id, and the reason, with the row's place if it has lost an id that is no text."""
    places = [f"{source.name}:{row}" for row in range(first_row, first_row + len(ids))]
    names = named(ids, places, spec)
    errors = [reason if name is not None else f"{place}: {reason}" for name, place in zip(names, places, strict=True)]
    keep = pa.table({field.name: pa.nulls(len(names), field.type) for field in spec.keep}, schema=spec.keep)
    return canonical(names, [None] * len(names), errors, keep, spec)


def named(ids: Sequence[str | int | None], places: Sequence[str], spec: ReadSpec) -> list[str | int | None]:
    """Ids, with its place in place of one that is null."""
    if not spec.ids_are_text:
        return list(ids)
    return [place if one is None else one for one, place in zip(ids, places, strict=True)]


def legible(text: str) -> str:
    """The same text where it is valid Unicode; lone surrogates become escapes, so that different texts stay so."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str, width: int = 200) -> str:
    """For messages: text of unknown origin on one line, with escapes for what a terminal would obey."""
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    return shown if len(shown) <= width else f"{shown[: width - 3]}..."


def one_line(error: BaseException) -> str:
    """For messages: what a parser said."""
    return printable((" ".join(str(error).split()) or type(error).__name__)[:200].rstrip("."))


def check_text(value: Any, most_bytes: int) -> tuple[str | None, str | None]:
    """(text, null) or (null, what is wrong with it)."""
    if value is None:
        return None, "text is null"
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, f"text is not UTF-8 (byte {error.start})"
    if not isinstance(value, str):
        return None, f"text is {type(value).__name__}, expected a string: {abbreviate(value)}"
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        return None, f"text is not valid Unicode (character {error.start})"
    if size > most_bytes:
        return None, f"text has {size} bytes; expected at most {most_bytes} (input.max_text_bytes)"
    return value, None


def check_messages(value: Any, most_bytes: int) -> tuple[str | None, str | None]:
    """(messages as JSON text, null) or (null, what is wrong with them)."""
    try:
        return check_text(as_text(conversation(value)), most_bytes)
    except MessagesError as error:
        return None, str(error)


def abbreviate(value: Any, width: int = 80) -> str:
    """For messages: printable ASCII, on one line."""
    text = ascii(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."
