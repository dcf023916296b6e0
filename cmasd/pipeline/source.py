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


class ShardSource(Datasource):
    """All unfinished shards."""

    def __init__(self, config: Config, plan: Plan, todo: Iterable[Shard], watch: Watch, gate: Any = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        by_file: dict[int, set[int]] = {}
        for shard in todo:
            by_file.setdefault(shard.file, set()).add(shard.index)
        self.tasks = [
            FileTask(config, plan.part(number), frozenset(todo), watch, gate)
            for number, todo in sorted(by_file.items())
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One per file, whatever the parallelism asked for."""
        return [ReadTask(task, BlockMetadata(len(task.todo), None, None, None)) for task in self.tasks]
