"""Hundreds of kills at the level of files: every row is there once, and no leftovers are."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from cmasd.io.status import status
from tests.integration.chaos import ROOT
from tests.integration.killed_writers import ROWS


@pytest.mark.parametrize(
    ("kills", "seed"), [(30, 1), pytest.param(1000, 2, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_every_row_once_after_many_kills(tmp_path: Path, kills: int, seed: int) -> None:
    words = [sys.executable, "-m", "tests.integration.killed_writers", str(tmp_path), str(kills), str(seed)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert codes["run -9"] + codes["compact -9"] == kills
    assert min(codes["run -9"], codes["compact -9"]) > kills // 20
    assert {name.split()[-1] for name in codes} <= {"0", "-9"}, f"{codes} {done.stderr}"
    rows = pads.dataset(tmp_path / "run" / "outputs").to_table(columns=["id", "error"]).to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(f"in.jsonl:{i}" for i in range(ROWS))
    assert all(row["error"] == f"read: row {row['id'].split(':')[1]}" for row in rows)
    state = status(str(tmp_path / "run"))
    assert (state["state"], state["rows_done"]) == ("complete", ROWS)
    assert state["files"] < ROWS // 4, "the small files were merged"
    assert not list(tmp_path.rglob(".tmp-*"))
