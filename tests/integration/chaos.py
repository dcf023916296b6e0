"""A harness that runs the job again and again and kills (-9) its processes at random, until the job is done.

Everything is drawn from one seed. Only processes that the harness started, and their descendants, are killed: the
driver, a decoding actor, a worker that reads, the raylet, the control store; some get SIGTERM instead. How long a job
takes to finish its next shard after each is measured, a new start included where one is needed.
"""

import math
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 600.0
"""Longer than a start takes on a machine with much other work; a job that is silent for longer hangs."""

KINDS: Mapping[str, Callable[[str], bool]] = {
    "actor": lambda title: title.startswith("ray::") and "Decoder" in title,
    "preempted actor": lambda title: title.startswith("ray::") and "Decoder" in title,
    "reader": lambda title: title.startswith("ray::") and "ShardSource" in title,
    "raylet": lambda title: title.split(" ")[0].endswith("/raylet"),
    "control store": lambda title: title.split(" ")[0].endswith("/gcs_server"),
}
"""Besides the driver, by what a process calls itself. Actors write, so a killed actor is a killed writer too."""


DRIVERS = ("driver", "stopped driver")
POLITE = ("preempted actor", "stopped driver")
"""Kinds that get SIGTERM."""
ENDING = (*DRIVERS, "raylet", "control store")
"""Kinds without which a start of the job ends, by itself; another start is needed."""


@dataclass(frozen=True)
class Kill:
    """One killed process."""

    kind: str
    recovery_seconds: float | None
    """Until the next shard was finished; null when the job was done before one was."""


@dataclass
class Chaos:
    """Jobs under fire."""

    schedule: list[str]
    """Kinds still to be killed; the first that is there is next."""
    random: random.Random
    log: Path
    """What the drivers say."""
    most_wait_seconds: float = 2.0
    """Between progress and the next kill."""
    kills: list[Kill] = field(default_factory=list)
    exit_codes: Counter[int] = field(default_factory=Counter)
    """Of drivers that ended by themselves."""
    starts: int = 0
    _started: set[psutil.Process] = field(default_factory=set)
    _waiting: tuple[str, float, int] | None = None
    """The latest kill, until the next shard is finished: its kind, its time, and the start that it hit."""

    def finish(self, command: list[str], count_done: Callable[[], int]) -> None:
        """Start the command until it ends with code 0, killing on the way; `count_done` counts finished shards."""
        while True:
            with self.log.open("ab") as stream:
                driver = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
            self.starts += 1
            self._harass(driver, count_done)
            if driver.returncode >= 0:
                self.exit_codes[driver.returncode] += 1
            self._wait_for_orphans()
            if driver.returncode == 0:
                self._recovered(None)
                return

    def _harass(self, driver: "subprocess.Popen[bytes]", count_done: Callable[[], int]) -> None:
        """Until the driver has ended."""
        before, moved, strike_at = count_done(), time.monotonic(), math.inf
        while driver.poll() is None:
            self._look(driver)
            if "reader" in self.schedule:
                self._strike(driver, ["reader"])
            now = time.monotonic()
            if count_done() > before:
                before, moved = count_done(), now
                if self._is_ending:
                    continue
                self._recovered(now)
                strike_at = min(strike_at, now + self.random.uniform(0.0, self.most_wait_seconds))
            if now >= strike_at:
                self._strike(driver, self.schedule)
                before, strike_at = count_done(), math.inf
            assert now - moved < PATIENCE_SECONDS, f"no progress for {PATIENCE_SECONDS:g} s after {self.kills[-3:]}"
            time.sleep(0.05)

    @property
    def _is_ending(self) -> bool:
        """Whether this start was hit where it has to end, though its actors may still finish a shard."""
        return bool(self._waiting and self._waiting[0] in ENDING and self._waiting[2] == self.starts)

    def _recovered(self, now: float | None) -> None:
        if self._waiting:
            kind, then, _ = self._waiting
            self.kills.append(Kill(kind, None if now is None else now - then))
            self._waiting = None

    def _look(self, driver: "subprocess.Popen[bytes]") -> None:
        try:
            self._started.update(psutil.Process(driver.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def _strike(self, driver: "subprocess.Popen[bytes]", kinds: list[str]) -> None:
        """Kill a process of the first of these kinds that is there."""
        there: dict[str, list[psutil.Process]] = {}
        for process in sorted(self._started, key=lambda one: one.pid):
            title = _title(process)
            for kind in (kind for kind, matches in KINDS.items() if matches(title)):
                there.setdefault(kind, []).append(process)
        possible = [kind for kind in kinds if kind in DRIVERS or kind in there]
        if not possible:
            return
        kind = possible[0]
        try:
            target = psutil.Process(driver.pid) if kind in DRIVERS else self.random.choice(there[kind])
            target.send_signal(signal.SIGTERM if kind in POLITE else signal.SIGKILL)
        except psutil.NoSuchProcess:
            return
        self.schedule.remove(kind)
        self._recovered(None)
        self._waiting = (kind, time.monotonic(), self.starts)

    def _wait_for_orphans(self) -> None:
        """What a killed driver started has to end by itself."""
        _, alive = psutil.wait_procs(list(self._started), timeout=PATIENCE_SECONDS)
        assert not alive, f"outlived their driver: {[_title(process) for process in alive]}"
        self._started.clear()

    def report(self) -> str:
        """A table of what was survived."""
        failed = {code: count for code, count in sorted(self.exit_codes.items()) if code}
        lines = [f"{len(self.kills)} kills, {self.starts} starts; exit codes of drivers that gave up: {failed}"]
        for kind, count in sorted(Counter(kill.kind for kill in self.kills).items()):
            times = [kill.recovery_seconds for kill in self.kills if kill.kind == kind and kill.recovery_seconds]
            seconds = f"median {statistics.median(times):.1f} s, most {max(times):.1f} s" if times else "-"
            lines.append(f"{kind:15} {count:4} times; to the next finished shard: {seconds}")
        return "\n".join(lines)


def command(*words: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "jobs", *words]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
