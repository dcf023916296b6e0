"""`actors.local`: the same rows as by Ray's actors, in one process that never loads Ray; killed, it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cmasd.config import from_dict
from cmasd.config.reading import load
from cmasd.errors import ConfigError
from cmasd.pipeline.run import Watcher, run
from cmasd.pipeline.tally import Progress
from jobs.main import main
from tests.integration.conftest import SENTENCES

ROWS = 90


@pytest.fixture
def config_file(tmp_path: Path, pair: Path) -> Path:
    rows: list[dict[str, Any]] = [{"text": SENTENCES[i % 6], "n": i} for i in range(ROWS - 1)]
    rows.append({"text": None, "n": -1})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "input": {"path": str(tmp_path / "in.jsonl"), "keep_columns": ["n"]},
                "output": {"path": str(tmp_path / "run"), "rows_per_shard": 5},
                "models": {"verifier": str(pair / "verifier"), "drafter": str(pair / "drafter")},
                "engine": {"slots": 4, "max_new_tokens": 8},
                "limits": {"max_failed_fraction": 0.1},
                "actors": {"local": True},
            }
        )
    )
    return tmp_path / "run.json"


def written(folder: Path) -> dict[int, str | None]:
    tables = [pq.read_table(path, columns=["n", "output"]) for path in sorted((folder / "outputs").glob("*.parquet"))]
    rows = [(row["n"], row["output"]) for table in tables for row in table.to_pylist()]
    assert max(Counter(n for n, _ in rows).values()) == 1, "no row twice"
    return dict(rows)


def test_every_row_comes_out_once_and_ray_is_never_loaded(config_file: Path) -> None:
    code = (
        "import sys\nfrom jobs.main import main\n"
        f"code = main(['run', {str(config_file)!r}, 'baseline.rows=8'])\n"
        "assert 'ray' not in sys.modules, 'ray was loaded'\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    rows = written(config_file.parent / "run")
    assert len(rows) == ROWS
    assert [n for n, output in rows.items() if output is None] == [-1]
    summary = json.loads((config_file.parent / "run" / "summary.json").read_text())
    assert (summary["rows"], summary["errors"]) == (ROWS, 1)
    assert summary["baseline"]["exact_match"] == 1.0
    assert main(["status", str(config_file.parent / "run")]) == 0


class SomeoneDies(Watcher):
    """While writing, at each shard."""

    def __init__(self, outputs: Path) -> None:
        self.outputs, self.deaths = outputs, 0

    def progress(self, progress: Progress) -> None:
        self.deaths += 1
        (self.outputs / f".tmp-part-{self.deaths}").write_bytes(b"half")


def test_what_actors_leave_that_die_while_writing_is_removed(config_file: Path) -> None:
    watcher = SomeoneDies(config_file.parent / "run" / "outputs")
    run(load([str(config_file)], []), watcher=watcher)
    assert watcher.deaths > 0
    assert not list(config_file.parent.rglob(".tmp-*"))


def test_a_killed_run_is_completed_by_the_same_command(config_file: Path) -> None:
    outputs = config_file.parent / "run" / "outputs"
    command = [sys.executable, "-m", "jobs", "run", str(config_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(outputs.glob("*.parquet")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(list(outputs.glob("*.parquet")))
    assert before > 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert len(written(config_file.parent / "run")) == ROWS


def test_a_second_signal_stops_at_once_and_nothing_is_lost(config_file: Path) -> None:
    """One shard of all rows, one after the other."""
    long = ["output.rows_per_shard=90", "engine.slots=1", "engine.max_new_tokens=100", "limits.drain_seconds=1000"]
    command = [sys.executable, "-m", "jobs", "run", str(config_file), "input.template={text}" + " again" * 20]
    process = subprocess.Popen([*command, *long], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    begun = config_file.parent / "run" / "inflight"
    deadline = time.monotonic() + 120
    while not list(begun.glob("part-*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    while "a second signal" not in process.stderr.readline() and process.poll() is None:
        pass
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    assert not list((config_file.parent / "run" / "outputs").glob("*.parquet")), "nobody waited for the shard"
    assert not list(begun.glob("part-*.json")), "a stop is no death"
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert len(written(config_file.parent / "run")) == ROWS


def test_other_actors_are_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"actors\.local: one process decodes, got 2 actors"):
        load([config_file], ["actors.count=2"])


def test_in_this_process_as_a_library(config_file: Path) -> None:
    """Two runs one after the other, each with a decoder of its own."""
    tree = json.loads(config_file.read_text())
    texts = []
    for name in ("first", "second"):
        config = from_dict({**tree, "output": {"path": str(config_file.parent / name), "rows_per_shard": 30}})
        assert run(config)["rows"] == ROWS
        texts.append(written(config_file.parent / name))
    assert texts[0] == texts[1]
