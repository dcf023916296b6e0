"""The folder of a run: `outputs/`, `manifest.json`, `attempts/`, `leases/`, `memory/`, `summary.json`.

Why nothing is lost without a log of commits: a shard's rows and the name of its file follow from the plan in the
manifest alone, and a file appears only whole, so that its presence is the commit, made in one step by rename or put.
Whoever writes a shard again, be it a retried actor or a driver that was thought dead, replaces a whole file by one
with the same rows: there are no two records that could disagree, and no order of writes that loses or doubles a row.
Files of unknown origin are refused rather than overwritten.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.config import fingerprint, identity, public_dict
from cmasd.config.tree import Config
from cmasd.errors import ConfigError, RunFolderError
from cmasd.io import lease
from cmasd.io.outputs import (
    READERS,
    Finished,
    OutputFile,
    Position,
    encode,
    finished_in,
    output_files,
    positions_held,
    redundant,
)
from cmasd.io.plan import Plan, Shard
from cmasd.io.storage import TEMPORARY_PREFIX, Storage, base_name, join
from cmasd.telemetry.clock import ShardTiming
from cmasd.telemetry.schema import SCHEMA_VERSION
from cmasd.telemetry.totals import Totals

BATCH_ROWS = 4096
"""Of an output, in memory at once when it is read."""
MEMORY = "memory"
"""What rows said, by shard (`cmasd.io.memories`)."""
SUBFOLDERS = ("attempts", lease.FOLDER, MEMORY)
"""Beside `outputs`."""


class RunFolder:
    """Reads and writes one run's files."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.storage = Storage(self.address)
        self.outputs = join(self.storage.root, "outputs")

    def read_json(self, *names: str) -> dict[str, Any] | None:
        """A file of the folder; null when absent; raises `RunFolderError` when damaged."""
        try:
            value = json.loads(self.storage.read(join(self.storage.root, *names)))
        except FileNotFoundError:
            return None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RunFolderError(f"{self.address}/{'/'.join(names)}: is damaged, expected a JSON object. Remove it.")
        return value

    def write_json(self, value: dict[str, Any], *names: str) -> None:
        """Create or replace a file of the folder."""
        data = json.dumps(value, indent=2, ensure_ascii=False).encode()
        self.storage.write(join(self.storage.root, *names), data + b"\n")

    def check_place(self) -> None:
        """Raises `RunFolderError` where a file stands in the folder's place, or in that of one above it."""
        if not self.storage.is_local:
            return
        for path in (Path(self.storage.root), *Path(self.storage.root).parents):
            if path.is_file():
                raise RunFolderError(f"output.path: {path} is a file; expected a folder. Use another path.")

    def check_is_run(self, key: str) -> None:
        """Raises `ConfigError` where no run is, in words about the key that names it."""
        if self.read_json("manifest.json") is None:
            raise ConfigError(
                f"{key}: is no run folder, it has no manifest.json, got {self.address}. Name an earlier run's "
                "output.path."
            )

    def manifest(self) -> dict[str, Any] | None:
        """Null before the first start."""
        manifest = self.read_json("manifest.json")
        if manifest is None and self.output_files():
            raise RunFolderError(f"{self.address}: has outputs but no manifest.json. Use a new run folder.")
        return manifest

    def check_manifest(self, manifest: dict[str, Any], config: Config) -> None:
        """Raises `RunFolderError`, naming the key, when the run was started with another configuration."""
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise RunFolderError(
                f"{self.address}: was written with output schema {manifest.get('schema_version')}, "
                f"expected {SCHEMA_VERSION}. Use a new run folder."
            )
        before, now = manifest["identity"], identity(config)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise RunFolderError(
                    f"{self.address}: was started with another configuration "
                    f"({key}: {_shown(before.get(key))} -> {_shown(now.get(key))}). "
                    "Use a new run folder, or restore the old value."
                )

    def start(self, config: Config, plan: Plan, provenance: dict[str, Any]) -> None:
        """Store what the run is."""
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": fingerprint(config),
            "config": public_dict(config),
            "identity": identity(config),
            **provenance,
            "plan": plan.to_dict(),
        }
        self.write_json(manifest, "manifest.json")

    def write_shard(self, shard: Shard, table: pa.Table, timing: ShardTiming | None = None) -> Totals:
        """Store one shard's rows."""
        totals = Totals.of(table)
        notes = timing.to_metadata() if timing else {}
        self.storage.write(join(self.outputs, shard.output_name), encode([table], totals, notes))
        return totals

    def finished(self, plan: Plan, known: Finished | None = None) -> Finished:
        """Shards in whole output files; the footers of those in `known` are not read again."""
        return finished_in(self.storage, self.output_files(), plan, known)

    def output_files(self) -> list[OutputFile]:
        """As listed; not looked into."""
        return output_files(self.storage, self.outputs)

    def files_by_position(self) -> dict[Position, OutputFile]:
        """By their first shard, without parts that a merged file holds too; told by names alone."""
        files = self.output_files()
        parts = {file.first: file for file in files if not file.is_merged}
        merged = [file for file in files if file.is_merged]
        for position in positions_held(merged, sorted(parts)):
            del parts[position]
        return parts | {file.first: file for file in merged}

    def footers(self) -> dict[Position, dict[str, Any]]:
        """What was noted in the footer of each output file, by the position of its first shard."""
        files = self.files_by_position()
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip(sorted(files), pool.map(self._footer, (files[at] for at in sorted(files))), strict=True))

    def _footer(self, file: OutputFile) -> dict[str, Any]:
        """By key; a key that is missing or damaged is left out."""
        with self.storage.open_raw(file.path) as stream:
            try:
                metadata = pq.read_metadata(stream).metadata or {}
            except pa.ArrowInvalid:
                return {}
        notes = {}
        for key, value in metadata.items():
            with suppress(ValueError):
                notes[key.decode()] = json.loads(value)
        return notes

    def read_outputs(
        self, columns: Sequence[str] | None, rows: int = BATCH_ROWS, positions: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[tuple[int, ...], pa.RecordBatch]]:
        """Output files in pieces of at most `rows`, each with its place: (file, index, piece), of its first shard.

        Without `columns` all are read; with `positions` only those files.
        """
        files = self.files_by_position()
        for position in sorted(files) if positions is None else positions:
            file = files[position]
            with self.storage.open_raw(file.path) as stream:
                try:
                    pieces = pq.ParquetFile(stream).iter_batches(
                        rows, columns=None if columns is None else list(columns)
                    )
                    yield from (((*position, number), piece) for number, piece in enumerate(pieces))
                except pa.ArrowInvalid as error:
                    raise RunFolderError(
                        f"{self.address}/outputs/{base_name(file.path)}: cannot be read: {error}. "
                        "Remove it and run again."
                    ) from None

    def clean(self, plan: Plan | None = None) -> int:
        """Remove what killed processes left: half-written files, and parts that a merged file holds; returns how many.

        Only for the holder of the lease: another process may be writing those files.
        """
        leftovers = [
            file.path
            for folder in (self.storage.root, self.outputs, *(join(self.storage.root, name) for name in SUBFOLDERS))
            for file in self.storage.files(folder)
            if base_name(file.path).startswith(TEMPORARY_PREFIX)
        ]
        if plan is not None:
            leftovers += [file.path for file in redundant(self.storage, self.output_files(), plan)]
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self.storage.delete, leftovers))
        return len(leftovers)

    def write_attempt(self, number: int, record: dict[str, Any]) -> None:
        """What one start of the driver did so far."""
        self.write_json(record, "attempts", f"{number:04d}.json")

    def attempts(self) -> list[dict[str, Any]]:
        """Records of all starts, oldest first."""
        files = self.storage.files(join(self.storage.root, "attempts"))
        names = [base_name(file.path) for file in files if not base_name(file.path).startswith(TEMPORARY_PREFIX)]
        return [record for name in names if (record := self.read_json("attempts", name)) is not None]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
