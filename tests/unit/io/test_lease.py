"""One process at a time on a run folder: refusal, expiry, takeover, and races, on disk and on an object store."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cmasd.errors import RunFolderError, RunInUseError
from cmasd.io import lease as leases
from cmasd.io.lease import Lease, Watch, newest_lease, refuse_if_live
from cmasd.io.storage import Storage


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    one = Storage(str(tmp_path / "run") if request.param == "disk" else f"memory://{tmp_path.name}/run")
    yield one
    if request.param == "memory":
        one.fs.rm(one.root, recursive=True)


def taken(storage: Storage) -> Lease:
    return Lease(storage, "RUN", "run", after=newest_lease(storage))


def test_the_second_driver_is_refused_until_the_first_has_ended(storage: Storage) -> None:
    with taken(storage) as first:
        message = rf"RUN: is in use by process {os.getpid()} on .* \(cmasd run\), whose lease runs until 20"
        with pytest.raises(RunInUseError, match=message) as caught:
            refuse_if_live("RUN", newest_lease(storage))
        assert caught.value.exit_code == 1
        with pytest.raises(RunInUseError), taken(storage):
            pass
        first.check()
    with taken(storage) as second:
        assert second.record.number == 2


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    barrier, enough = threading.Barrier(8), threading.Event()

    def attempt(_: int) -> bool:
        one = Lease(storage, "RUN", "run", after=None)
        barrier.wait()
        try:
            with one:
                enough.wait(20)
            return True
        except RunInUseError:
            return False

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(attempt, i) for i in range(8)]
        while sum(future.done() for future in futures) < 7:
            time.sleep(0.01)
        enough.set()
        assert sum(future.result() for future in futures) == 1


def test_a_folder_that_someone_worked_on_meanwhile_is_looked_at_again(storage: Storage) -> None:
    seen = newest_lease(storage)
    with taken(storage):
        pass
    late = Lease(storage, "RUN", "run", after=seen)
    with pytest.raises(RunInUseError, match="has started on it this moment"), late:
        pass


def test_a_lease_expires_and_its_late_holder_notices(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", -1.0)
    with taken(storage) as first:
        monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
        with taken(storage) as second:
            first.renew()
            with pytest.raises(RunInUseError, match="another process has taken over"):
                first.check()
            first.__exit__(None, None, None)
            second.renew()
            second.check()
            newest = newest_lease(storage)
            assert newest is not None
            assert (newest.number, newest.is_live) == (2, True), "the first did not touch it on its way out"


def test_it_is_renewed_while_it_is_held(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWED_EVERY_SECONDS", 0.05)
    with taken(storage) as held:
        first = held.record.expires_at
        deadline = time.monotonic() + 20
        while (newest := newest_lease(storage)) is None or newest.expires_at <= first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom cmasd.io.lease import Lease\nfrom cmasd.io.storage import Storage\n"
        "with Lease(Storage(sys.argv[1]), 'RUN', 'run', after=None):\n    print('taken', flush=True)\n"
        "    time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    storage = Storage(str(tmp_path))
    with pytest.raises(RunInUseError, match=f"process {holder.pid} "), taken(storage):
        pass
    holder.kill()
    holder.wait()
    held = newest_lease(storage)
    assert held is not None
    assert held.expires_at > time.time()
    with taken(storage) as lease:
        lease.check()


def test_the_same_process_id_elsewhere_or_later_is_another_process(storage: Storage) -> None:
    with taken(storage) as held:
        assert held.record.is_live
        assert not replace(held.record, process_start="1").is_live, "the process id was used again"
        assert replace(held.record, process_start="1", machine="other 1 2").is_live, "only its expiry tells"
        assert replace(held.record, process_start="1", machine="").is_live


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "000003.json").write_text(json.dumps({"number": 3}))
    with pytest.raises(RunFolderError, match=r"000003\.json: is damaged"):
        newest_lease(Storage(str(tmp_path)))


@pytest.mark.parametrize("how", ["asked", "superseded"])
def test_workers_learn_that_they_should_stop(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCHED_EVERY_SECONDS", 0.02)
    storage, told = Storage(str(tmp_path)), threading.Event()
    with taken(storage) as held:
        watch = pickle.loads(pickle.dumps(Watch(str(tmp_path), held.record.number)))
        assert watch is pickle.loads(pickle.dumps(watch)), "one thread per process"
        watch.on_stop(told.set)
        assert not watch.says_stop()
        time.sleep(0.1)
        assert not watch.says_stop()
        if how == "asked":
            held.ask_to_stop()
    if how == "superseded":
        with taken(storage):
            assert told.wait(20)
    assert told.wait(20)
    assert watch.says_stop()
    assert watch.is_superseded() == (how == "superseded")
    with taken(storage) as following:
        deadline = time.monotonic() + 20
        while not watch.is_superseded():
            assert time.monotonic() < deadline
        assert not Watch(str(tmp_path), following.record.number).says_stop()
        time.sleep(0.1)
        assert sorted(path.name for path in (tmp_path / "leases").iterdir())[-1].endswith(".json")
