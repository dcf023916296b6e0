"""The driver keeps some state per shard and none per row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.chaos import ROOT

MOST_BYTES_PER_SHARD = 15_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_grows_with_shards_alone_and_slowly(tmp_path: Path) -> None:
    """Of two runs, so that what the first thousand shards load and fill is left out."""
    found = []
    for shards in (1000, 4000):
        folder = tmp_path / str(shards)
        folder.mkdir()
        words = [sys.executable, "-m", "tests.integration.driver_memory", str(folder), str(shards), "1"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    sys.stderr.write(f"\n{found}\n")
    few, many = found
    grown = 1e6 * ((many["mb_at_most"] - many["mb_before"]) - (few["mb_at_most"] - few["mb_before"]))
    assert grown / (many["shards"] - few["shards"]) < MOST_BYTES_PER_SHARD, found
