"""Plans and run folders: what is done, what is left, what is refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cmasd.config import Config, from_dict
from cmasd.core import RowError
from cmasd.errors import RunFolderError
from cmasd.io import inputs
from cmasd.io.lease import Lease
from cmasd.io.plan import Plan, Shard, default_rows_per_shard, make_plan
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import look_at
from cmasd.io.status import status
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.totals import METADATA_KEY
from jobs.tables import plan_table


def config(folder: Path, rows: int = 10, **output: object) -> Config:
    path = folder / "in.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(rows)))
    return from_dict(
        {"input": {"path": str(path)}, "output": {"path": str(folder / "run"), "rows_per_shard": 4, **output}}
    )


def finish(folder: RunFolder, shard: Shard) -> None:
    folder.write_shard(shard, record([Row(str(i), RowError("read", "no"), None) for i in range(shard.rows)], "none"))


def started(asked: Config) -> tuple[RunFolder, Plan]:
    run = look_at(asked)
    assert run.is_new
    run.folder.start(asked, run.plan, {})
    return run.folder, run.plan


@pytest.mark.parametrize(("rows", "expected"), [(0, 32), (600, 32), (20_000, 625), (10_000_000, 2048), (10**9, 10_000)])
def test_rows_per_shard(rows: int, expected: int) -> None:
    assert default_rows_per_shard(rows) == expected


def test_shards_cover_every_row_once(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path))
    assert [(shard.start, shard.stop) for shard in plan.shards()] == [(0, 4), (4, 8), (8, 10)]
    assert [shard.output_name for shard in plan.shards()][1] == "part-00000-000001.parquet"


def test_finished_shards_are_subtracted(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    first, second, third = plan.shards()
    finish(folder, second)
    run = look_at(asked)
    assert not run.is_new
    assert run.todo == [first, third]
    assert (run.done.rows, run.done.errors) == (4, 4)
    assert run.plan == plan


def test_files_that_are_not_whole_are_done_again(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    first, second, third = plan.shards()
    for shard in (first, second, third):
        finish(folder, shard)
    outputs = tmp_path / "run" / "outputs"
    (outputs / first.output_name).write_bytes((outputs / first.output_name).read_bytes()[:-10])
    pq.write_table(pq.read_table(outputs / second.output_name), outputs / second.output_name)
    assert look_at(asked).todo == [first, second]


def test_output_files_carry_their_totals_and_the_schema_version(tmp_path: Path) -> None:
    folder, plan = started(config(tmp_path))
    finish(folder, next(plan.shards()))
    metadata = pq.read_metadata(tmp_path / "run" / "outputs" / "part-00000-000000.parquet").metadata
    assert json.loads((metadata or {})[METADATA_KEY.encode()])["errors"] == 4
    schema = pq.read_schema(tmp_path / "run" / "outputs" / "part-00000-000000.parquet")
    assert (schema.metadata or {})[b"cmasd.schema_version"] == b"6"
    assert b"doc" in (schema.field("error").metadata or {})


def test_leftovers_are_removed(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    finish(folder, next(plan.shards()))
    (tmp_path / "run" / "outputs" / ".tmp-part-00000-000001.parquet-1234").write_text("half")
    assert len(look_at(asked).todo) == 2
    assert folder.clean(plan) == 1
    assert [file.name for file in (tmp_path / "run" / "outputs").iterdir()] == ["part-00000-000000.parquet"]


def test_a_changed_configuration_is_refused_by_key(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    changed = replace(asked, policy=replace(asked.policy, kind="fixed"))
    assert look_at(changed).is_new, "nothing is finished yet, so nothing would be mixed"
    finish(folder, next(plan.shards()))
    with pytest.raises(RunFolderError, match=r"another configuration \(policy.kind: goodput -> fixed\)"):
        look_at(changed)


def test_settings_without_effect_on_results_may_change(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    finish(folder, next(plan.shards()))
    allowed = replace(
        asked, actors=replace(asked.actors, count=3), limits=replace(asked.limits, max_failed_fraction=1.0)
    )
    assert len(look_at(allowed).todo) == 2


def test_another_shard_size_is_refused_but_null_takes_the_old_one(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    finish(folder, next(plan.shards()))
    assert look_at(config(tmp_path, rows_per_shard=None)).plan == plan
    with pytest.raises(RunFolderError, match=r"output.rows_per_shard \(4 -> 5\)"):
        look_at(config(tmp_path, rows_per_shard=5))


def test_names_hold_more_than_a_hundred_thousand_files(tmp_path: Path) -> None:
    folder, _plan = started(config(tmp_path))
    shard = Shard(100_000, 1_000_000, 0, 4)
    finish(folder, shard)
    assert [file.first for file in folder.output_files()] == [shard.position]


def test_a_late_write_of_a_driver_thought_dead_changes_nothing(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    for shard in plan.shards():
        finish(folder, shard)
    done = folder.finished(plan)
    finish(RunFolder(folder.address), next(plan.shards()))
    assert folder.finished(plan) == folder.finished(plan, known=done) == done


def test_changed_input_is_refused(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    finish(folder, next(plan.shards()))
    text = (tmp_path / "in.jsonl").read_text()
    (tmp_path / "in.jsonl").write_text(text)
    look_at(asked)
    (tmp_path / "in.jsonl").write_text(text.replace('"9"', '"8"'))
    with pytest.raises(RunFolderError, match=r"in\.jsonl has changed since the run was started"):
        look_at(asked)


def edit(path: Path, place: int) -> None:
    """One byte, none more or less."""
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"!")


@pytest.mark.parametrize("place", [20, 1_100_000])
@pytest.mark.parametrize("check", ["auto", "content"])
def test_an_edit_that_keeps_the_size_is_noticed_wherever_it_is(tmp_path: Path, place: int, check: str) -> None:
    path = tmp_path / "in.txt"
    path.write_text("a line of text\n" * 140_000)
    keys = {"input": {"path": str(path), "change_check": check}, "output": {"path": str(tmp_path / "run")}}
    asked = from_dict(keys)
    folder, plan = started(asked)
    finish(folder, next(plan.shards()))
    assert not look_at(asked).is_new
    edit(path, place)
    with pytest.raises(RunFolderError, match=r"in\.txt has changed since .* \(2100000 bytes -> 2100000\)"):
        look_at(asked)


def test_large_input_is_compared_by_time_and_a_touched_file_may_be_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 1_000_000)
    path = tmp_path / "in.txt"
    path.write_text("a line of text\n" * 140_000)
    os.utime(path, (5, 5.5))
    asked = from_dict({"input": {"path": str(path)}, "output": {"path": str(tmp_path / "run")}})
    folder, plan = started(asked)
    assert "size, modification time and samples" in plan_table(asked, look_at(asked))
    finish(folder, next(plan.shards()))
    edit(path, 1_100_000)
    with pytest.raises(RunFolderError, match=r"in\.txt was modified .* 5\.500000\. .*touch -d @5\.500000 FILE"):
        look_at(asked)
    os.utime(path, (5, 5.5))
    assert not look_at(asked).is_new
    whole = replace(asked, input=replace(asked.input, change_check="content"))
    with pytest.raises(RunFolderError, match=r"\(input\.change_check: auto -> content\)"):
        look_at(whole)
    path.write_text("a line of text\n" * 140_001)
    with pytest.raises(RunFolderError, match="has changed"):
        look_at(asked)


def test_a_plan_says_how_changes_are_told(tmp_path: Path) -> None:
    asked = config(tmp_path)
    assert "\nchanges told by  every byte\n" in plan_table(asked, look_at(asked))


@pytest.mark.parametrize("below", ["", "/run", "/a/b"])
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    asked = config(tmp_path, path=f"{tmp_path}/file{below}")
    with pytest.raises(RunFolderError, match=rf"^output\.path: {tmp_path}/file is a file; expected a folder\."):
        look_at(asked)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        status(f"{tmp_path}/file{below}")
    assert (tmp_path / "file").read_text() == "mine"


def test_outputs_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    finish(folder, next(plan.shards()))
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match=r"has outputs but no manifest\.json"):
        look_at(asked)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    asked = config(tmp_path)
    started(asked)
    (tmp_path / "run" / "manifest.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"run/manifest\.json: is damaged"):
        look_at(asked)


def test_status_reads_the_folder_alone(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder, plan = started(asked)
    assert status(folder.address)["state"] == "planned"
    first, second, third = plan.shards()
    finish(folder, third)
    totals = {"rows": 2, "errors": 2, "output_tokens": 20}
    record = {"number": 1, "state": "running", "error": None, "started_at": "2020-01-01T00:00:00+00:00"}
    record |= {"updated_at": "2020-01-01T00:00:10+00:00", "seconds": 10.0, "totals": totals, "errors_before": 1}
    folder.write_attempt(1, record)
    state = status(folder.address)
    assert (state["state"], state["rows_done"], state["rows"], state["shards_done"], state["errors"]) == (
        "killed",
        2,
        10,
        1,
        3,
    )
    assert (state["tokens_per_second"], state["eta_seconds"]) == (2.0, 40.0)
    finish(folder, first)
    finish(folder, second)
    assert status(folder.address)["state"] == "killed", "the summary closes a run"
    with Lease(folder.storage, folder.address, "run", after=None) as lease:
        state = status(folder.address)
        assert (state["state"], state["holder"]["pid"]) == ("running", lease.record.pid)
    folder.write_json({}, "summary.json")
    state = status(folder.address)
    assert (state["state"], state["holder"]) == ("complete", None)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        status(str(tmp_path / "elsewhere"))
