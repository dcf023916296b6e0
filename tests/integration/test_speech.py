"""Recordings through `cmasd run` and `plan`: a tiny Whisper, files of every kind, and none lost."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cmasd import Decoder
from jobs.main import main
from tests.unit.runner import tiny_whisper as tiny

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
GOOD = {"a.wav": 0.4, "b.flac": 1.0, "c.ogg": 3.3, "quiet.wav": 0.5}
"""Seconds."""


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    tiny.save(folder)
    return folder


@pytest.fixture
def config_file(tmp_path: Path, whisper: Path) -> Path:
    clips = tmp_path / "clips"
    clips.mkdir()
    for seed, (name, seconds) in enumerate(GOOD.items()):
        rate = 8000 if name == "b.flac" else tiny.RATE
        samples = tiny.noise(round(seconds * rate), seed) * 0.5 * (name != "quiet.wav")
        soundfile.write(clips / name, samples, rate)
    (clips / "broken.mp3").write_bytes(b"no sound")
    soundfile.write(clips / "empty.wav", np.zeros(0), tiny.RATE)
    tree: dict[str, Any] = {
        "input": {"path": str(clips), "keep_columns": ["file"]},
        "output": {"path": str(tmp_path / "run"), "rows_per_shard": 2},
        "models": {"verifier": str(whisper), "drafter": None, "dtype": "float64"},
        "speech": {"language": "en"},
        "drafter": {"kind": ["memory", "self"]},
        "policy": {"kind": "fixed"},
        "engine": {"slots": 2},
        "limits": {"max_failed_fraction": 0.5},
        "actors": {"local": True},
    }
    (tmp_path / "run.json").write_text(json.dumps(tree))
    return tmp_path / "run.json"


def written(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in sorted((folder / "outputs").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows), "no row twice"
    return {row["id"]: row for row in rows}


def test_every_recording_comes_out_once_with_a_text_or_a_reason(config_file: Path, whisper: Path) -> None:
    assert main(["run", str(config_file), "baseline.rows=2"]) == 0
    rows = written(config_file.parent / "run")
    assert rows.keys() == {*GOOD, "broken.mp3", "empty.wav"}
    assert "cannot be decoded" in rows["broken.mp3"]["error"]
    assert "has no samples" in rows["empty.wav"]["error"]
    summary = json.loads((config_file.parent / "run/summary.json").read_text())
    assert summary["baseline"]["exact_match"] == 1.0
    decode = Decoder(
        str(whisper), models={"dtype": "float64"}, speech={"language": "en"}, engine={"slots": 1}, input={"path": "-"}
    )
    names = list(GOOD)
    again = decode([str(config_file.parent / "clips" / name) for name in names])
    for name, row in zip(names, again, strict=True):
        assert rows[name]["error"] is None
        assert rows[name]["output"] == row.text
        assert rows[name]["file"] == name
        assert row.result is not None
        assert rows[name]["token_id"] == row.result.token_ids.tolist()
        assert rows[name]["num_input_tokens"] == -(-int(GOOD[name] * 40) // 2)
    assert rows["c.ogg"]["output"].startswith("w")


def test_segments_are_timed_from_the_recordings_beginning(config_file: Path) -> None:
    assert main(["run", str(config_file), "speech.output=segments", "speech.timestamps=true"]) == 0
    rows = written(config_file.parent / "run")
    segments = json.loads(rows["c.ogg"]["output"])
    assert len(segments) > 1
    times = [time for one in segments for time in (one["start"], one["end"])]
    assert times == sorted(times)
    assert 1.0 < times[-1] <= 3.3
    assert all(one["text"].startswith("w") for one in segments)


def test_plan_counts_hours_and_loads_neither_torch_nor_ray(config_file: Path) -> None:
    code = (
        "import sys\nfrom jobs.main import main\n"
        f"code = main(['plan', {str(config_file)!r}])\n"
        "assert not {'ray', 'torch'} & set(sys.modules), 'too much was loaded'\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "minutes, by the headers of 6 recordings" in done.stdout
    assert "6 total, 0 done, 6 to do" in done.stdout


def test_recordings_for_a_model_of_texts_are_refused_by_plan_and_run(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(config_file), "input.format=audio", "models.verifier=en-de/verifier", "drafter.kind=copy"]
    for verb in ("plan", "run"):
        assert main([verb, *asked, "models.dtype=float32"]) == 2
        assert "input.format: asks for recordings, and en-de/verifier reads texts" in capsys.readouterr().err
