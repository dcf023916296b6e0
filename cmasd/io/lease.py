"""The right to work on a run folder, held by one process at a time and renewed while it lives.

`leases/000001.json`, `leases/000002.json`, ...: the newest record counts. Only its holder rewrites a record; the next
one is made by creating the next number, which storage grants once, so that two takers cannot both succeed. A record
that is released, expired, or of a process that is gone from this machine, is no hindrance. Clocks of machines that
share a run are trusted within half a minute.
A lease saves work; it does not guard results. A driver that lost its lease unnoticed writes whole files of the same
rows under the same names, and disturbs nothing.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from cmasd.errors import CmasdError, RunFolderError, RunInUseError
from cmasd.io.storage import Storage, base_name, join

LEASE_SECONDS = 60.0
"""After this time without renewal, others may take over."""
RENEWED_EVERY_SECONDS = 15.0
WATCHED_EVERY_SECONDS = 2.0
FOLDER = "leases"


@dataclass(frozen=True)
class LeaseRecord:
    """What a lease file says."""

    number: int
    verb: str
    """What the holder does: run or compact."""
    host: str
    pid: int
    machine: str
    """Differs between machines, between their boots, and between containers with process ids of their own."""
    process_start: str
    """Tells a process from a later one with the same id."""
    renewed_at: float
    """Seconds since the epoch."""
    expires_at: float
    """Seconds since the epoch; 0: released."""

    @property
    def is_live(self) -> bool:
        """Whether the holder may still be at work."""
        return self.expires_at > time.time() and not self._is_gone

    @property
    def _is_gone(self) -> bool:
        return bool(self.machine) and self.machine == _machine() and self.process_start != _process_start(self.pid)

    @property
    def holder(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}"

    @property
    def expires(self) -> str:
        """For messages."""
        return datetime.fromtimestamp(self.expires_at, UTC).isoformat(timespec="seconds")


def newest_lease(storage: Storage) -> LeaseRecord | None:
    """Live or not; null when there never was one."""
    while True:
        names = [base_name(file.path) for file in storage.files(join(storage.root, FOLDER))]
        numbers = [int(name[:-5]) for name in names if name[:-5].isdecimal() and name.endswith(".json")]
        try:
            return _read(storage, max(numbers)) if numbers else None
        except FileNotFoundError:
            continue  # removed by the holder of a newer one since it was listed


def refuse_if_live(address: str, record: LeaseRecord | None) -> None:
    """Raises `RunInUseError`, which names the holder."""
    if record is not None and record.is_live:
        raise RunInUseError(
            f"{address}: is in use by {record.holder} (cmasd {record.verb}), whose lease runs until {record.expires} "
            "unless renewed. Wait for it, or stop it, and run the same command again."
        )


class Lease:
    """Taken on entry, renewed by a thread, released on exit."""

    def __init__(self, storage: Storage, address: str, verb: str, after: LeaseRecord | None) -> None:
        """`after` is the newest lease as seen before the folder was looked at: if it no longer is, entry fails."""
        self._storage, self._address = storage, address
        now = time.time()
        self.record = LeaseRecord(
            number=after.number + 1 if after else 1,
            verb=verb,
            host=platform.node(),
            pid=os.getpid(),
            machine=_machine(),
            process_start=_process_start(os.getpid()),
            renewed_at=now,
            expires_at=now + LEASE_SECONDS,
        )
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def __enter__(self) -> Self:
        refuse_if_live(self._address, newest_lease(self._storage))
        if not self._storage.create(self._path(self.record.number), _encode(self.record)) and not self._is_ours():
            raise RunInUseError(
                f"{self._address}: another process has started on it this moment. Run the same command again."
            )
        for number in range(max(1, self.record.number - 2), self.record.number):
            self._storage.delete(self._path(number))
            self._storage.delete(_stop_path(self._storage, number))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if not self._lost.is_set():
            with suppress(OSError, CmasdError):  # then it expires
                self._write(replace(self.record, expires_at=0.0))

    def _is_ours(self) -> bool:
        """Whether the record that is there already is this one, created by a request whose answer was lost."""
        return newest_lease(self._storage) == self.record

    def check(self) -> None:
        """Raises `RunInUseError` when the lease expired, for lack of a renewal, and someone else took over."""
        if self._lost.is_set():
            raise RunInUseError(
                f"{self._address}: its lease expired unrenewed and another process has taken over. "
                "Run the same command again when that has ended."
            )

    def ask_to_stop(self) -> None:
        """Tell all processes that work under this lease to finish what they began; see `Watch`."""
        self._storage.write(_stop_path(self._storage, self.record.number), b"")

    def renew(self) -> None:
        """Extend the lease; notices when it is lost."""
        newest = newest_lease(self._storage)
        if newest is not None and newest.number > self.record.number:
            self._lost.set()
            return
        now = time.time()
        self.record = replace(self.record, renewed_at=now, expires_at=now + LEASE_SECONDS)
        self._write(self.record)

    def _renew_until_ended(self) -> None:
        while not self._lost.is_set() and not self._ended.wait(RENEWED_EVERY_SECONDS):
            try:
                self.renew()
            except Exception:  # noqa: BLE001 - storage that is away for a moment must not end the run
                continue

    def _write(self, record: LeaseRecord) -> None:
        self._storage.write(self._path(record.number), _encode(record))

    def _path(self, number: int) -> str:
        return join(self._storage.root, FOLDER, f"{number:06d}.json")


class Watch:
    """Whether those who work under a lease should stop: asked to, or another lease has taken its place.

    Looks at the folder every few seconds, in one thread per process and lease; may be sent to other processes.
    """

    def __init__(self, address: str, number: int) -> None:
        self._address, self._number = address, number
        self._stop = threading.Event()
        self._superseded = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._on_stop: list[Callable[[], None]] = []

    def __reduce__(self) -> tuple[Callable[[str, int], "Watch"], tuple[str, int]]:
        return _watch, (self._address, self._number)

    def says_stop(self) -> bool:
        """Starts to look at the first call."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="lease watch", daemon=True)
                self._thread.start()
        return self._stop.is_set()

    def is_superseded(self) -> bool:
        """Whether another lease has taken the place of this one, as of the latest look: it is too late to write."""
        return self.says_stop() and self._superseded.is_set()

    def on_stop(self, act: Callable[[], None]) -> None:
        """Also do this, once, in the watch's thread."""
        self._on_stop.append(act)
        if self.says_stop():
            act()

    def _look(self) -> None:
        storage = Storage(self._address)
        own = f"{self._number:06d}.json"
        while True:
            with suppress(Exception):  # storage that is away for a moment says nothing
                names = [base_name(file.path) for file in storage.files(join(storage.root, FOLDER))]
                later = [name for name in names if name > own and name[0].isdecimal()]
                if any(name.endswith(".json") for name in later):
                    self._superseded.set()
                if later:
                    self._announce()
            if self._superseded.wait(WATCHED_EVERY_SECONDS):
                break

    def _announce(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            for act in self._on_stop:
                act()


@cache
def _watch(address: str, number: int) -> Watch:
    return Watch(address, number)


def _stop_path(storage: Storage, number: int) -> str:
    """Sorts behind the record of its lease."""
    return join(storage.root, FOLDER, f"{number:06d}.stop")


def _encode(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record), indent=2).encode() + b"\n"


def _read(storage: Storage, number: int) -> LeaseRecord:
    path = join(storage.root, FOLDER, f"{number:06d}.json")
    try:
        return LeaseRecord(**json.loads(storage.read(path)))
    except (ValueError, TypeError):
        raise RunFolderError(f"{path}: is damaged, expected the record of a lease. Remove it.") from None


def _machine() -> str:
    """Empty where it cannot be told; then only expiry ends a lease."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Clock ticks from boot to the start of a process; empty when there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
