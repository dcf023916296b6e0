"""One start of a run, from a configuration to a summary.

    look -> take the lease -> (connect -> decode what is missing) -> audit -> summarise -> (compare with AR, and add it)

Only the audit decides whether a run is complete: every planned shard is in a file whose footer counts its planned rows,
each with a result or with the error that it has instead. What Ray reports decides nothing, nor does the comparison,
which has its place in the summary or a notice why not.
"""

import gc
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from cmasd.config.tree import MOST_SLOTS, Config
from cmasd.errors import IncompleteRunError, TooManyFailedRowsError
from cmasd.io.changes import changed_since
from cmasd.io.earlier import earlier_run
from cmasd.io.lease import Lease, Watch, newest_lease, refuse_if_live
from cmasd.io.plan import Plan, Shard
from cmasd.io.provenance import provenance
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import Run, look_at
from cmasd.pipeline.attempt import Attempt
from cmasd.pipeline.baseline import Compare, compare_in_cluster
from cmasd.pipeline.cluster import Resources, connected, resources
from cmasd.pipeline.crashes import forget as forget_crashes
from cmasd.pipeline.decoding import NOT_COMPARED, Answer, Decoding, Question
from cmasd.pipeline.drain import Drain, Drained
from cmasd.pipeline.estimate import note_run
from cmasd.pipeline.failures import cause_of
from cmasd.pipeline.gate import limits, open_gate
from cmasd.pipeline.local import Here
from cmasd.pipeline.metrics import RunMetrics
from cmasd.pipeline.report import ShardReport
from cmasd.pipeline.resuming import as_started
from cmasd.pipeline.summary import summarise
from cmasd.pipeline.tally import Progress, Tally
from cmasd.telemetry.totals import Totals

_log = logging.getLogger(__name__)

ROWS_IN_FLIGHT_PER_SLOT = 16
"""Rows handed to an actor per slot: slots stay full across shard borders, by rows of like length."""

READERS_PER_ACTOR = 4
"""Input files open at once; reading is far cheaper than decoding."""


class Watcher:
    """Told how a run goes; the default keeps quiet."""

    def planned(self, run: Run) -> None:
        """Before anything starts."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def progress(self, progress: Progress) -> None:
        """Another shard is done."""


def run(
    config: Config, compare: Compare | None = None, watcher: Watcher | None = None, drain: Drain | None = None
) -> dict[str, Any]:
    """Complete the run and return its summary; raises a `CmasdError` when that fails, `Drained` when asked to end."""
    began = time.time()
    folder = RunFolder(config.output.path)
    seen = newest_lease(folder.storage)
    refuse_if_live(folder.address, seen)
    known, changes = as_started(config)
    state = look_at(known)
    if state.todo:
        earlier_run(config)  # raises where there is none, before anything is written
    with Lease(folder.storage, folder.address, "run", after=seen) as lease:
        return _run(config, state, lease, compare, watcher or Watcher(), drain or Drain(), began, changes)


def _run(
    config: Config,
    state: Run,
    lease: Lease,
    compare: Compare | None,
    watcher: Watcher,
    drain: Drain,
    began: float,
    changes: list[str],
) -> dict[str, Any]:
    folder = state.folder
    folder.clean(state.plan)
    if state.is_new:
        folder.start(config, state.plan, provenance())
    watcher.planned(state)
    tally = Tally(state.plan.rows, state.done)
    tally.notices += changes if state.todo else []
    check_failures(config, tally)
    baseline = _known_baseline(config, folder)
    wants_baseline = compare is not None and config.baseline.rows > 0 and baseline is None and state.plan.rows > 0
    here = Here(config) if config.actors.local else None
    by: Here | Decoding | None = here
    with ExitStack() as stack:
        if state.todo:
            with _causes(), Attempt(folder, tally, began) as attempt:
                by = here or _start(config, state, stack, lease, watcher, tally, compare if wants_baseline else None)
                _decode(config, state, by, lease, attempt, watcher, drain)
        lease.check()
        summary = _close(config, state, tally, baseline)
        note_run(config, summary)
        if compare is not None and wants_baseline:
            try:
                has = _connect(config, state, stack, watcher, tally) if by is None else None
                watcher.stage(f"comparing with AR decoding on {min(config.baseline.rows, state.plan.rows)} rows")
                baseline, notices = _compare(config, state.plan, by, has, compare)
            except Exception as error:  # noqa: BLE001 - whatever it is, the rows are there
                _log.info("the comparison with AR decoding failed", exc_info=error)
                notices = [NOT_COMPARED.format(why=cause_of(error))]
            lease.check()
            summary = _close(config, state, tally, baseline, notices)
    return summary


@contextmanager
def _causes() -> Iterator[None]:
    """Ray's exceptions as the one error that a user can act on."""
    try:
        yield
    except Drained:
        raise
    except Exception as error:
        raise cause_of(error) from error


def _connect(config: Config, state: Run, stack: ExitStack, watcher: Watcher, tally: Tally) -> Resources:
    watcher.stage("starting Ray")
    has = resources(config.actors, stack.enter_context(connected()))
    tally.notices += has.notices(config.actors, len(state.todo))
    return has


def _start(
    config: Config,
    state: Run,
    stack: ExitStack,
    lease: Lease,
    watcher: Watcher,
    tally: Tally,
    compare: Compare | None,
) -> Decoding:
    """The pipeline, which ends with the stack."""
    has = _connect(config, state, stack, watcher, tally)
    watch = Watch(state.folder.address, lease.record.number)
    return stack.enter_context(start_decoding(config, state.plan, state.todo, has, watch, compare))


def _compare(config: Config, plan: Plan, by: Here | Decoding | None, has: Resources | None, compare: Compare) -> Answer:
    """By who has decoded, or else by a task of the cluster."""
    if isinstance(by, Here):
        return by.compare(plan, compare)
    if by is not None:
        return by.compare()
    assert has is not None, "connected just now"
    return compare_in_cluster(config, plan, has, compare)


def _decode(
    config: Config,
    state: Run,
    by: Decoding | Here,
    lease: Lease,
    attempt: Attempt,
    watcher: Watcher,
    drain: Drain,
) -> None:
    """By actors of a cluster, or by this process."""
    watcher.stage("loading models")
    if isinstance(by, Here):
        watch = Watch(state.folder.address, lease.record.number)
        in_flight = min(shards_in_flight(config, state.plan), len(state.todo))
        reports = by.decode(state.plan, state.todo, in_flight, watch)
    else:
        reports = by.reports()
    tally, metrics = attempt.tally, RunMetrics(config.output.path)
    with drain.possible(lease):
        for report in reports:
            tally.add(report)
            progress = tally.progress()
            metrics.update(progress, tally.actors)
            watcher.progress(progress)
            attempt.renew()
            lease.check()
            check_failures(config, tally)
    if drain.asked and tally.rows_left:
        raise Drained


def decode_shards(config: Config, plan: Plan, todo: list[Shard], has: Resources, watch: Watch) -> Iterator[ShardReport]:
    """One report per written shard."""
    with start_decoding(config, plan, todo, has, watch) as decoding:
        yield from decoding.reports()


def start_decoding(
    config: Config, plan: Plan, todo: list[Shard], has: Resources, watch: Watch, compare: Compare | None = None
) -> Decoding:
    """The Ray Data pipeline: read tasks, a pool of decoders, and perhaps a comparison by one of them."""
    import ray.data

    from cmasd.pipeline.decoder import Decoder
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
        Decoder,
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


def shards_in_flight(config: Config, plan: Plan, on_gpu: bool = False) -> int:
    """Shards one actor works on at once."""
    rows = ROWS_IN_FLIGHT_PER_SLOT * slots_at_most(config, on_gpu)
    return config.actors.shards_in_flight or max(2, math.ceil(rows / plan.rows_per_shard))


def slots_at_most(config: Config, on_gpu: bool = False) -> int:
    """Of one actor; how many fit into memory, only the actor knows."""
    return config.engine.slots or MOST_SLOTS["cuda" if on_gpu else "cpu"]


def check_failures(config: Config, tally: Tally) -> None:
    """Raises `TooManyFailedRowsError`."""
    allowed = config.limits.max_failed_fraction * tally.rows_total
    if tally.errors > allowed:
        first = f" The first: {tally.first_failure}." if tally.first_failure else ""
        raise TooManyFailedRowsError(
            f"limits.max_failed_fraction: {tally.errors} of {tally.rows_total} rows failed, "
            f"at most {allowed:g} may ({config.limits.max_failed_fraction:g}).{first}"
        )


def _known_baseline(config: Config, folder: RunFolder) -> dict[str, Any] | None:
    """Of an earlier start, when it was asked for likewise."""
    summary = folder.read_json("summary.json") or {}
    known = summary.get("baseline")
    return known if known and known["rows_asked"] == config.baseline.rows else None


def _close(
    config: Config, state: Run, tally: Tally, baseline: dict[str, Any] | None, remarks: Sequence[str] = ()
) -> dict[str, Any]:
    """`remarks` are notices of this start alone."""
    totals = audit(state)
    earlier = state.folder.read_json("summary.json") or {}
    notices = tally.notices or list(earlier.get("pair_notices", []))
    changed = changed_since(config.input, [file.file for file in state.plan.files]) if state.todo else []
    told = [*state.plan.notices, *changed, *notices, *remarks]
    summary = summarise(config, totals, state.folder.attempts(), tally.before.rows, baseline, told)
    summary["pair_notices"] = notices
    summary["fingerprint"] = (state.folder.manifest() or summary)["fingerprint"]
    state.folder.write_json(summary, "summary.json")
    return summary


def audit(state: Run) -> Totals:
    """Totals over the output files; raises `IncompleteRunError` unless they hold every planned row."""
    folder, plan = state.folder, state.plan
    finished = folder.finished(plan, known=state.finished)
    missing = [shard for shard in plan.shards() if shard not in finished.shards]
    if missing:
        raise IncompleteRunError(
            f"{folder.address}: {len(missing)} of {len(missing) + len(finished.shards)} shards have no whole output "
            f"file (first: {missing[0].output_name}). Run the same command again."
        )
    assert finished.totals.rows == plan.rows, f"{finished.totals.rows} rows in whole files, {plan.rows} planned"
    return finished.totals
