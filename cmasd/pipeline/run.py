"""One start of a run, from a configuration to a summary.

    look -> take the lease -> decode what is missing -> audit -> summarise -> (compare with AR, and add it)

Only the audit decides whether a run is complete: every planned shard is in a file whose footer counts its planned rows,
each with a result or with the error that it has instead. What Ray reports decides nothing, nor does the comparison,
which has its place in the summary or a notice why not.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from cmasd.config.tree import Config
from cmasd.errors import IncompleteRunError, TooManyFailedRowsError
from cmasd.io.changes import changed_since
from cmasd.io.earlier import earlier_run
from cmasd.io.lease import Lease, Watch, newest_lease, refuse_if_live
from cmasd.io.memories import memories_before, own_memories
from cmasd.io.plan import holds_recordings
from cmasd.io.provenance import provenance
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import Run, look_at
from cmasd.pipeline.actors import Cluster
from cmasd.pipeline.attempt import Attempt
from cmasd.pipeline.baseline import Compare, asked_of
from cmasd.pipeline.chosen_place import decided
from cmasd.pipeline.decoding import NOT_COMPARED
from cmasd.pipeline.drain import Drain, Drained
from cmasd.pipeline.estimate import PLACES_PER_SECOND, note_run
from cmasd.pipeline.failures import cause_of
from cmasd.pipeline.local import Here
from cmasd.pipeline.metrics import RunMetrics
from cmasd.pipeline.place import Place
from cmasd.pipeline.resuming import as_started
from cmasd.pipeline.summary import summarise
from cmasd.pipeline.tally import Progress, Tally
from cmasd.telemetry.totals import Totals

_log = logging.getLogger(__name__)


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
        memories_before(config)  # likewise
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
    if memories := own_memories(config):
        memories.trim()
    if state.is_new:
        folder.start(config, state.plan, provenance())
    config = decided(config, state)
    watcher.planned(state)
    tally = Tally(state.plan.rows, state.done)
    tally.notices += changes if state.todo else []
    check_failures(config, tally)
    baseline = _known_baseline(config, folder)
    wants_baseline = compare is not None and config.baseline.rows > 0 and baseline is None and state.plan.rows > 0
    with _place(config, state, watcher, tally, compare if wants_baseline else None) as place:
        if state.todo:
            with _causes(), Attempt(folder, tally, began) as attempt:
                _decode(config, state, place, lease, attempt, watcher, drain)
            folder.clean()  # what actors that died on the way were writing
        lease.check()
        summary = _close(config, state, tally, baseline)
        note_run(config, summary)
        if compare is not None and wants_baseline:
            try:
                baseline, notices = place.compare(state.plan, compare)
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


def _place(
    config: Config, state: Run, watcher: Watcher, tally: Tally, compare: Compare | None
) -> AbstractContextManager[Place]:
    """Here or on a Ray: nothing else of a run asks. `compare` is what will be asked at the end, if anything."""
    if config.actors.local:
        return nullcontext(Here(config, watcher.stage))
    return Cluster(config, watcher.stage, len(state.todo), tally.notices, compare)


def _decode(
    config: Config,
    state: Run,
    place: Place,
    lease: Lease,
    attempt: Attempt,
    watcher: Watcher,
    drain: Drain,
) -> None:
    reports = place.decode(state.plan, state.todo, Watch(state.folder.address, lease.record.number))
    watcher.stage("loading models")
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
    return known if known and known.get("asked") == asked_of(config) else None


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
    if holds_recordings(config, state.plan.format):
        summary["audio_seconds"] = round(totals.input_tokens / PLACES_PER_SECOND, 2)
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
