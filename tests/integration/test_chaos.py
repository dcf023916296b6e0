"""Whatever is killed, however often: every row once, and the same bytes as if nothing had happened.

`-m "chaos and not slow"` runs the part that fits into CI; `-m "chaos and slow"` kills a hundred times. What was
survived goes to stderr, which `-s` shows. `CMASD_CHAOS_KILLS` and `CMASD_CHAOS_SEED` choose
another number and another course.
"""

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from cmasd.io.status import status
from tests.integration.chaos import ROOT, Chaos, command
from tests.integration.conftest import SENTENCES

FILES = 4
PADDING = "x" * 10_000
"""In a column that is not kept, so that reading takes long enough to be killed."""


WEIGHTS = {
    "actor": 10,
    "preempted actor": 2,
    "reader": 2,
    "driver": 3,
    "stopped driver": 1,
    "raylet": 2,
    "control store": 1,
}
"""How often each kind is hit in the long part: a start of Ray costs far more than one of an actor."""


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
        "actors: {count: 2, cpus_each: 0.5, shards_in_flight: 2}\n"
    )
    return file


def count_parts(run: Path) -> int:
    return sum(1 for _ in (run / "outputs").glob("part-*"))


def outputs(run: Path) -> pa.Table:
    """All columns of all rows, by id."""
    return pads.dataset(run / "outputs").to_table().sort_by("id").combine_chunks()


def check(run: Path, reference: pa.Table, rows: int) -> None:
    """Each row once, byte for byte."""
    table = outputs(run)
    assert table.num_rows == rows
    assert table["id"].to_pylist() == reference["id"].to_pylist()
    for name in reference.column_names:
        assert _bytes(table.select([name])) == _bytes(reference.select([name])), name
    state = status(str(run))
    assert (state["state"], state["rows_done"], state["errors"]) == ("complete", rows, FILES)
    assert not list(run.rglob(".tmp-*")), "leftovers were removed"


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def survive(folder: Path, pair: Path, schedule: list[str], seed: int, rows_per_file: int, new_tokens: int) -> Chaos:
    """Rounds of the same job, until the schedule is worked off; each round is checked."""
    job = write_job(folder, pair, rows_per_file, new_tokens)
    quiet = subprocess.run(
        command("run", str(job), f"output.path={folder}/quiet"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert quiet.returncode == 0, quiet.stderr
    reference = outputs(folder / "quiet")
    chaos = Chaos(schedule, random.Random(seed), folder / "log.txt")
    rounds = 0
    while chaos.schedule:
        rounds += 1
        run = folder / f"run{rounds}"
        chaos.finish(command("run", str(job), f"output.path={run}"), partial(count_parts, run))
        check(run, reference, FILES * rows_per_file)
    said = f"{chaos.report()}\n{rounds} rounds of {FILES * rows_per_file} rows, each row once and byte for byte"
    sys.stderr.write(f"\n{said}\n")
    return chaos


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_kill_of_each_kind(tmp_path: Path, pair: Path) -> None:
    chaos = survive(tmp_path, pair, ["reader", "actor", "raylet", "driver"], seed=0, rows_per_file=100, new_tokens=24)
    assert sorted(kill.kind for kill in chaos.kills) == ["actor", "driver", "raylet", "reader"]
    assert set(chaos.exit_codes) <= {0, 1}, "what fails says that a rerun resumes"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_hundred_kills(tmp_path: Path, pair: Path) -> None:
    seed, kills = int(os.environ.get("CMASD_CHAOS_SEED", "0")), int(os.environ.get("CMASD_CHAOS_KILLS", "100"))
    schedule = random.Random(seed).choices(list(WEIGHTS), list(WEIGHTS.values()), k=kills)
    chaos = survive(tmp_path, pair, schedule, seed, rows_per_file=400, new_tokens=24)
    assert len(chaos.kills) == kills
    assert set(chaos.exit_codes) <= {0, 1, 143}
