"""Whatever is killed, however often: every row once, and the same bytes as if nothing had happened.

`-m "chaos and not slow"` runs the part that fits into CI; `-m "chaos and slow"` kills a hundred times, on disk and on
an S3 that fails now and then. What was survived goes to stderr, which `-s` shows. `CMASD_CHAOS_KILLS` and
`CMASD_CHAOS_SEED` choose another number and another course.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import pytest

from cmasd.io.status import status
from tests.faulty_s3 import BUCKET, Weather, faulty_s3, spared_client
from tests.integration.chaos import ACTORS, ROOT, Chaos, command
from tests.integration.conftest import SENTENCES
from tests.integration.places import OnDisk, OnS3, Place

FILES = 2
PADDING = "x" * 10_000
"""In a column that is not kept, so that reading takes long enough to be killed."""
WEIGHTS = {
    "actor": 56,
    "preempted actor": 14,
    "reader": 10,
    "gate": 4,
    "driver": 8,
    "stopped driver": 2,
    "raylet": 4,
    "control store": 2,
}
"""How often each kind is hit in a hundred: a start of Ray costs far more than one of an actor."""
WEATHER = {"internal": 0.01, "slow_down": 0.01, "unavailable": 0.005, "drop": 0.01, "lost": 0.01, "cut": 0.01}
WEATHER |= {"delay": 0.03}


def write_job(folder: Path, pair: Path, rows_per_file: int, new_tokens: int) -> Path:
    (folder / "in").mkdir()
    for number in range(FILES):
        rows: list[dict[str, str | None]] = [
            {"id": f"{number}-{i}", "text": f"{SENTENCES[i % 6]} {i}", "padding": PADDING} for i in range(rows_per_file)
        ]
        rows[1]["text"] = None
        (folder / "in" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "job.yaml"
    file.write_text(
        f"input: {{path: {folder}/in, id_column: id}}\noutput: {{path: {folder}/run, rows_per_shard: 4}}\n"
        f"models: {{verifier: {pair}/verifier, drafter: {pair}/drafter, dtype: float64}}\n"
        f"engine: {{slots: 4, max_new_tokens: {new_tokens}}}\npolicy: {{kind: fixed}}\n"
        f"actors: {{count: {ACTORS}, cpus_each: 0.5, shards_in_flight: 2}}\n"
    )
    return file


def check(place: Place, reference: pa.Table, rows: int) -> None:
    """Each row once, byte for byte."""
    table = place.table()
    assert table.num_rows == rows
    assert table["id"].to_pylist() == reference["id"].to_pylist()
    for name in reference.column_names:
        assert _bytes(table.select([name])) == _bytes(reference.select([name])), name
    state = status(place.address)
    assert (state["state"], state["rows_done"], state["errors"]) == ("complete", rows, FILES)
    left = [name for name in place.names("") if name.startswith(".tmp-")]
    assert not left, "leftovers were removed"
    assert not place.names("inflight"), "so were notes about shards"


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Rounds:
    """Of the same job, on disk and perhaps on S3 by turns, until a schedule is worked off; each round is checked."""

    def __init__(self, folder: Path, pair: Path, rows_per_file: int, new_tokens: int) -> None:
        self.folder, self.rows = folder, FILES * rows_per_file
        self.job = write_job(folder, pair, rows_per_file, new_tokens)
        quiet = OnDisk(folder / "quiet")
        words = command("run", str(self.job), f"output.path={quiet.address}")
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.reference = quiet.table()
        self.count = 0

    def survive(self, chaos: Chaos, kinds: Iterator[str]) -> None:
        while chaos.schedule:
            self.count += 1
            place = OnS3(f"run{self.count}") if next(kinds) == "S3" else OnDisk(self.folder / f"run{self.count}")
            source = f"s3://{BUCKET}/in" if place.kind == "S3" else f"{self.folder}/in"
            chaos.finish(command("run", str(self.job), f"input.path={source}", f"output.path={place.address}"), place)
            check(place, self.reference, self.rows)
        tell(f"{chaos.report()}\n{self.count} rounds of {self.rows} rows, each row once and byte for byte")

    def upload(self) -> None:
        client = spared_client()
        for path in (self.folder / "in").iterdir():
            client.put_object(Bucket=BUCKET, Key=f"in/{path.name}", Body=path.read_bytes())


def tell(text: str) -> None:
    sys.stderr.write(f"\n{text}")
    sys.stderr.flush()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_an_actor_and_the_driver_are_killed(tmp_path: Path, pair: Path) -> None:
    rounds = Rounds(tmp_path, pair, rows_per_file=100, new_tokens=24)
    chaos = Chaos(["actor", "driver"], random.Random(0), tmp_path / "log.txt", most_wait_seconds=0.3, early=0.0)
    rounds.survive(chaos, cycle(["disk"]))
    assert sorted(kill.kind for kill in chaos.kills) == ["actor", "driver"]
    assert set(chaos.exit_codes) == {0}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_hundred_kills(tmp_path: Path, pair: Path) -> None:
    seed, kills = int(os.environ.get("CMASD_CHAOS_SEED", "0")), int(os.environ.get("CMASD_CHAOS_KILLS", "100"))
    schedule = [kind for kind, weight in WEIGHTS.items() for _ in range(max(1, round(kills * weight / 100)))][-kills:]
    random.Random(seed).shuffle(schedule)
    with faulty_s3(attempts=None) as s3:
        rounds = Rounds(tmp_path, pair, rows_per_file=200, new_tokens=24)
        rounds.upload()
        s3.weather = Weather(WEATHER, random.Random(seed))
        chaos = Chaos(list(schedule), random.Random(seed), tmp_path / "log.txt", tell=tell)
        rounds.survive(chaos, cycle(["disk", "S3"]))
        s3.weather = None
        tell(f"faults of S3, in {len(s3.requests):,} requests: {dict(s3.injected)}\n")
    assert sorted(kill.kind for kill in chaos.kills) == sorted(schedule)
    # -15 is 143 of a driver that was stopped before it had begun to listen.
    assert set(chaos.exit_codes) <= {0, 1, 143, -signal.SIGTERM}, "what fails says that a rerun resumes"
