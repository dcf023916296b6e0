"""What a run will do: its input files, cut into shards.

A shard is rows [start, stop) of one input file: read, decoded, written and resumed as one. A plan is made once per
run, stored in its manifest, and never changes; a resumed run checks that its input still has the same content.
"""

import base64
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.errors import InputError, RunFolderError
from cmasd.io.changes import refuse_changes
from cmasd.io.columns import Known, check_columns, id_type, kept_names, kept_schema, missing
from cmasd.io.formats import FORMATS, ReadSpec, Source
from cmasd.io.formats.base import UNREADABLE, Count, one_line, printable
from cmasd.io.inputs import InputFile, Listing, list_inputs
from cmasd.io.storage import Storage

LEAST_ROWS_PER_SHARD, MOST_ROWS_PER_SHARD, AIMED_SHARDS = 32, 2048, 32
MOST_RECORDINGS_PER_SHARD = 128
"""They may travel with their bytes."""
MOST_SHARDS = 100_000
"""The driver keeps state per shard, and a start lists one output file for each."""


@dataclass(frozen=True)
class PlannedFile:
    """One input file and its rows."""

    file: InputFile
    count: Count
    missing: tuple[str, ...] = ()
    """Kept columns that it lacks, which are null in its rows."""

    @property
    def rows(self) -> int:
        """Of the input, hence of the output."""
        return self.count.rows

    @staticmethod
    def stored(file: InputFile, entry: dict[str, Any]) -> "PlannedFile":
        """From the manifest's entry."""
        counts = {name: entry[name] for name in Count._fields if name in entry}
        return PlannedFile(file, Count(**counts), tuple(entry.get("missing", ())))

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, without the path: it may differ on the next start."""
        named = {"name": self.file.name, "bytes": self.file.bytes, "stamp": self.file.stamp}
        return {**named, **self.count._asdict(), "missing": list(self.missing)}


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows [start, stop) of one file."""

    file: int
    """Position in `Plan.files`."""
    index: int
    """Position in the file."""
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows in the shard, and in its output file."""
        return self.stop - self.start

    @property
    def position(self) -> tuple[int, int]:
        """(file, index): rises in plan order."""
        return self.file, self.index

    @property
    def output_name(self) -> str:
        """Name of the output file, whose presence says that the shard is done."""
        return f"part-{self.file:05d}-{self.index:06d}.parquet"


@dataclass(frozen=True)
class FilePlan:
    """The work on one input file; small enough to travel with each read task."""

    format: str
    number: int
    """Position in `Plan.files`."""
    planned: PlannedFile
    rows_per_shard: int
    spec: ReadSpec
    sample: float
    """Share of shards that is taken."""

    def shards(self) -> Iterator[Shard]:
        """In file order."""
        for index, start in enumerate(range(0, self.planned.rows, self.rows_per_shard)):
            if is_sampled(self.number, index, self.sample):
                yield Shard(self.number, index, start, min(start + self.rows_per_shard, self.planned.rows))


@dataclass(frozen=True)
class Plan:
    """All work of a run."""

    format: str
    files: list[PlannedFile]
    rows_per_shard: int
    spec: ReadSpec
    sample: float = 1.0
    """Share of shards that is taken."""

    @property
    def rows(self) -> int:
        """Input rows that are decoded, hence output rows."""
        return sum(shard.rows for shard in self.shards())

    @property
    def notices(self) -> list[str]:
        """What users should know about how the input was read."""
        return [*([self.nothing] if self.nothing else []), *_notices(self.files)]

    @property
    def nothing(self) -> str | None:
        """Why no row is decoded."""
        rows = sum(file.rows for file in self.files)
        if rows == 0:
            return f"The input has no rows: {len(self.files):,} file(s), all without any."
        if self.rows == 0:
            shards = sum(-(-file.rows // self.rows_per_shard) for file in self.files)
            return (
                f"input.sample={self.sample:g} takes none of {shards:,} shard(s), hence none of {rows:,} rows. "
                "Raise it, or lower output.rows_per_shard."
            )
        return None

    def shards(self) -> Iterator[Shard]:
        """In input order."""
        for number in range(len(self.files)):
            yield from self.part(number).shards()

    def part(self, number: int) -> "FilePlan":
        """What is planned for one file."""
        return FilePlan(self.format, number, self.files[number], self.rows_per_shard, self.spec, self.sample)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return {
            "format": self.format,
            "rows": self.rows,
            "rows_per_shard": self.rows_per_shard,
            "shards": sum(1 for _ in self.shards()),
            "id_type": str(self.spec.id_type),
            "keep_schema": base64.b64encode(self.spec.keep.serialize().to_pybytes()).decode(),
            "files": [file.to_dict() for file in self.files],
        }


def make_plan(config: Config) -> Plan:
    """List, check and count the input; raises `InputError`."""
    listing, kept = list_inputs(config.input), kept_names(config.input)
    with ThreadPoolExecutor(8) as pool:
        probes = list(pool.map(lambda file: _probe(config, listing, file, kept), listing.files))
    with_rows = [(known, count) for known, count in probes if known and count.rows]
    known = [known for known, _ in with_rows]
    files = [
        PlannedFile(file, count, missing(kept, known) if known and count.rows else ())
        for file, (known, count) in zip(listing.files, probes, strict=True)
    ]
    keep = kept_schema(kept, known, FORMATS[listing.format].typed)
    spec = _spec(config, listing.format, keep, id_type(config.input.id_column, with_rows))
    most = MOST_ROWS_PER_SHARD if spec.settings is None else MOST_RECORDINGS_PER_SHARD
    each = config.output.rows_per_shard or default_rows_per_shard(sum(file.rows for file in files), most)
    return Plan(listing.format, files, each, spec, config.input.sample)


def _spec(config: Config, format: str, keep: pa.Schema, id_type: pa.DataType) -> ReadSpec:
    asked, hears = config.input, holds_recordings(config, format)
    return ReadSpec(
        config.source_column,
        asked.id_column,
        keep,
        asked.max_text_bytes,
        id_type,
        is_messages=not hears and asked.messages_column is not None,
        settings=config.speech.columns if hears else None,
    )


def holds_recordings(config: Config, format: str) -> bool:
    """Whether rows are recordings."""
    return format == "audio" or config.speech.audio_column is not None


def is_sampled(file: int, index: int, sample: float) -> bool:
    """Whether a sample of this share takes the shard; a larger sample takes it too."""
    return zlib.crc32(f"{file}:{index}".encode()) < sample * 2**32


def default_rows_per_shard(rows: int, most: int = MOST_ROWS_PER_SHARD) -> int:
    """32 shards, unless they would be under 32 or over `most` rows; beyond 100,000 shards they grow again."""
    return max(min(max(rows // AIMED_SHARDS, LEAST_ROWS_PER_SHARD), most), -(-rows // MOST_SHARDS))


def stored_plan(stored: dict[str, Any], config: Config, folder: str) -> Plan:
    """The plan in a manifest, on the input as it is now; raises `RunFolderError` when that has changed."""
    listing = list_inputs(config.input)
    refuse_changes(stored["files"], listing, folder)
    asked = config.output.rows_per_shard
    if asked not in (None, stored["rows_per_shard"]):
        raise RunFolderError(
            f"{folder}: was started with another output.rows_per_shard ({stored['rows_per_shard']} -> {asked}). "
            "Use a new run folder, or restore the old value."
        )
    keep = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored["keep_schema"])))
    now = {file.name: file for file in listing.files}
    files = [PlannedFile.stored(now[entry["name"]], entry) for entry in stored["files"]]
    spec = _spec(config, stored["format"], keep, pa.type_for_alias(stored["id_type"]))
    return Plan(stored["format"], files, stored["rows_per_shard"], spec, config.input.sample)


def outline(manifest: dict[str, Any]) -> Plan:
    """The shards of a manifest, for those who don't read the input; it need not exist any more."""
    stored = manifest["plan"]
    files = [
        PlannedFile.stored(InputFile(entry["name"], "", entry["bytes"], entry["stamp"]), entry)
        for entry in stored["files"]
    ]
    settings, speech = manifest["config"]["input"], manifest["config"].get("speech", {})
    spec = ReadSpec(speech.get("audio_column") or settings["text_column"], settings["id_column"])
    return Plan(stored["format"], files, stored["rows_per_shard"], spec, settings["sample"])


def source_of(config: Config, file: InputFile) -> Source:
    """The file, ready to be opened in this process."""
    return Source(Storage(config.input.path), file.path, file.name, config.input.quote)


def _notices(files: Sequence[PlannedFile]) -> Iterator[str]:
    if joined := [file for file in files if file.count.joined]:
        lines = sum(file.count.joined for file in joined)
        yield (
            f"{_named(joined)}: {lines:,} line(s) were joined to the line before by quoted fields, which leaves "
            f"{sum(file.rows for file in joined):,} row(s). If quotes are plain characters, set input.quote=none."
        )
    if in_quotes := [file for file in files if file.count.in_quotes]:
        rows = sum(file.count.in_quotes for file in in_quotes)
        yield (
            f"{_named(in_quotes)}: {rows:,} row(s) have fields between quotes, which were read as plain characters. "
            "If they enclose the fields, set input.quote=double."
        )
    if blank := [file for file in files if file.count.blank]:
        lines = sum(file.count.blank for file in blank)
        yield f'{_named(blank)}: {lines:,} blank line(s) of one column are no rows. Write an empty value as "".'
    if returns := [file for file in files if file.count.returns]:
        count = sum(file.count.returns for file in returns)
        yield (
            f"{_named(returns)}: {count:,} carriage return(s) inside lines end no line, which leaves "
            f"{sum(file.rows for file in returns):,} row(s). If they are line ends, replace them: tr '\\r' '\\n'."
        )
    for name in dict.fromkeys(name for file in files for name in file.missing):
        yield f"{_named([file for file in files if name in file.missing])}: no column '{name}', which is null there."


def _named(files: Sequence[PlannedFile]) -> str:
    more = f" and {len(files) - 1:,} more file(s)" if len(files) > 1 else ""
    return f"{printable(files[0].file.name)}{more}"


def _probe(config: Config, listing: Listing, file: InputFile, kept: list[str]) -> tuple[Known | None, Count]:
    """(its columns, what is in it) of one file, checked; null where it has no rows to tell its columns."""
    source, reader = source_of(config, file), FORMATS[listing.format]
    hears = holds_recordings(config, listing.format)
    names = [config.source_column, *([config.input.id_column] if config.input.id_column else []), *kept]
    names += config.speech.columns.values() if hears else ()
    try:
        types, count = reader.columns(source, names), reader.count(source, config.input.id_column)
    except UNREADABLE as error:
        raise InputError(
            f"{file.name}: cannot be read as {listing.format}: {one_line(error)}. Copy it again, or leave it out."
        ) from None
    if types is None:
        return None, count
    known = Known(file, types)
    if count.rows:
        check_columns(config, known, reader.typed, hears)
    return known, count
