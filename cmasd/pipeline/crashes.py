"""Rows that crash a worker, found by halving, so that one row cannot stop a million.

Ray restarts a crashed actor and hands it the same shards, for ever. So an actor notes in the run folder what it
decodes, and a note that is found when a shard comes again is a death. A shard that took part in
`limits.max_actor_restarts` deaths is decoded alone in its actor, hence known to be the cause: a part that dies is
halved, and a row that dies alone as often is recorded as an error.
Notes are of one start of the driver: a kill of the whole job counts for nothing, nor does an end that was announced
to the actor (`leave`). A death while models load is no row's
fault, and ends the run when it recurs; so does a shard with too many such rows.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from cmasd.core import RowError
from cmasd.errors import DecodingError
from cmasd.io.plan import Shard
from cmasd.io.run_folder import RunFolder
from cmasd.io.storage import base_name, join
from cmasd.telemetry.recorder import Row

FOLDER = "inflight"
LOADING, TOGETHER = "loading", "together"
MOST_CRASHING_ROWS = 16
"""Of one shard; with more, the cause is hardly the rows."""

Decode = Callable[[pa.Table], list[Row]]


@dataclass
class Note:
    """What is known of a shard; stored before each step that may crash."""

    deaths: dict[str, int] = field(default_factory=dict)
    """By what was going on: `TOGETHER` with other shards, or `<start>-<stop>`, rows of the shard, alone."""
    now: str | None = None
    """What is going on."""


class Crashes:
    """One actor's view of the notes; used by several threads, each with a shard of its own."""

    def __init__(self, folder: RunFolder, max_restarts: int) -> None:
        self._folder = folder
        self._max_restarts = max_restarts
        self._turns = Turns()
        self._lock = threading.Lock()
        self._begun: dict[Shard, Note] = {}
        self._loading: str | None = None
        """The note of models being loaded."""
        self._leaving = False

    def leave(self) -> None:
        """The process is being ended from outside: what it leaves undone, shards or loading, is no death."""
        with self._lock:
            self._leaving = True
            begun = list(self._begun.items())
        for shard, note in begun:
            self._settle(shard, note)
        if self._loading:
            self._folder.storage.delete(self._loading)

    @contextmanager
    def loading(self, actor: str, actors: int) -> Iterator[None]:
        """While an actor loads its models, one of `actors` that may do so at once; a note that stays is a death.

        Raises `DecodingError` when workers keep dying of that; one that does not proves that models are not the cause.
        """
        deaths = len(self._loading_notes()) - (actors - 1)
        if deaths > self._max_restarts:
            raise DecodingError(
                f"models: workers died {deaths} times while loading them; expected at most {self._max_restarts} "
                "(limits.max_actor_restarts). Check that they fit into memory."
            )
        own = join(self._folder.storage.root, FOLDER, f"{LOADING}-{actor}.json")
        self._folder.write_json({}, FOLDER, base_name(own))
        self._loading = own
        done = [own]
        try:
            yield
            done = self._loading_notes()
        finally:
            for note in done:
                self._folder.storage.delete(note)
            self._loading = None

    def _loading_notes(self) -> list[str]:
        files = self._folder.storage.files(join(self._folder.storage.root, FOLDER))
        return [file.path for file in files if base_name(file.path).startswith(LOADING)]

    def decode(self, shard: Shard, rows: pa.Table, decode: Decode) -> tuple[list[Row], list[str]]:
        """All rows of the shard, and what users should know."""
        note = self._found(shard)
        if note.deaths.get(TOGETHER, 0) < self._max_restarts:
            with self._turns.together(), self._noted(shard, note, TOGETHER):
                decoded = decode(rows)
        else:
            with self._turns.alone():
                decoded = self._in_parts(shard, note, rows, 0, rows.num_rows, decode)
        self._folder.storage.delete(self._path(shard))
        crashing = [row for row in decoded if isinstance(row.result, RowError) and row.result.stage == "crash"]
        return decoded, [f"{row.id}: crashed its worker each time and is recorded as an error." for row in crashing]

    def _in_parts(self, shard: Shard, note: Note, rows: pa.Table, start: int, stop: int, decode: Decode) -> list[Row]:
        name = f"{start}-{stop}"
        deaths = note.deaths.get(name, 0)
        if stop - start > 1 and deaths:
            middle = (start + stop) // 2
            left = self._in_parts(shard, note, rows, start, middle, decode)
            return left + self._in_parts(shard, note, rows, middle, stop, decode)
        part = rows.slice(start, stop - start)
        if deaths >= self._max_restarts:
            self._check_number(shard, note)
            error = RowError("crash", f"the worker died {deaths} times decoding this row alone")
            return [Row(part["id"][0].as_py(), error, None)]
        with self._noted(shard, note, name):
            return decode(part)

    def _check_number(self, shard: Shard, note: Note) -> None:
        spans = (tuple(map(int, name.split("-"))) for name in note.deaths if name != TOGETHER)
        crashing = sum(stop - start == 1 for start, stop in spans)
        if crashing > MOST_CRASHING_ROWS:
            raise DecodingError(
                f"{shard.output_name}: the worker died on {crashing} rows one by one; expected at most "
                f"{MOST_CRASHING_ROWS}. The cause is hardly the rows: check memory, drivers and models."
            )

    def _found(self, shard: Shard) -> Note:
        """The shard's note; what was going on when it was left is a death."""
        stored = self._folder.read_json(FOLDER, _name(shard))
        note = Note(**stored) if stored else Note()
        if note.now is not None:
            note.deaths[note.now] = note.deaths.get(note.now, 0) + 1
            note.now = None
        return note

    @contextmanager
    def _noted(self, shard: Shard, note: Note, what: str) -> Iterator[None]:
        """An exception is no death: it ends the run, and is told."""
        note.now = what
        with self._lock:
            self._begun[shard] = note
        self._folder.write_json(vars(note), FOLDER, _name(shard))
        if self._leaving:
            self._settle(shard, note)
        try:
            yield
        except BaseException:
            self._folder.storage.delete(self._path(shard))
            raise
        finally:
            with self._lock:
                del self._begun[shard]
        note.now = None
        if note.deaths:
            self._folder.write_json(vars(note), FOLDER, _name(shard))

    def _settle(self, shard: Shard, note: Note) -> None:
        """Keep what was known before."""
        if note.deaths:
            self._folder.write_json(vars(Note(note.deaths)), FOLDER, _name(shard))
        else:
            self._folder.storage.delete(self._path(shard))

    def _path(self, shard: Shard) -> str:
        return join(self._folder.storage.root, FOLDER, _name(shard))


def _name(shard: Shard) -> str:
    return shard.output_name.replace(".parquet", ".json")


def forget(folder: RunFolder) -> None:
    """Remove all notes, of this start or of an earlier one."""
    folder.storage.delete_folder(join(folder.storage.root, FOLDER))


class Turns:
    """Many together, or one alone; whoever wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._alone = 0
        """Those who are, and those who wait to be."""
        self._taken = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Waits while someone is alone or wants to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for everyone else to be done."""
        with self._changed:
            self._alone += 1
            self._changed.wait_for(lambda: not self._together and not self._taken)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._alone -= 1
                self._changed.notify_all()
