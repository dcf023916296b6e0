"""How a start of a run ends: audited, asked to, or by an error; and what its record says then."""

import json
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cmasd.config import Config, from_dict
from cmasd.core import RowError
from cmasd.errors import IncompleteRunError, ModelError
from cmasd.io.changes import changed_since
from cmasd.io.lease import Lease, Watch
from cmasd.io.plan import make_plan
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import Run, look_at
from cmasd.io.storage import Storage
from cmasd.pipeline.attempt import Attempt
from cmasd.pipeline.drain import Drain, Drained
from cmasd.pipeline.run import audit
from cmasd.pipeline.source import ShardSource
from cmasd.pipeline.tally import Tally
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.totals import Totals


def config(folder: Path) -> Config:
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(10)))
    output = {"path": str(folder / "run"), "rows_per_shard": 4}
    return from_dict({"input": {"path": str(folder / "in.jsonl")}, "output": output})


def decoded(folder: Path) -> Run:
    """A run of three shards whose rows all have an error."""
    asked = config(folder)
    run = look_at(asked)
    run.folder.start(asked, run.plan, {})
    for shard in run.plan.shards():
        rows = [Row(str(i), RowError("read", "no"), None) for i in range(shard.rows)]
        run.folder.write_shard(shard, record(rows, "none"))
    return run


@pytest.mark.parametrize("known", [False, True])
def test_the_audit_counts_rows_in_footers(tmp_path: Path, known: bool) -> None:
    decoded(tmp_path)
    run = look_at(config(tmp_path))
    if not known:
        run = Run(run.folder, run.plan, run.folder.finished(make_plan(config(tmp_path))), is_new=False)
    totals = audit(run)
    assert (totals.rows, totals.errors) == (10, 10), "planned = written + recorded errors"


@pytest.mark.parametrize("change", [None, "edited", "removed", "added"])
def test_a_file_that_changes_while_it_is_read_is_told_at_the_end(tmp_path: Path, change: str | None) -> None:
    asked = config(tmp_path)
    run = look_at(asked)
    path = tmp_path / "in.jsonl"
    if change == "edited":
        path.write_text(path.read_text().replace('"9"', '"8"'))
    elif change == "removed":
        path.unlink()
    elif change == "added":
        (tmp_path / "b.jsonl").write_text("{}\n")
    said = changed_since(asked.input, [file.file for file in run.plan.files])
    told = "in.jsonl: changed while the run was reading; its rows may be of either content. "
    assert said == ([f"{told}Decode it again in a new run folder."] if change == "edited" else [])


@pytest.mark.parametrize("damage", ["missing", "short", "not Parquet"])
def test_the_audit_names_what_is_not_there(tmp_path: Path, damage: str) -> None:
    run = decoded(tmp_path)
    path = tmp_path / "run" / "outputs" / "part-00000-000001.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        table = pq.read_table(path)
        run.folder.write_shard(list(run.plan.shards())[1], table.slice(1))
    else:
        path.write_bytes(b"PAR1")
    message = r"1 of 3 shards have no whole output file \(first: part-00000-000001\.parquet\)"
    with pytest.raises(IncompleteRunError, match=message) as caught:
        audit(run)
    assert caught.value.exit_code == 1


def test_a_file_that_vanished_since_the_start_is_missed(tmp_path: Path) -> None:
    decoded(tmp_path)
    run = look_at(config(tmp_path))
    assert run.todo == []
    (tmp_path / "run" / "outputs" / "part-00000-000002.parquet").unlink()
    with pytest.raises(IncompleteRunError):
        audit(run)


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (None, "finished", None),
        (ModelError("no model"), "failed", "no model"),
        (Drained(), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_the_record_of_an_attempt_says_how_it_ended(
    tmp_path: Path, error: BaseException | None, state: str, text: str | None
) -> None:
    folder = RunFolder(str(tmp_path))
    attempt = Attempt(folder, Tally(10, Totals(rows=4, errors=1)))
    try:
        with attempt:
            assert folder.attempts()[0]["state"] == "running"
            if error:
                raise error
    except (ModelError, Drained, KeyboardInterrupt):
        assert error
    (left,) = folder.attempts()
    assert (left["state"], left["error"], left["errors_before"]) == (state, text, 1)


def test_a_drain_is_possible_only_while_shards_are_decoded(tmp_path: Path) -> None:
    drain, storage = Drain(), Storage(str(tmp_path))
    assert not drain.ask(), "there is nothing to finish yet"
    with Lease(storage, "RUN", "run", after=None) as lease:
        told = threading.Event()
        Watch(str(tmp_path), lease.record.number).on_stop(told.set)
        with drain.possible(lease):
            assert drain.ask()
            assert not drain.ask(), "the second signal means it"
            assert told.wait(30)
        assert drain.asked
        assert not drain.ask()


def test_a_run_that_nobody_asked_to_end_leaves_no_mark(tmp_path: Path) -> None:
    drain, storage = Drain(), Storage(str(tmp_path))
    with Lease(storage, "RUN", "run", after=None) as lease, drain.possible(lease):
        pass
    assert not drain.asked
    assert [path.name for path in (tmp_path / "leases").iterdir()] == ["000001.json"]


def test_readers_hand_out_nothing_once_told_to_stop(tmp_path: Path) -> None:
    asked = config(tmp_path)
    plan = make_plan(asked)
    watch = Watch(asked.output.path, 1)
    (task,) = ShardSource(asked, plan, plan.shards(), watch).get_read_tasks(1)
    assert sum(block.num_rows for block in task()) == 3
    told = threading.Event()
    watch.on_stop(told.set)
    with Lease(Storage(asked.output.path), "RUN", "run", after=None) as lease:
        lease.ask_to_stop()
        assert told.wait(30)
    assert list(task()) == []
