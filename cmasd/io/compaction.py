"""Many small output files -> few large ones, of the same rows in the same order.

Each merged file is written whole, read back, and only then are its parts removed. Whenever that is cut short, every
row is in some whole file, and the next `cmasd run` or `cmasd compact` removes the parts that are redundant. Merged
files are not merged again.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.errors import RunFolderError
from cmasd.io.lease import Lease, newest_lease, refuse_if_live
from cmasd.io.outputs import READERS, OutputFile, contents, encode, footer_totals, merged_name
from cmasd.io.plan import Plan, Shard, outline
from cmasd.io.run_folder import RunFolder
from cmasd.io.storage import join
from cmasd.telemetry.totals import METADATA_KEY, Totals

ROWS_PER_GROUP = 8192
"""Readers decode a row group at a time."""


@dataclass(frozen=True)
class Compacted:
    """What was done."""

    files_before: int
    files_after: int
    rows: int
    """In merged files written now."""


def compact(address: str, target_bytes: int) -> Compacted:
    """Merge consecutive parts into files of up to about `target_bytes`; raises a `CmasdError`.

    The run need not be complete; a merged file never spans a shard that is missing.
    """
    folder = RunFolder(address)
    manifest = folder.manifest()
    if manifest is None:
        raise RunFolderError(f"{address}: is not a run folder, it has no manifest.json.")
    seen = newest_lease(folder.storage)
    refuse_if_live(folder.address, seen)
    plan = outline(manifest)
    with Lease(folder.storage, folder.address, "compact", after=seen) as lease:
        files_before = len(folder.output_files())
        folder.clean(plan)
        rows = 0
        for group in groups(folder, plan, target_bytes):
            lease.check()
            rows += merge(folder, group)
        return Compacted(files_before, len(folder.output_files()), rows)


def groups(folder: RunFolder, plan: Plan, target_bytes: int) -> Iterator[list[tuple[OutputFile, Shard, Totals]]]:
    """Runs of two and more consecutive whole parts."""
    parts = {file.first: file for file in folder.output_files() if not file.is_merged}
    inside = dict(contents(parts.values(), plan))
    with ThreadPoolExecutor(READERS) as pool:
        footers = dict(
            zip(inside, pool.map(lambda file: footer_totals(folder.storage, file.path), inside), strict=True)
        )
    group: list[tuple[OutputFile, Shard, Totals]] = []
    size = 0
    for shard in plan.shards():
        file = parts.get(shard.position)
        totals = footers.get(file) if file else None
        whole = file is not None and totals is not None and totals.rows == shard.rows
        if not whole or (file and size + file.bytes > target_bytes):
            if len(group) > 1:
                yield group
            group, size = [], 0
        if whole and file and totals:
            group.append((file, shard, totals))
            size += file.bytes
    if len(group) > 1:
        yield group


def merge(folder: RunFolder, group: list[tuple[OutputFile, Shard, Totals]]) -> int:
    """Returns the rows of the merged file."""
    path = join(folder.outputs, merged_name([shard for _, shard, _ in group]))
    totals = sum((part for _, _, part in group), start=Totals())
    tables = (_read(folder, file) for file, _, _ in group)
    folder.storage.write(path, encode(_row_groups(tables), totals))
    if footer_totals(folder.storage, path) != totals:
        raise RunFolderError(f"{path}: is not as it was written; its parts were kept. Check the storage.")
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(folder.storage.delete, [file.path for file, _, _ in group]))
    return totals.rows


def _read(folder: RunFolder, file: OutputFile) -> pa.Table:
    with folder.storage.open_raw(file.path) as stream:
        table = pq.ParquetFile(stream).read()
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != METADATA_KEY.encode()}
    return table.replace_schema_metadata(metadata)


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(held.num_rows for held in waiting) >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
