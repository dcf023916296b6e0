"""Shards on their way through Ray Data, without a Ray."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from cmasd.config import Config, from_dict
from cmasd.io.lease import Watch
from cmasd.io.plan import make_plan
from cmasd.pipeline.blocks import from_block
from cmasd.pipeline.place import shards_in_flight
from cmasd.pipeline.source import ShardSource


def config(folder: Path, **sections: object) -> Config:
    for number in range(3):
        text = "".join(json.dumps({"text": f"{number}-{i}"}) + "\n" for i in range(5))
        (folder / f"{number}.jsonl").write_text(text)
    output = {"path": str(folder / "run"), "rows_per_shard": 2}
    return from_dict({"input": {"path": str(folder)}, "output": output, **sections})


def test_read_tasks_yield_one_row_per_unfinished_shard(tmp_path: Path) -> None:
    asked = config(tmp_path)
    plan = make_plan(asked)
    todo = [shard for shard in plan.shards() if (shard.file, shard.index) in {(0, 1), (2, 0), (2, 2)}]
    tasks = ShardSource(asked, plan, todo, Watch(asked.output.path, 1)).get_read_tasks(100)
    assert len(tasks) == 2, "one per file with something to do"
    blocks = [block for task in tasks for block in task()]
    assert [block.num_rows for block in blocks] == [1, 1, 1]
    shards = [pair for block in blocks for pair in from_block(block)]
    assert [shard for shard, _ in shards] == todo
    assert [table["text"].to_pylist() for _, table in shards] == [["0-2", "0-3"], ["2-0", "2-1"], ["2-4"]]
    assert from_block(pa.concat_tables(blocks))[2][0] == todo[2], "blocks may be merged"


@pytest.mark.parametrize(("slots", "asked", "expected"), [(1, None, 8), (32, None, 256), (32, 3, 3)])
def test_shards_in_flight(tmp_path: Path, slots: int, asked: int | None, expected: int) -> None:
    one = config(tmp_path, engine={"slots": slots}, actors={"shards_in_flight": asked})
    assert shards_in_flight(one, make_plan(one)) == expected


@pytest.mark.parametrize(("on_gpu", "expected"), [(False, 256), (True, 8192)])
def test_an_open_number_of_slots_is_fed_as_the_largest(tmp_path: Path, on_gpu: bool, expected: int) -> None:
    one = config(tmp_path, engine={"slots": None})
    assert shards_in_flight(one, make_plan(one), on_gpu) == expected
