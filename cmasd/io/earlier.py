"""The outputs of an earlier run, by the id of their rows: drafts for a run over the same rows.

Of most shards the rows are in the earlier run's file of the same position, which is looked into first. For rows that
are not an index is made, once for each process: one pass over the ids of all files, and 16 bytes for each row. A file
that cannot be read has no drafts, and is logged: a run does not depend on them.
"""

import logging
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cmasd.config.tree import Config
from cmasd.io.outputs import OutputFile, Position
from cmasd.io.plan import Plan, Shard
from cmasd.io.run_folder import RunFolder
from cmasd.io.samples import spread_tables, tables

_log = logging.getLogger(__name__)

Id = str | int | None
BATCH_ROWS = 1024
MOST_COUNTED = 100_000
"""Rows that are looked up to say how many an earlier run has."""
COLUMNS = ("id", "output", "finish_reason", "token_id")


class Said(NamedTuple):
    """Of one row."""

    output: str
    token_ids: list[int] | None
    """Null where the run kept none (`telemetry.level`)."""
    has_ended: bool
    """Else it was cut at the token limit."""


@dataclass(frozen=True)
class _Index:
    """Where each id is, by its hash, in rising order."""

    hashes_N: NDArray[np.int64]
    files_N: NDArray[np.int32]
    groups_N: NDArray[np.int32]
    """Row groups of the file."""

    def find(self, ids: Collection[str]) -> tuple[list[str], NDArray[np.int64]]:
        """Those of the ids that are there, and their places."""
        listed = sorted(ids)
        hashes = np.array([hash(one) for one in listed], dtype=np.int64)
        places = np.searchsorted(self.hashes_N, hashes)
        there = places < len(self.hashes_N)
        there[there] = self.hashes_N[places[there]] == hashes[there]
        return [one for one, is_there in zip(listed, there, strict=True) if is_there], places[there]


class EarlierRun:
    """Asked from several threads."""

    def __init__(self, address: str) -> None:
        """Raises `ConfigError` where there is none."""
        self._folder = RunFolder(address)
        self._folder.check_is_run("drafter.previous")
        self._files = self._folder.files_by_position()
        self._positions = sorted(self._files)
        self._lock = threading.Lock()
        self._index: _Index | None = None

    def of(self, ids: Sequence[Id], near: Position) -> list[Said | None]:
        """What it said of these rows; `near`: where the run of today has them."""
        wanted = {str(one) for one in ids if one is not None}
        at = bisect_right(self._positions, near) - 1
        file = self._files[self._positions[at]] if at >= 0 else None
        found: dict[str, Said] = {}
        if file is not None and not file.is_merged:
            found = self._read(file, wanted)
        if len(found) < len(wanted):
            found |= self._look_up(wanted - found.keys())
        return [found.get(str(one)) for one in ids]

    def count(self, ids: Sequence[Id]) -> int:
        """How many of these rows it has an output of."""
        known = set(self._indexed().find({str(one) for one in ids if one is not None})[0])
        return sum(str(one) in known for one in ids)

    def _look_up(self, wanted: Collection[str]) -> dict[str, Said]:
        index = self._indexed()
        there, places = index.find(wanted)
        groups: dict[int, set[int]] = {}
        for place in places.tolist():
            groups.setdefault(int(index.files_N[place]), set()).add(int(index.groups_N[place]))
        found: dict[str, Said] = {}
        for number, of_file in sorted(groups.items()):
            found |= self._read(self._files[self._positions[number]], set(there), sorted(of_file))
        return found

    def _read(self, file: OutputFile, wanted: Collection[str], groups: list[int] | None = None) -> dict[str, Said]:
        found: dict[str, Said] = {}
        for _, batch in self._batches(file, COLUMNS, groups):
            ids = batch.column("id").to_pylist()
            rows = [i for i, one in enumerate(ids) if str(one) in wanted]
            if not rows:
                continue
            taken = batch.take(pa.array(rows))
            outputs, reasons = (taken.column(name).to_pylist() for name in ("output", "finish_reason"))
            tokens = taken.column("token_id").to_pylist() if "token_id" in taken.schema.names else [None] * len(rows)
            for row, output, reason, kept in zip(rows, outputs, reasons, tokens, strict=True):
                if output is not None:
                    found.setdefault(str(ids[row]), Said(output, kept, reason == "stop"))
        return found

    def _indexed(self) -> _Index:
        with self._lock:
            if self._index is None:
                self._index = self._make_index()
            return self._index

    def _make_index(self) -> _Index:
        hashes, files, groups = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for number, position in enumerate(self._positions):
            for group, batch in self._batches(self._files[position], ("id", "finish_reason")):
                pairs = zip(batch.column("id").to_pylist(), batch.column("finish_reason").to_pylist(), strict=True)
                of_batch = [hash(str(one)) for one, reason in pairs if reason != "error" and one is not None]
                hashes.append(np.array(of_batch, dtype=np.int64))
                files.append(np.full(len(of_batch), number, dtype=np.int32))
                groups.append(np.full(len(of_batch), group, dtype=np.int32))
        hashes_N = np.concatenate(hashes)
        order_N = np.argsort(hashes_N, kind="stable")
        return _Index(hashes_N[order_N], np.concatenate(files)[order_N], np.concatenate(groups)[order_N])

    def _batches(
        self, file: OutputFile, columns: Sequence[str], groups: list[int] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Pieces of some row groups, by default of all, each with the number of its group."""
        try:
            with self._folder.storage.open_raw(file.path) as stream:
                parquet: Any = pq.ParquetFile(stream)
                names = [name for name in columns if name in parquet.schema_arrow.names]
                for group in range(parquet.num_row_groups) if groups is None else groups:
                    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
                        yield group, batch
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            _log.warning("drafter.previous: %s cannot be read, so its rows have no drafts: %s", file.path, error)


def earlier_run(config: Config) -> EarlierRun | None:
    """The run that `drafter.previous` names, if it is asked for drafts."""
    drafter = config.drafter
    if drafter.previous is None or "previous" not in drafter.kinds or config.policy.kind == "plain":
        return None
    return EarlierRun(drafter.previous)


def count_known(config: Config, plan: Plan, todo: Collection[Shard], earlier: EarlierRun) -> tuple[int, int]:
    """Of how many rows that are left an earlier run has an output, and how many were looked up; of many, some."""
    rows = sum(shard.rows for shard in todo)
    pieces = tables(config, plan, set(todo)) if rows <= MOST_COUNTED else spread_tables(config, plan, MOST_COUNTED)
    known = looked_at = 0
    for piece in pieces:
        ids = piece["id"].to_pylist()
        known, looked_at = known + earlier.count(ids), looked_at + len(ids)
    return known, looked_at
