"""What rows said, kept beside shards: whole, bounded, and no run depends on it."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.config import from_dict
from cmasd.errors import ConfigError, StorageAccessError
from cmasd.io import memories
from cmasd.io.memories import Memories, memories_before, own_memories
from cmasd.io.plan import Shard
from cmasd.io.run_folder import RunFolder
from cmasd.io.storage import Storage

MANY = 1_000_000


def shard(index: int) -> Shard:
    return Shard(0, index, 0, 1)


def rows(index: int, tokens: int = 4) -> memories.Rows:
    return [([index, 7], list(range(index, index + tokens)))]


def read(folder: Path, most: int = MANY, vocabulary: str = "v") -> list[tuple[list[int], list[int]]]:
    return list(Memories(str(folder), most).read(vocabulary))


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are written within one tick of some clocks."""
    write, ticks = Storage.write, iter(range(10**6))

    def write_later(self: Any, path: str, data: bytes) -> None:
        write(self, path, data)
        when = 1e9 + next(ticks)
        os.utime(path, (when, when))

    monkeypatch.setattr(Storage, "write", write_later)


def test_what_was_written_is_read_in_the_order_in_which_it_was_said(tmp_path: Path) -> None:
    kept = Memories(str(tmp_path), MANY)
    assert read(tmp_path) == []
    for index in (3, 0, 2):
        kept.write(shard(index), rows(index), "v")
    assert not kept.is_empty
    assert read(tmp_path) == [*rows(3), *rows(0), *rows(2)]


def test_a_shard_that_is_decoded_again_is_there_once(tmp_path: Path) -> None:
    kept = Memories(str(tmp_path), MANY)
    for _ in range(2):
        kept.write(shard(0), rows(0), "v")
    assert read(tmp_path) == rows(0)


def test_rows_that_said_nothing_leave_nothing(tmp_path: Path) -> None:
    Memories(str(tmp_path), MANY).write(shard(0), [], "v")
    Memories(str(tmp_path), MANY).write(shard(1), [([1], [])], "v")
    assert Memories(str(tmp_path), MANY).is_empty


def test_the_oldest_make_room_while_a_run_goes_on_and_when_it_starts_again(tmp_path: Path) -> None:
    """Each process keeps as much as a memory holds, and a file more at most; a start keeps as much of all."""
    for process in range(3):
        kept = Memories(str(tmp_path), 10)
        for index in range(9):
            kept.write(shard(10 * process + index), rows(index), "v")
            assert len(list((tmp_path / "memory").iterdir())) <= 3 * (process + 1)
    kept = Memories(str(tmp_path), 10)
    assert kept.trim() == 6
    assert kept.trim() == 0
    assert read(tmp_path) == [*rows(6), *rows(7), *rows(8)]


def test_no_more_is_read_than_a_memory_holds(tmp_path: Path) -> None:
    kept = Memories(str(tmp_path), MANY)
    for index in range(9):
        kept.write(shard(index), rows(index), "v")
    assert read(tmp_path, most=5) == [*rows(7), *rows(8)]


def test_what_another_tokenizer_said_means_nothing(tmp_path: Path) -> None:
    kept = Memories(str(tmp_path), MANY)
    kept.write(shard(0), rows(0), "other")
    kept.write(shard(1), rows(1), "v")
    assert read(tmp_path) == rows(1)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 4000, "cut", "not ours"])
def test_a_damaged_file_is_left_out(damage: bytes | str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Memories(str(tmp_path), MANY)
    for index in range(2):
        kept.write(shard(index), rows(index), "v")
    first = sorted((tmp_path / "memory").iterdir())[0]
    if damage == "not ours":
        pq.write_table(pa.table({"source": [[1]], "output": [[1]]}), first)
    else:
        first.write_bytes(damage if isinstance(damage, bytes) else first.read_bytes()[:-9])
    assert read(tmp_path) == rows(1)
    assert first.name in caplog.text


def test_storage_that_refuses_costs_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, path: str, data: bytes) -> None:
        raise StorageAccessError(f"{path}: cannot be written")

    monkeypatch.setattr("cmasd.io.storage.Storage.write", refuse)
    Memories(str(tmp_path), MANY).write(shard(0), rows(0), "v")
    assert "is not kept" in caplog.text


def config(output: Path, **drafter: Any) -> Any:
    keys = {"kind": ["memory"], **drafter}
    return from_dict({"input": {"path": "i"}, "output": {"path": str(output)}, "drafter": keys})


def test_a_memory_begins_with_the_run_that_is_named_then_its_own(tmp_path: Path) -> None:
    for number, name in enumerate(("own", "old", "named")):
        RunFolder(str(tmp_path / name)).write_json({}, "manifest.json")
        Memories(str(tmp_path / name), MANY).write(shard(0), rows(number), "v")

    def begins_with(**drafter: Any) -> list[Any]:
        return [row for one in memories_before(config(tmp_path / "own", **drafter)) for row in one.read("v")]

    old, named = str(tmp_path / "old"), str(tmp_path / "named")
    assert begins_with() == rows(0)
    assert begins_with(memory=named) == [*rows(2), *rows(0)]
    assert begins_with(kind=["previous", "memory"], previous=old) == [*rows(1), *rows(0)]
    assert begins_with(kind=["previous", "memory"], previous=old, memory=named) == [*rows(2), *rows(0)]
    assert begins_with(memory=str(tmp_path / "own")) == rows(0), "once"
    assert begins_with(kind=["previous"], previous=old) == []
    assert own_memories(config(tmp_path / "own", kind="model")) is None


def test_a_run_without_a_memory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"drafter\.memory: is no run folder"):
        memories_before(config(tmp_path / "own", memory=str(tmp_path / "nothing")))
    RunFolder(str(tmp_path / "old")).write_json({}, "manifest.json")
    with pytest.raises(ConfigError, match=r"drafter\.memory: has no memory"):
        memories_before(config(tmp_path / "own", memory=str(tmp_path / "old")))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    Memories(str(tmp_path), MANY).write(shard(0), rows(0), "v")
    (tmp_path / "memory" / ".tmp-part-00000-000001-4.parquet-0badcafe").write_bytes(b"half")
    assert folder.clean() == 1
    assert read(tmp_path) == rows(0)
