"""What an earlier run said of rows: found by id wherever it stands, in whatever files."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmasd.config import Config, from_dict
from cmasd.core import Result, RowError
from cmasd.errors import ConfigError
from cmasd.io.compaction import compact
from cmasd.io.earlier import EarlierRun, Said, count_known, earlier_run
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import look_at
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.schema import Level
from tests.faulty_s3 import BUCKET, faulty_s3

IDS = [f"r{number}" for number in range(14)]
FAILED, CUT = "r3", "r5"


def config(folder: Path, ids: list[Any], name: str = "run", rows_per_shard: int = 4, **sections: Any) -> Config:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": one, "text": "a"}) + "\n" for one in ids))
    output = {"path": str(folder / name), "rows_per_shard": rows_per_shard}
    return from_dict({"input": {"path": str(path), "id_column": "id"}, "output": output, **sections})


def result_of(number: int, key: str, level: Level) -> Result:
    reason: Any = "length" if key == CUT else "stop"
    ids = np.array([number, number + 1], dtype=np.int32)
    return Result(0, ids, reason, 1, 2, 0, 0, float("nan"), 0.0, None, None) if level == "none" else traced(ids, reason)


def traced(ids: Any, reason: Any) -> Result:
    from cmasd.signals import IterationTrace, TokenTrace

    nothing = np.zeros(2, dtype=np.float32)
    return Result(
        *(0, ids, reason, 1, 2, 0, 0, float("nan"), 0.0),
        *(IterationTrace(*[nothing] * IterationTrace.width()), TokenTrace(*[nothing] * TokenTrace.width())),
    )


def decoded(folder: Path, ids: list[Any], level: Level = "token", **sections: Any) -> EarlierRun:
    """A complete run that says `out ID`."""
    asked = config(folder, ids, **sections)
    run = look_at(asked)
    run.folder.start(asked, run.plan, {})
    for shard in run.plan.shards():
        rows = [
            Row(one, RowError("read", "no"), None)
            if one == FAILED
            else Row(one, result_of(number, str(one), level), f"out {one}")
            for number, one in enumerate(ids[shard.start : shard.stop], start=shard.start)
        ]
        id_type = run.plan.spec.id_type
        run.folder.write_shard(shard, record(rows, level, id_type=id_type))
    return EarlierRun(asked.output.path)


def said(number: int) -> Said | None:
    one = IDS[number]
    return None if one == FAILED else Said(f"out {one}", [number, number + 1], one != CUT)


@pytest.mark.parametrize("near", [(0, 0), (0, 2), (0, 9), (7, 0)])
def test_rows_are_found_by_id_wherever_they_are(near: tuple[int, int], tmp_path: Path) -> None:
    earlier = decoded(tmp_path, IDS)
    assert earlier.of(["r9", "r3", "strange", None, "r0", "r5"], near) == [said(9), None, None, None, said(0), said(5)]
    assert earlier.of(list(reversed(IDS)), near) == [said(number) for number in reversed(range(14))]
    assert earlier.of([], near) == []


def test_rows_at_the_same_place_need_no_index(tmp_path: Path) -> None:
    earlier = decoded(tmp_path, IDS)
    assert earlier.of(IDS[8:12], (0, 2)) == [said(number) for number in range(8, 12)]
    assert earlier._index is None
    assert earlier.of(IDS[7:12], (0, 2))[0] == said(7)
    assert earlier._index is not None


def test_compacted_files_are_read_by_row_group(tmp_path: Path) -> None:
    decoded(tmp_path, IDS)
    compact(str(tmp_path / "run"), 10**9)
    earlier = EarlierRun(str(tmp_path / "run"))
    assert len(RunFolder(str(tmp_path / "run")).output_files()) == 1
    assert earlier.of(IDS, (0, 1)) == [said(number) for number in range(14)]


def test_a_run_that_kept_no_tokens(tmp_path: Path) -> None:
    earlier = decoded(tmp_path, IDS, level="none")
    assert earlier.of(["r4", "r5"], (0, 1)) == [Said("out r4", None, True), Said("out r5", None, False)]


def test_integer_ids_are_those_of_text(tmp_path: Path) -> None:
    """The same rows may be read as text today, or were then."""
    earlier = decoded(tmp_path, list(range(14)))
    assert earlier.of([7, "7", "07"], (0, 0)) == [Said("out 7", [7, 8], True)] * 2 + [None]


def test_of_an_id_that_comes_twice_one_is_taken(tmp_path: Path) -> None:
    earlier = decoded(tmp_path, ["a", "b", "a", "c", "a"])
    assert earlier.of(["a"], (0, 0)) == [Said("out a", [0, 1], True)]


def test_a_damaged_file_has_no_drafts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = decoded(tmp_path, IDS)
    (tmp_path / "run" / "outputs" / "part-00000-000001.parquet").write_bytes(b"no parquet")
    with caplog.at_level(logging.WARNING):
        assert earlier.of(["r4", "r8"], (0, 1)) == [None, said(8)]
    assert "part-00000-000001.parquet cannot be read" in caplog.text


def test_counts_rows_with_an_output(tmp_path: Path) -> None:
    earlier = decoded(tmp_path, IDS)
    now = config(tmp_path, ["r1", "r3", "new", "r13", "r2"], name="now", rows_per_shard=2)
    run = look_at(now)
    assert count_known(now, run.plan, run.todo, earlier) == (3, 5)
    assert count_known(now, run.plan, run.todo[1:2], earlier) == (1, 2)


def test_of_many_rows_some_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmasd.io.earlier.MOST_COUNTED", 6)
    earlier = decoded(tmp_path, IDS)
    now = config(tmp_path, [f"r{number}" for number in range(100)], name="now", rows_per_shard=10)
    run = look_at(now)
    known, looked_at = count_known(now, run.plan, run.todo, earlier)
    assert 0 < known < looked_at < 30


def test_it_is_asked_only_for_drafts(tmp_path: Path) -> None:
    decoded(tmp_path, IDS)
    asked = {"kind": ["previous", "copy"], "previous": str(tmp_path / "run")}
    assert earlier_run(config(tmp_path, IDS, name="now", drafter=asked)) is not None
    assert earlier_run(config(tmp_path, IDS, name="now", drafter=asked, policy={"kind": "plain"})) is None
    assert earlier_run(config(tmp_path, IDS, name="now")) is None


def test_a_run_on_s3(tmp_path: Path) -> None:
    with faulty_s3():
        output = {"path": f"s3://{BUCKET}/earlier", "rows_per_shard": 4}
        earlier = decoded(tmp_path, IDS, output=output)
        assert earlier.of(["r9", "r3", "r0"], (0, 2)) == [said(9), None, said(0)]
        with pytest.raises(ConfigError, match=r"^drafter\.previous: is no run folder, .*s3://"):
            EarlierRun(f"s3://{BUCKET}/nothing")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^drafter\.previous: is no run folder, .* got .*/nothing\. Name an earlier"):
        EarlierRun(str(tmp_path / "nothing"))
