"""Decoding in the driver's own process, without Ray: for inputs that are decoded before a cluster has started.

The same decoder as an actor's, fed by the same reader, shard by shard; what it writes, resumes and stops by is the same
folder. What Ray adds is missing: other processes and nodes, a new actor where one dies (the command has to be given
again), and metrics.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.io.lease import Watch
from cmasd.io.plan import Plan, Shard, source_of
from cmasd.io.shards import read_shards
from cmasd.pipeline.baseline import Compare, Compared, compare_from_start, compare_with
from cmasd.pipeline.blocks import to_block
from cmasd.pipeline.engine_thread import set_torch_threads
from cmasd.pipeline.place import Place, shards_in_flight
from cmasd.pipeline.report import ShardReport

if TYPE_CHECKING:
    from cmasd.pipeline.decoding_actor import DecodingActor


class Here(Place):
    """One decoder in this process."""

    def __init__(self, config: Config, stage: Callable[[str], None]) -> None:
        super().__init__(config, stage)
        self._decoder: DecodingActor | None = None

    def decode(self, plan: Plan, todo: list[Shard], watch: Watch) -> Iterator[ShardReport]:
        """See `Place.decode`; ends early once told to stop."""
        from cmasd.pipeline.decoding_actor import DecodingActor

        decoder = self._decoder = DecodingActor(self.config, watch, owns_process=False)
        in_flight = min(shards_in_flight(self.config, plan), len(todo))
        with ThreadPoolExecutor(in_flight, thread_name_prefix="shard") as pool, _stopped(decoder, pool):
            waiting: set[Future[pa.Table]] = set()
            for block in self._blocks(plan, todo):
                if watch.says_stop():
                    break
                waiting.add(pool.submit(decoder, block))
                if len(waiting) >= in_flight:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from _reports(done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from _reports(done)

    def _blocks(self, plan: Plan, todo: list[Shard]) -> Iterator[pa.Table]:
        for number in sorted({shard.file for shard in todo}):
            file = plan.part(number)
            missing = {shard.index for shard in todo if shard.file == number}
            for shard, rows in read_shards(file, source_of(self.config, file.planned.file), missing):
                yield to_block(shard, rows)

    def _compare(self, plan: Plan, compare: Compare) -> Compared:
        """With the pair that has decoded, where one has."""
        if self._decoder is None:
            return compare_from_start(self.config, plan, compare)
        set_torch_threads(self.config.actors.cpus_each)
        return compare_with(self._decoder.pair, self.config, plan, compare)


@contextmanager
def _stopped(decoder: "DecodingActor", pool: ThreadPoolExecutor) -> Iterator[None]:
    """Where whoever reads the reports ends early, by a signal or an error, nobody waits for what is being decoded."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        decoder.stop()
        raise


def _reports(done: set[Future[pa.Table]]) -> Iterator[ShardReport]:
    for future in done:
        yield from ShardReport.from_table(future.result())
