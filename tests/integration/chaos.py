"""A harness that runs the job again and again and kills (-9) its processes at random, until the job is done.

Everything is drawn from one seed. Only processes that the harness started, and their descendants, are killed: the
driver, a decoding actor, a worker that reads, the gate that readers ask, the raylet, the control store; some get
SIGTERM instead. Two times are measured for each: until the next shard is written by anyone, a new start included where
one is needed, and until an actor that is new since then has written its first. A job is started again at once, while
what its killed driver left behind may still be at work.
"""

import math
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.places import Place

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 600.0
"""Longer than a start takes on a machine with much other work; a job that is silent for longer hangs."""
LOOKED_EVERY_SECONDS = 2.0
"""At the processes there are; it takes some milliseconds."""

KINDS: Mapping[str, Callable[[str], bool]] = {
    "actor": lambda title: title.startswith("ray::") and "DecodingActor" in title,
    "preempted actor": lambda title: title.startswith("ray::") and "DecodingActor" in title,
    "reader": lambda title: title.startswith("ray::") and "ShardSource" in title,
    "gate": lambda title: title.startswith("ray::Gate"),
    "raylet": lambda title: title.split(" ")[0].endswith("/raylet"),
    "control store": lambda title: title.split(" ")[0].endswith("/gcs_server"),
}
"""Besides the driver, by what a process calls itself. Actors write, so a killed actor is a killed writer too."""


ACTORS = 2
"""Of the job."""
DRIVERS = ("driver", "stopped driver")
WITHOUT_A_NEW_ACTOR = ("reader", "gate")
"""Kinds after which no actor takes another's place."""
POLITE = ("preempted actor", "stopped driver")
"""Kinds that get SIGTERM."""
ENDING = (*DRIVERS, "raylet", "control store")
"""Kinds without which a start of the job ends, by itself; another start is needed."""


@dataclass
class Kill:
    """One killed process."""

    kind: str
    place: str
    at: float = field(default_factory=time.monotonic)
    next_shard_seconds: float | None = None
    """Null when another kill came first, or the job was done."""
    new_actor_seconds: float | None = None
    """Until one wrote its first shard; null as above."""


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
    early: float = 0.25
    """Share of starts that are struck at some moment before they have written anything."""
    tell: Callable[[str], object] = lambda line: None
    """Gets a line per kill."""
    kills: list[Kill] = field(default_factory=list)
    exit_codes: Counter[int] = field(default_factory=Counter)
    """Of drivers that ended by themselves."""
    starts: int = 0
    _started: set[psutil.Process] = field(default_factory=set)
    """In this round."""
    _open: Kill | None = None
    """The latest kill, while something about it is still to be measured."""
    _struck_start: int = 0
    """The latest start that was hit where it has to end."""

    def finish(self, command: list[str], place: Place) -> None:
        """Start the command until it ends with code 0, killing on the way."""
        while True:
            with self.log.open("ab") as stream:
                driver = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
            self.starts += 1
            killed = self._harass(driver, place)
            if not killed:
                self.exit_codes[driver.returncode] += 1
            if driver.returncode == 0:
                self._open = None
                self._wait_for_orphans()
                return

    def _harass(self, driver: "subprocess.Popen[bytes]", place: Place) -> bool:
        """Until the driver has ended; whether that was a kill of ours."""
        begun = moved = time.monotonic()
        place.actors_in_start = 0
        strike_at = begun + self.random.uniform(0.0, 15.0) if self.random.random() < self.early else math.inf
        waits_for_actor = self.random.random() < 0.5
        looked = 0.0
        while driver.poll() is None:
            now = time.monotonic()
            if now - looked > LOOKED_EVERY_SECONDS:
                looked = now
                self._look(driver)
            if place.look():
                moved = now
                if not self._is_ending and self._measured(place, now, waits_for_actor):
                    strike_at = min(strike_at, now + self.random.uniform(0.0, self.most_wait_seconds))
            if now >= strike_at and self.schedule:
                waits_for_actor = self.random.random() < 0.5
                strike_at = math.inf if self._strike(driver, place) else now + 0.5
            assert now - moved < PATIENCE_SECONDS, f"no progress for {PATIENCE_SECONDS:g} s after {self.kills[-3:]}"
            time.sleep(place.poll_seconds)
        return bool(self.kills and self.kills[-1].kind == "driver" and self._is_ending)

    @property
    def _is_ending(self) -> bool:
        """Whether this start was hit where it has to end, though its actors may still finish a shard."""
        return self._struck_start == self.starts

    def _measured(self, place: Place, now: float, waits_for_actor: bool) -> bool:
        """Whether the next kill may come; half of the time not before an actor has taken the place of a dead one."""
        kill = self._open
        if kill is None:
            return True
        if kill.next_shard_seconds is None and (kill.kind not in ENDING or place.has_new_actor):
            kill.next_shard_seconds = now - kill.at
        if place.has_new_actor:
            kill.new_actor_seconds = now - kill.at
            self._open = None
        return self._open is None or kill.kind in WITHOUT_A_NEW_ACTOR or not waits_for_actor

    def _look(self, driver: "subprocess.Popen[bytes]") -> list[psutil.Process]:
        try:
            there = psutil.Process(driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._started.update(there)
        return list(there)

    def _strike(self, driver: "subprocess.Popen[bytes]", place: Place) -> bool:
        """Kill a process of the first scheduled kind that is there; False when none is."""
        there: dict[str, list[psutil.Process]] = {}
        for process in sorted(self._look(driver), key=lambda one: one.pid):
            title = _title(process)
            for kind in (kind for kind, matches in KINDS.items() if matches(title)):
                if "actor" not in kind or place.actors_in_start >= ACTORS:  # else the replacement could not be told
                    there.setdefault(kind, []).append(process)
        possible = [kind for kind in self.schedule if kind in DRIVERS or kind in there]
        if not possible or driver.poll() is not None:
            return False
        kind = possible[0]
        place.look()
        try:
            target = psutil.Process(driver.pid) if kind in DRIVERS else self.random.choice(there[kind])
            target.send_signal(signal.SIGTERM if kind in POLITE else signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        self.schedule.remove(kind)
        self._open = Kill(kind, place.kind)
        self.kills.append(self._open)
        place.has_new_actor = False
        if kind in ENDING:
            self._struck_start = self.starts
        self.tell(f"kill {len(self.kills)}: {kind}, start {self.starts}, {place.address}, {place.shards} shards")
        return True

    def _wait_for_orphans(self) -> None:
        """What killed drivers started has to end by itself."""
        _, alive = psutil.wait_procs(list(self._started), timeout=PATIENCE_SECONDS)
        assert not alive, f"outlived their driver: {[_title(process) for process in alive]}"
        self._started.clear()

    def report(self) -> str:
        """A table of what was survived."""
        lines = [f"{len(self.kills)} kills, {self.starts} starts; exit codes of drivers: {dict(self.exit_codes)}"]
        for (kind, place), count in sorted(Counter((kill.kind, kill.place) for kill in self.kills).items()):
            those = [kill for kill in self.kills if (kill.kind, kill.place) == (kind, place)]
            shard = _seconds(kill.next_shard_seconds for kill in those)
            actor = _seconds(kill.new_actor_seconds for kill in those)
            lines.append(f"{kind:15} {place:4} {count:3} times; next shard {shard}; a new actor's first {actor}")
        return "\n".join(lines)


def processes(kind: str, ancestor: psutil.Process) -> list[psutil.Process]:
    """Of one of `KINDS`, among all that the ancestor started."""
    return [process for process in ancestor.children(recursive=True) if KINDS[kind](_title(process))]


def _seconds(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"median {statistics.median(known):.1f} s, most {max(known):.1f} s ({len(known)})" if known else "-"


def command(*words: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "jobs", *words]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
