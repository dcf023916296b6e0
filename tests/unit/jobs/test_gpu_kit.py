"""The GPU kit on a CPU, eagerly: each step measures, a step that fails leaves the others' results in the record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmasd.checkpoints.random_models import Sizes, decoder_only, encoder_decoder
from jobs import gpu_kit
from jobs.gpu_kit import Record, config_of, floor, measure, random_pair, sources

TINY = Sizes(width=16, feed_forward=32, heads=2, layers=2, drafter_layers=1, vocabulary=64)


def test_the_floor_is_measured() -> None:
    found = floor("cpu", repeats=4)
    assert all(value > 0 for value in found.values())
    assert set(found) == {"launch_microseconds", "memory_gb_per_second", "product_tflops"}


def test_every_step_is_in_the_record_and_a_failing_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kit, "tests", lambda seconds: {"exit": 0, "said": ["3 skipped"]})
    config = config_of(drafter={"max_draft_tokens": 2}, engine={"max_new_tokens": 6})

    def broken() -> None:
        raise RuntimeError("out of memory")

    models = {
        "base": (lambda: random_pair(encoder_decoder, TINY, "cpu"), config, sources(8, 64)),
        "broken": (broken, config, sources(8, 64)),
        "decoder": (lambda: random_pair(decoder_only, TINY, "cpu"), config, sources(8, 64)),
    }
    record = Record(tmp_path / "record.json")
    measure(record, 6.0, "cpu", [1, 2], models)
    kept = json.loads(record.path.read_text())
    assert kept["tests"]["exit"] == 0
    assert kept["broken_error"] == "RuntimeError: out of memory"
    for name in ("base", "decoder"):
        assert {(step["rows"], step["query_tokens"]) for step in kept[f"{name}_steps"]} >= {(1, 1), (2, 8)}
        assert {row["batch_size"] for row in kept[f"{name}_bench"]} == {1, 2}
        assert {row["engine"] for row in kept[f"{name}_bench"]} >= {"plain", "goodput"}
        assert all(row["exact_match_to_plain"] == 1 for row in kept[f"{name}_bench"])
    assert set(kept["seconds"]) == {"tests", "floor", "base", "broken", "decoder"}


def test_the_marked_tests_run_in_a_process_of_their_own() -> None:
    """Without a GPU they skip themselves, or none is left: pytest's exit codes 0 and 5."""
    found = gpu_kit.tests(120.0)
    assert found["exit"] in (0, 5), found["said"]
    assert gpu_kit.tests(0.01)["exit"] is None


def test_it_needs_neither_ray_nor_omegaconf() -> None:
    alone = """
import sys
sys.modules.update(ray=None, omegaconf=None)
from jobs.gpu_kit import models_of
make, config, rows = models_of("cpu")["bundled"]
assert make().drafter is not None
assert len(rows) == 256
"""
    done = subprocess.run([sys.executable, "-c", alone], cwd=gpu_kit.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
