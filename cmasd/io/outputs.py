"""The Parquet files in `outputs/`: which shards each holds, told by its name alone.

`part-FFFFF-SSSSSS.parquet` is shard S of input file F, as decoded. `merged-FFFFF-SSSSSS-FFFFF-SSSSSS.parquet` holds all
planned shards from the first to the last, in order, and stands for their parts. A file is whole when its footer's
totals count as many rows as are in it and as were planned. A process that is killed while it merges can leave a merged
file beside parts that it holds: those parts are redundant, never missing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.io.plan import Plan, Shard
from cmasd.io.storage import Storage, base_name
from cmasd.telemetry.totals import METADATA_KEY, Totals

Position = tuple[int, int]
"""(input file, index in it) of a shard; in plan order they rise."""

_PART = re.compile(r"part-(\d{5,})-(\d{6,})\.parquet")
_MERGED = re.compile(r"merged-(\d{5,})-(\d{6,})-(\d{5,})-(\d{6,})\.parquet")
READ_AT_ONCE = 1000
READERS = 32


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One listed file."""

    path: str
    bytes: int
    first: Position
    last: Position

    @property
    def is_merged(self) -> bool:
        """Whether it was made of parts."""
        return base_name(self.path).startswith("merged-")

    def holds(self, position: Position) -> bool:
        """Whether the shard at this position is in it, if it was planned."""
        return self.first <= position <= self.last


@dataclass(frozen=True)
class Finished:
    """Shards in whole files, and what their rows add up to. State per shard, none per row."""

    shards: frozenset[Shard]
    totals: Totals


def merged_name(shards: Sequence[Shard]) -> str:
    """Name of the file that holds consecutive shards."""
    first, last = shards[0], shards[-1]
    return f"merged-{first.file:05d}-{first.index:06d}-{last.file:05d}-{last.index:06d}.parquet"


def output_files(storage: Storage, folder: str) -> list[OutputFile]:
    """By position, merged files first; files with other names are not ours."""
    found = []
    for file in storage.files(folder):
        name = base_name(file.path)
        if match := _PART.fullmatch(name):
            position = int(match[1]), int(match[2])
            found.append(OutputFile(file.path, file.bytes, position, position))
        elif match := _MERGED.fullmatch(name):
            span = (int(match[1]), int(match[2])), (int(match[3]), int(match[4]))
            found.append(OutputFile(file.path, file.bytes, *span))
    return sorted(found, key=lambda file: (not file.is_merged, file.first))


def contents(files: Iterable[OutputFile], plan: Plan) -> Iterator[tuple[OutputFile, list[Shard]]]:
    """The planned shards of each file, from one walk over the plan; a file that holds none is left out."""
    by_first = {file.first: file for file in files}
    current: OutputFile | None = None
    held: list[Shard] = []
    for shard in plan.shards():
        if current is None or not current.holds(shard.position):
            if current and held:
                yield current, held
            current, held = by_first.get(shard.position), []
        if current:
            held.append(shard)
    if current and held:
        yield current, held


def finished_in(storage: Storage, files: Sequence[OutputFile], plan: Plan, known: Finished | None = None) -> Finished:
    """Reads the footers, but not of shards in `known`: whole files were found for those before."""
    merged = [file for file in files if file.is_merged]
    parts = [file for file in files if not file.is_merged]
    shards: set[Shard] = set()
    totals = Totals()
    if known and not merged:
        present = {file.first for file in parts}
        if all(shard.position in present for shard in known.shards):
            shards, totals = set(known.shards), known.totals
    for kind in (merged, parts):
        candidates = ((file, held) for file, held in contents(kind, plan) if held[0] not in shards)
        for held, found in _whole(storage, candidates):
            shards.update(held)
            totals += found
    return Finished(frozenset(shards), totals)


def redundant(storage: Storage, files: Sequence[OutputFile], plan: Plan) -> list[OutputFile]:
    """Parts that a whole merged file holds too."""
    merged = [file for file in files if file.is_merged]
    inside = {shard.position for held, _ in _whole(storage, contents(merged, plan)) for shard in held}
    return [file for file in files if not file.is_merged and file.first in inside]


def _whole(
    storage: Storage, candidates: Iterable[tuple[OutputFile, list[Shard]]]
) -> Iterator[tuple[list[Shard], Totals]]:
    """Those whose file has the planned rows; a bounded number of footers is read at once."""
    iterator = iter(candidates)
    with ThreadPoolExecutor(READERS) as pool:
        while group := list(islice(iterator, READ_AT_ONCE)):
            footers = pool.map(lambda candidate: footer_totals(storage, candidate[0].path), group)
            for (_, held), totals in zip(group, footers, strict=True):
                if totals is not None and totals.rows == sum(shard.rows for shard in held):
                    yield held, totals


def encode(row_groups: Iterable[pa.Table], totals: Totals, notes: Mapping[str, str] | None = None) -> bytes:
    """A whole file; at least one group. `notes` go into its footer, beside the totals."""
    groups = iter(row_groups)
    first = next(groups)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in groups:
            writer.write_table(table)
        writer.add_key_value_metadata(totals.to_metadata() | dict(notes or {}))
    return sink.getvalue().to_pybytes()


def footer_totals(storage: Storage, path: str) -> Totals | None:
    """From a file's footer; null unless the file is whole."""
    try:
        with storage.open_raw(path) as stream:
            metadata = pq.read_metadata(stream)
        totals = Totals.from_dict(json.loads((metadata.metadata or {})[METADATA_KEY.encode()]))
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
        return None
    return totals if totals.rows == metadata.num_rows else None


def positions_held(files: Sequence[OutputFile], positions: Iterable[Position]) -> Set[Position]:
    """Of these positions, in rising order, those in some file; by names alone."""
    parts = {file.first for file in files if not file.is_merged}
    merged = iter(sorted((file for file in files if file.is_merged), key=lambda file: file.first))
    held = set()
    span = next(merged, None)
    for position in positions:
        while span and span.last < position:
            span = next(merged, None)
        if position in parts or (span and span.holds(position)):
            held.add(position)
    return held
