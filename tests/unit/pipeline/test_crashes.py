"""Rows that kill their worker: how they are found, with a worker that dies by an exception which nothing catches."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cmasd.core import RowError
from cmasd.errors import DecodingError
from cmasd.io.plan import Shard
from cmasd.io.run_folder import RunFolder
from cmasd.pipeline.crashes import FOLDER, MOST_CRASHING_ROWS, Crashes, Turns, forget
from cmasd.telemetry.recorder import Row


class Worker:
    """An actor and its restarts: a death leaves the note as it is, and the shard comes again to a new view."""

    def __init__(self, folder: Path, poison: set[int], max_restarts: int = 2) -> None:
        self.folder = RunFolder(str(folder))
        self.poison = poison
        self.max_restarts = max_restarts
        self.deaths = 0

    def run(self, shard: Shard) -> tuple[list[Row], list[str]]:
        rows = pa.table({"id": [str(n) for n in range(shard.rows)]})
        while True:
            try:
                return Crashes(self.folder, self.max_restarts).decode(shard, rows, self.decode)
            except DeathError:
                self.deaths += 1

    def decode(self, part: pa.Table) -> list[Row]:
        ids = part["id"].to_pylist()
        if self.poison & {int(str(one)) for one in ids}:
            raise DeathError
        return [Row(str(one), RowError("read", "fine"), None) for one in ids]


class DeathError(BaseException):
    pass


@pytest.fixture(autouse=True)
def deaths_leave_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies deletes nothing; here it dies by an exception, past the clean-up."""
    from cmasd.io.storage import Storage

    delete = Storage.delete

    def delete_unless_dead(self: Storage, path: str) -> None:
        import sys

        if not isinstance(sys.exc_info()[1], DeathError):
            delete(self, path)

    monkeypatch.setattr(Storage, "delete", delete_unless_dead)


def shard(rows: int) -> Shard:
    return Shard(0, 0, 0, rows)


@pytest.mark.parametrize("poison", [set(), {0}, {31}, {13}, {3, 4, 30}])
@pytest.mark.parametrize("max_restarts", [1, 2, 3])
def test_each_crashing_row_is_found_and_all_others_are_decoded(
    tmp_path: Path, poison: set[int], max_restarts: int
) -> None:
    worker = Worker(tmp_path, poison, max_restarts)
    rows, notices = worker.run(shard(32))
    assert [row.id for row in rows] == [str(n) for n in range(32)], "each row once, in order"
    found = {int(str(row.id)) for row in rows if isinstance(row.result, RowError) and row.result.stage == "crash"}
    assert found == poison
    assert len(notices) == len(poison)
    # Together, then one death for each halving from 32 rows to 2, then the row alone.
    assert worker.deaths <= len(poison) * (2 * max_restarts + 5)
    if len(poison) == 1:
        assert worker.deaths == 2 * max_restarts + 5
    assert list((tmp_path / FOLDER).iterdir()) == [], "nothing is left"


def test_a_shard_that_was_killed_by_others_loses_no_row(tmp_path: Path) -> None:
    """Kills that have nothing to do with the rows, even while they are decoded alone."""
    worker = Worker(tmp_path, {5})
    kills = iter([0] * 4)

    def decode(part: pa.Table) -> list[Row]:
        for _ in kills:
            raise DeathError
        return [Row(str(one), RowError("read", "fine"), None) for one in part["id"].to_pylist()]

    worker.decode = decode  # type: ignore[method-assign]
    rows, notices = worker.run(shard(8))
    assert len(rows) == 8
    assert notices == []
    assert worker.deaths == 4


def test_a_shard_full_of_crashing_rows_ends_the_run(tmp_path: Path) -> None:
    worker = Worker(tmp_path, set(range(64)), max_restarts=1)
    with pytest.raises(DecodingError, match=r"part-00000-000000\.parquet: the worker died on 17 rows one by one"):
        worker.run(shard(64))
    assert worker.deaths < 3 * MOST_CRASHING_ROWS + 8


def test_dying_while_models_load_ends_the_run(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    for actor in ("a", "b", "c"):
        with pytest.raises(DeathError), Crashes(folder, 2).loading(actor, 1):
            raise DeathError
    with (
        pytest.raises(DecodingError, match="workers died 3 times while loading them"),
        Crashes(folder, 2).loading("d", 1),
    ):
        pass
    with Crashes(folder, 2).loading("e", actors=2):
        assert len(list((tmp_path / FOLDER).iterdir())) == 4, "one of the three may be loading still"
    assert list((tmp_path / FOLDER).iterdir()) == [], "who can load them proves that the models are not the cause"
    with pytest.raises(ValueError, match="told"), Crashes(folder, 2).loading("f", 1):
        raise ValueError("told, so no death")
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert Worker(tmp_path, set()).run(shard(4))[1] == []


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_an_end_that_was_announced_is_no_death(tmp_path: Path, deaths: int) -> None:
    """Whenever it comes: what was known before stays known."""
    worker = Worker(tmp_path, set())
    crashes: list[Crashes] = []
    endings = iter(["death"] * deaths + ["leave"] * 9)

    def decode(part: pa.Table) -> list[Row]:
        ending = next(endings, None)
        if ending == "leave":
            crashes[-1].leave()
        if ending:
            raise DeathError
        return [Row(str(one), RowError("read", "fine"), None) for one in part["id"].to_pylist()]

    rows = pa.table({"id": ["a", "b", "c"]})
    for _ in range(deaths + 9):
        crashes.append(Crashes(worker.folder, 2))
        with pytest.raises(DeathError):
            crashes[-1].decode(shard(3), rows, decode)
        known = worker.folder.read_json(FOLDER, "part-00000-000000.json")
        if len(crashes) > deaths:
            assert known == ({"deaths": {"together": deaths}, "now": None} if deaths else None)
    decoded, notices = Crashes(worker.folder, 2).decode(shard(3), rows, decode)
    assert ([row.id for row in decoded], notices) == (["a", "b", "c"], [])


def test_an_end_that_was_announced_while_models_load_is_no_death(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))

    def leave(crashes: Crashes) -> None:
        crashes.leave()
        raise DeathError

    for actor in "abcdef":
        crashes = Crashes(folder, 2)
        with pytest.raises(DeathError), crashes.loading(actor, 1):
            leave(crashes)
    with Crashes(folder, 2).loading("g", 1):
        pass


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))

    def fail(part: pa.Table) -> list[Row]:
        raise DecodingError("no")

    for _ in range(5):
        with pytest.raises(DecodingError, match="no"):
            Crashes(folder, 1).decode(shard(4), pa.table({"id": ["a"] * 4}), fail)
    assert list((tmp_path / FOLDER).iterdir()) == []
    forget(folder)
    assert not (tmp_path / FOLDER).exists()
    forget(folder)


def test_alone_is_alone() -> None:
    turns, inside, seen = Turns(), {"together": 0, "alone": 0}, []
    lock = threading.Lock()

    def enter(kind: str) -> None:
        with getattr(turns, kind)():
            with lock:
                inside[kind] += 1
                seen.append(dict(inside))
            time.sleep(0.002)
            with lock:
                inside[kind] -= 1

    kinds: list[Any] = ["together", "together", "alone"] * 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, kinds))
    assert len(seen) == 60
    assert all(state["alone"] == 0 or state == {"together": 0, "alone": 1} for state in seen)
    assert any(state["together"] > 1 for state in seen)
