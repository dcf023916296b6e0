"""Ray Data's view of a plan: one read task per input file with unfinished shards, one row per shard.

A shard's rows travel inside one value, so Ray Data's splitting and merging of blocks cannot tear it apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from cmasd.config.tree import Config
from cmasd.io.lease import Watch
from cmasd.io.plan import FilePlan, Plan, Shard, source_of
from cmasd.io.shards import read_shards
from cmasd.pipeline.blocks import to_block
from cmasd.pipeline.decoding import QUESTION

STOP_LOOKED_FOR_SECONDS = 1.0
"""While a reader waits."""


@dataclass(frozen=True)
class FileTask:
    """What one read task does."""

    config: Config
    plan: FilePlan
    todo: frozenset[int]
    """Indices of the file's unfinished shards."""
    watch: Watch
    gate: Any = None
    """Asked before each shard; see `cmasd.pipeline.gate`."""

    @property
    def rows(self) -> int:
        """Shards, each of which is a row."""
        return len(self.todo)

    def __call__(self) -> Iterable[pa.Table]:
        """Yield the file's unfinished shards, until told to stop."""
        source = source_of(self.config, self.plan.planned.file)
        for shard, rows in read_shards(self.plan, source, self.todo):
            if not self._may_pass(shard):
                return
            yield to_block(shard, rows)

    def _may_pass(self, shard: Shard) -> bool:
        """Waits at the gate; False once told to stop, since nothing leaves any more that would open it."""
        if self.gate is not None:
            asked = self.gate.enter.remote(shard.file, shard.index)
            while not ray.wait([asked], timeout=STOP_LOOKED_FOR_SECONDS)[0]:
                if self.watch.says_stop():
                    return False
        return not self.watch.says_stop()


@dataclass(frozen=True)
class LastTask:
    """The read task behind all others, which may hand out the question."""

    watch: Watch
    gate: Any
    rows: int = 1

    def __call__(self) -> Iterable[pa.Table]:
        """Yield it when it is asked."""
        asked = self.gate.wanted.remote()
        while not ray.wait([asked], timeout=STOP_LOOKED_FOR_SECONDS)[0]:
            if self.watch.says_stop():
                return
        if ray.get(asked):
            yield to_block(QUESTION, pa.table({}))


class ShardSource(Datasource):
    """All unfinished shards."""

    def __init__(
        self, config: Config, plan: Plan, todo: Iterable[Shard], watch: Watch, gate: Any = None, asks: bool = False
    ) -> None:
        """`asks`: whether there may be a question behind them; there is a gate then."""
        super().__init__()  # type: ignore[no-untyped-call]
        by_file: dict[int, set[int]] = {}
        for shard in todo:
            by_file.setdefault(shard.file, set()).add(shard.index)
        self.tasks: list[FileTask | LastTask] = [
            FileTask(config, plan.part(number), frozenset(todo), watch, gate)
            for number, todo in sorted(by_file.items())
        ]
        if asks:
            self.tasks.append(LastTask(watch, gate))

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One per file, whatever the parallelism asked for."""
        return [ReadTask(task, BlockMetadata(task.rows, None, None, None)) for task in self.tasks]
