"""Decoding by actors of a Ray, which is connected to when it is first needed and left at the end.

Ray Data reads, hands shards to a pool of decoders, and brings back one report for each shard that they have written.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from cmasd.config.tree import Config
from cmasd.io.lease import Watch
from cmasd.io.plan import Plan, Shard
from cmasd.io.run_folder import RunFolder
from cmasd.pipeline.baseline import Compare, Compared, compare_from_start
from cmasd.pipeline.cluster import Resources, connected, resources
from cmasd.pipeline.crashes import forget as forget_crashes
from cmasd.pipeline.decoding import Decoding, Question
from cmasd.pipeline.gate import limits, open_gate
from cmasd.pipeline.place import Place, shards_in_flight, slots_at_most
from cmasd.pipeline.report import ShardReport

READERS_PER_ACTOR = 4
"""Input files open at once; reading is far cheaper than decoding."""


class Cluster(Place):
    """A Ray, of this machine alone or of many."""

    def __init__(
        self,
        config: Config,
        stage: Callable[[str], None],
        shards: int,
        notices: list[str],
        compare: Compare | None = None,
    ) -> None:
        """For so many shards; `notices` gets what users should know; `compare` will be asked at the end."""
        super().__init__(config, stage)
        self._asks = compare
        self._decoding: Decoding | None = None
        self._shards = shards
        self._notices = notices
        self._stack = ExitStack()
        self._has: Resources | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def open(self) -> None:
        """Connect."""
        self._connected()

    def _connected(self) -> Resources:
        if self._has is None:
            self.stage("starting Ray")
            self._has = resources(self.config.actors, self._stack.enter_context(connected()))
            self._notices += self._has.notices(self.config.actors, self._shards)
        return self._has

    def decode(self, plan: Plan, todo: list[Shard], watch: Watch) -> Iterator[ShardReport]:
        """See `Place.decode`."""
        decoding = start_decoding(self.config, plan, todo, self._connected(), watch, self._asks)
        self._decoding = self._stack.enter_context(decoding)
        return self._decoding.reports()

    def _compare(self, plan: Plan, compare: Compare) -> Compared:
        """By an actor that has decoded, or else as one task with an actor's resources."""
        import ray

        if self._decoding is not None and self._asks is not None:
            return self._decoding.compare()
        has = self._connected()
        task = ray.remote(num_cpus=has.cpus_each, num_gpus=has.gpus_each, max_retries=1)(compare_from_start)
        compared: Compared = ray.get(task.remote(self.config, plan, compare))
        return compared


def decode_shards(config: Config, plan: Plan, todo: list[Shard], has: Resources, watch: Watch) -> Iterator[ShardReport]:
    """One report per written shard."""
    with start_decoding(config, plan, todo, has, watch) as decoding:
        yield from decoding.reports()


def start_decoding(
    config: Config, plan: Plan, todo: list[Shard], has: Resources, watch: Watch, compare: Compare | None = None
) -> Decoding:
    """The Ray Data pipeline: read tasks, a pool of decoders, and perhaps a comparison by one of them."""
    import ray.data

    from cmasd.pipeline.decoding_actor import DecodingActor
    from cmasd.pipeline.source import ShardSource

    gc.collect()  # a failed run of this process is in a cycle with its exception, and would keep its actors
    in_flight = min(shards_in_flight(config, plan, on_gpu=has.gpus_each > 0), len(todo))
    slots = slots_at_most(config, on_gpu=has.gpus_each > 0)
    least, most = min(has.least_actors, len(todo)), min(has.most_actors, len(todo))
    gate = open_gate(limits(len(todo), most, in_flight, plan.rows_per_shard, slots))
    source = ShardSource(config, plan, todo, watch, gate, asks=compare is not None)
    question = None if compare is None else Question(plan, compare, gate)
    readers = min(READERS_PER_ACTOR * has.most_actors, len(source.tasks))
    # Readers reserve no CPU: they wait most of the time, and must be able to start beside actors that take all CPUs.
    dataset = ray.data.read_datasource(source, override_num_blocks=len(source.tasks), concurrency=readers, num_cpus=0)
    decoded = dataset.map_batches(
        DecodingActor,
        fn_constructor_args=[config, watch, True, question],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=has.cpus_each,
        num_gpus=has.gpus_each,
        compute=ray.data.ActorPoolStrategy(
            min_size=least,
            max_size=most,
            # A cluster starts nodes for actors that wait for room; Ray Data itself asks for none while readers wait.
            initial_size=least if has.is_local else most,
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=in_flight,
            enable_true_multi_threading=True,
        ),
    )
    folder = RunFolder(config.output.path)
    forget_crashes(folder)
    tables = iter(decoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    return Decoding(tables, gate, len(todo), on_end=lambda: forget_crashes(folder))
