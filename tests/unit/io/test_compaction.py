"""Few large files instead of many small ones: the same rows, whatever is killed, whoever resumes."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from cmasd.config import Config
from cmasd.errors import RunFolderError, RunInUseError
from cmasd.io import compaction
from cmasd.io.compaction import compact
from cmasd.io.lease import Lease, newest_lease
from cmasd.io.plan import Plan
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import look_at
from cmasd.io.status import status
from cmasd.io.storage import Storage
from tests.unit.io.test_runs import config, finish, started


def complete(folder: Path, rows: int = 42, **output: object) -> tuple[Config, RunFolder, Plan]:
    asked = config(folder, rows, **output)
    run, plan = started(asked)
    for shard in plan.shards():
        finish(run, shard)
    return asked, run, plan


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "outputs").iterdir())


def test_the_same_rows_in_the_same_order_with_the_same_totals(tmp_path: Path) -> None:
    asked, folder, _plan = complete(tmp_path)
    rows, before = pads.dataset(tmp_path / "run" / "outputs").to_table(), look_at(asked)
    size = max(file.bytes for file in folder.output_files())
    done = compact(folder.address, 4 * size)
    assert (done.files_before, done.rows) == (11, 42)
    assert (
        names(tmp_path)
        == [
            "merged-00000-000000-00000-000003.parquet",
            "merged-00000-000004-00000-000007.parquet",
            "merged-00000-000008-00000-000010.parquet",
        ][: done.files_after]
    )
    after = pads.dataset(tmp_path / "run" / "outputs").to_table()
    assert after.equals(rows)
    assert after.schema.equals(rows.schema, check_metadata=False)
    schema = pq.read_schema(tmp_path / "run" / "outputs" / names(tmp_path)[0])
    assert (schema.metadata or {})[b"cmasd.schema_version"] == b"6"
    again = look_at(asked)
    assert (again.todo, again.done) == ([], before.done)
    state = status(folder.address)
    assert (state["shards_done"], state["rows_done"], state["files"]) == (11, 42, done.files_after)
    assert compact(folder.address, 4 * size).rows == 0, "there is nothing more to merge"


def test_an_unfinished_run_is_merged_around_its_gaps_and_resumed(tmp_path: Path) -> None:
    asked, folder, plan = complete(tmp_path)
    shards = list(plan.shards())
    for index in (3, 5):
        (tmp_path / "run" / "outputs" / shards[index].output_name).unlink()
    compact(folder.address, 10**9)
    assert names(tmp_path) == [
        "merged-00000-000000-00000-000002.parquet",
        "merged-00000-000006-00000-000010.parquet",
        "part-00000-000004.parquet",
    ]
    run = look_at(asked)
    assert run.todo == [shards[3], shards[5]]
    assert status(folder.address)["shards_done"] == 9
    finish(folder, shards[3])
    finish(folder, shards[5])
    assert look_at(asked).todo == []
    assert folder.finished(plan, known=run.finished) == folder.finished(plan)
    compact(folder.address, 10**9)
    assert len(names(tmp_path)) == 3
    assert look_at(asked).done.rows == 42


@pytest.mark.parametrize("killed_at", range(13))
def test_a_kill_at_any_step_leaves_every_row_and_the_next_command_tidies(
    tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write and every removal in turn is the last thing that happens."""
    asked, folder, _plan = complete(tmp_path)
    steps = 0

    class Killed(BaseException):
        pass

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > killed_at:
            raise Killed

    def counted(name: str) -> None:
        original = getattr(Storage, name)

        def act(self: Storage, path: str, *data: bytes) -> None:
            if "/outputs/" in path:
                step()
            original(self, path, *data)

        monkeypatch.setattr(Storage, name, act)

    with monkeypatch.context() as patch:
        monkeypatch = patch
        monkeypatch.setattr(compaction, "READERS", 1)
        counted("write")
        counted("delete")
        try:
            compact(folder.address, 10**9)
        except Killed:
            assert killed_at < 12
        else:
            assert killed_at == 12, "one write and eleven removals"
    run = look_at(asked)
    assert (run.todo, run.done.rows) == ([], 42)
    assert status(folder.address)["shards_done"] == 11
    compact(folder.address, 10**9)
    assert names(tmp_path) == ["merged-00000-000000-00000-000010.parquet"]
    ids = pads.dataset(tmp_path / "run" / "outputs").to_table()["id"].to_pylist()
    assert len(ids) == 42


def test_a_late_write_beside_a_merged_file_is_removed_by_the_next_command(tmp_path: Path) -> None:
    asked, folder, plan = complete(tmp_path)
    compact(folder.address, 10**9)
    finish(folder, list(plan.shards())[5])
    run = look_at(asked)
    assert (run.todo, run.done.rows) == ([], 42), "held twice, counted once"
    assert folder.clean(plan) == 1
    assert len(names(tmp_path)) == 1


def test_a_damaged_merged_file_does_not_count(tmp_path: Path) -> None:
    asked, folder, plan = complete(tmp_path)
    compact(folder.address, 10**9)
    path = tmp_path / "run" / "outputs" / names(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert len(look_at(asked).todo) == 11
    finish(folder, next(plan.shards()))
    assert folder.clean(plan) == 0
    assert len(look_at(asked).todo) == 10


def test_a_run_in_progress_is_left_alone(tmp_path: Path) -> None:
    _asked, folder, _plan = complete(tmp_path)
    with Lease(folder.storage, folder.address, "run", after=None), pytest.raises(RunInUseError):
        compact(folder.address, 10**9)
    assert len(names(tmp_path)) == 11
    with pytest.raises(RunFolderError, match="is not a run folder"):
        compact(str(tmp_path / "nowhere"), 1)
    compact(folder.address, 10**9)
    released = newest_lease(folder.storage)
    assert released is not None
    assert (released.verb, released.is_live) == ("compact", False)


def test_many_files_and_samples(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(number * 7)))
    asked = config(tmp_path)
    asked = replace(asked, input=replace(asked.input, path=str(source), sample=0.6))
    folder, plan = started(asked)
    shards = list(plan.shards())
    assert 2 < len(shards) < 13
    for shard in shards:
        finish(folder, shard)
    compact(folder.address, 10**9)
    assert len(names(tmp_path)) == 1
    assert look_at(asked).todo == []
    state = status(folder.address)
    assert (state["shards_done"], state["rows_done"]) == (len(shards), plan.rows)
