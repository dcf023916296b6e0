"""Where a run decodes: here, in the driver's own process (`local.py`), or on a Ray (`actors.py`); it asks no further.

Also how many shards one decoder works on at once, wherever it is.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from cmasd.config.tree import MOST_SLOTS, Config
from cmasd.io.lease import Watch
from cmasd.io.plan import Plan, Shard
from cmasd.pipeline.baseline import Compare, Compared
from cmasd.pipeline.report import ShardReport

ROWS_IN_FLIGHT_PER_SLOT = 16
"""Rows handed to a decoder per slot: slots stay full across shard borders, by rows of like length."""


class Place(ABC):
    """One of the two."""

    def __init__(self, config: Config, stage: Callable[[str], None]) -> None:
        """`stage` is told what begins."""
        self.config = config
        self.stage = stage

    def open(self) -> None:
        """Whatever is to be there before decoding or comparing; once."""
        return

    @abstractmethod
    def decode(self, plan: Plan, todo: list[Shard], watch: Watch) -> Iterator[ShardReport]:
        """A report for each shard that was written."""

    def compare(self, plan: Plan, compare: Compare) -> Compared:
        """The run's first rows decoded plainly and as configured."""
        self.open()
        self.stage(f"comparing with AR decoding on {min(self.config.baseline.rows, plan.rows)} rows")
        started = time.monotonic()
        result, notices = self._compare(plan, compare)
        if result is not None:
            result["seconds"] = round(time.monotonic() - started, 2)
        return result, notices

    @abstractmethod
    def _compare(self, plan: Plan, compare: Compare) -> Compared: ...


def shards_in_flight(config: Config, plan: Plan, on_gpu: bool = False) -> int:
    """Shards one decoder works on at once."""
    rows = ROWS_IN_FLIGHT_PER_SLOT * slots_at_most(config, on_gpu)
    return config.actors.shards_in_flight or max(2, math.ceil(rows / plan.rows_per_shard))


def slots_at_most(config: Config, on_gpu: bool = False) -> int:
    """Of one decoder; how many fit into memory, only it knows."""
    return config.engine.slots or MOST_SLOTS["cuda" if on_gpu else "cpu"]
