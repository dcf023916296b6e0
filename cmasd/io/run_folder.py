"""The folder of a run: `outputs/` (one Parquet file per finished shard), `manifest.json`, `attempts/`, `summary.json`.

An output file appears only whole, so its presence marks its shard as done: there is no other record of progress, and
writing a shard twice changes nothing. Files of unknown origin are refused rather than overwritten.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.config import fingerprint, identity, to_dict
from cmasd.config.tree import Config
from cmasd.errors import RunFolderError
from cmasd.io.plan import Plan, Shard
from cmasd.io.storage import TEMPORARY_PREFIX, Storage, base_name, join
from cmasd.telemetry.schema import SCHEMA_VERSION
from cmasd.telemetry.timing import ShardTiming
from cmasd.telemetry.totals import METADATA_KEY, Totals

_OUTPUT_NAME = re.compile(r"part-\d{5}-\d{6}\.parquet")
BATCH_ROWS = 4096
"""Of an output, in memory at once when it is read."""


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

    def manifest(self) -> dict[str, Any] | None:
        """Null before the first start."""
        manifest = self.read_json("manifest.json")
        if manifest is None and self._output_names():
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
            "config": to_dict(config),
            "identity": identity(config),
            **provenance,
            "plan": plan.to_dict(),
        }
        self.write_json(manifest, "manifest.json")

    def write_shard(self, shard: Shard, table: pa.Table, timing: ShardTiming | None = None) -> Totals:
        """Store one shard's rows."""
        totals = Totals.of(table)
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(totals.to_metadata() | (timing.to_metadata() if timing else {}))
        self.storage.write(join(self.outputs, shard.output_name), sink.getvalue().to_pybytes())
        return totals

    def finished(self, plan: Plan) -> dict[Shard, Totals]:
        """Shards with a whole output file of the planned number of rows."""
        names = self._output_names()
        present = [shard for shard in plan.shards() if shard.output_name in names]
        with ThreadPoolExecutor(16) as pool:
            totals = list(pool.map(self._totals, present))
        return {shard: t for shard, t in zip(present, totals, strict=True) if t is not None and t.rows == shard.rows}

    def output_positions(self) -> list[tuple[int, int]]:
        """(file, index) of finished shards, by their names alone."""
        return sorted((int(name[5:10]), int(name[11:17])) for name in self._output_names())

    def footer(self, position: tuple[int, int]) -> dict[str, Any]:
        """What was noted in an output's footer, by key; a key that is missing or damaged is left out."""
        with self.storage.open_raw(join(self.outputs, _output_name(position))) as stream:
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
        """Finished shards in pieces of at most `rows`, each with its place: (file, index, piece).

        Without `columns` all are read; with `positions` only those shards.
        """
        for position in self.output_positions() if positions is None else positions:
            name = _output_name(position)
            with self.storage.open_raw(join(self.outputs, name)) as stream:
                try:
                    pieces = pq.ParquetFile(stream).iter_batches(
                        rows, columns=None if columns is None else list(columns)
                    )
                    yield from (((*position, number), piece) for number, piece in enumerate(pieces))
                except pa.ArrowInvalid as error:
                    raise RunFolderError(
                        f"{self.address}/outputs/{name}: cannot be read: {error}. Remove it and run again."
                    ) from None

    def clean(self) -> int:
        """Remove what killed processes left half-written; returns how many files."""
        leftovers = [
            file.path
            for folder in (self.storage.root, self.outputs, join(self.storage.root, "attempts"))
            for file in self.storage.files(folder)
            if base_name(file.path).startswith(TEMPORARY_PREFIX)
        ]
        for path in leftovers:
            self.storage.delete(path)
        return len(leftovers)

    def write_attempt(self, number: int, record: dict[str, Any]) -> None:
        """What one start of the driver did so far."""
        self.write_json(record, "attempts", f"{number:04d}.json")

    def attempts(self) -> list[dict[str, Any]]:
        """Records of all starts, oldest first."""
        files = self.storage.files(join(self.storage.root, "attempts"))
        names = [base_name(file.path) for file in files if not base_name(file.path).startswith(TEMPORARY_PREFIX)]
        return [record for name in names if (record := self.read_json("attempts", name)) is not None]

    def _output_names(self) -> set[str]:
        names = (base_name(file.path) for file in self.storage.files(self.outputs))
        return {name for name in names if _OUTPUT_NAME.fullmatch(name)}

    def _totals(self, shard: Shard) -> Totals | None:
        path = join(self.outputs, shard.output_name)
        try:
            with self.storage.open_raw(path) as stream:
                metadata = pq.read_metadata(stream)
            totals = Totals.from_dict(json.loads((metadata.metadata or {})[METADATA_KEY.encode()]))
        except (pa.ArrowInvalid, KeyError, ValueError, TypeError):
            return None
        return totals if totals.rows == metadata.num_rows else None


def _output_name(position: tuple[int, int]) -> str:
    return "part-{:05d}-{:06d}.parquet".format(*position)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def add_up(parts: Iterable[Totals]) -> Totals:
    """Totals over shards."""
    return sum(parts, start=Totals())
