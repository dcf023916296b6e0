"""Recordings: every way in which rows name them, what is decoded from any file, and what is wrong with bad ones."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.config import Config, from_dict
from cmasd.errors import InputError, StorageError
from cmasd.io.plan import make_plan, source_of
from cmasd.io.shards import read_shards
from cmasd.io.sound import RATE, Listener, Samples, Unheard, decoded
from cmasd.io.storage import Storage
from tests.faulty_s3 import BUCKET, Fault, FaultyS3, faulty_s3

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
KINDS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("flac", None), ("ogg", "VORBIS"), ("mp3", None)]


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> Samples:
    samples: Samples = (0.5 * np.sin(np.arange(round(seconds * rate)) / rate * 2 * np.pi * hertz)).astype(np.float32)
    return samples


def encoded(samples: Any, rate: int = RATE, kind: str = "wav", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def config(path: Path | str, speech: dict[str, Any] | None = None, **keys: Any) -> Config:
    return from_dict({"input": {"path": str(path), **keys}, "output": {"path": "unused"}, "speech": speech or {}})


def rows_of(config: Config) -> list[dict[str, Any]]:
    plan, rows = make_plan(config), []
    for number, planned in enumerate(plan.files):
        part = plan.part(number)
        for _, table in read_shards(part, source_of(config, planned.file), {shard.index for shard in part.shards()}):
            rows += table.to_pylist()
    return rows


def heard(config: Config) -> dict[str, int | str]:
    """Samples of each row, or why there are none."""
    listen = Listener(config.input.path, config.speech.max_seconds)
    found: dict[str, int | str] = {}
    for row in rows_of(config):
        try:
            found[row["id"]] = row["error"] or len(listen(row["text"]))
        except Unheard as error:
            found[row["id"]] = str(error)
    return found


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_any_file_becomes_one_channel_at_16_khz(kind: str, subtype: str | None, rate: int) -> None:
    left = tone(1.5, rate)
    samples = decoded(io.BytesIO(encoded(np.stack([left, left * 0.5], axis=1), rate, kind, subtype)), 60.0)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 1.5 * RATE) < 0.1 * RATE  # mp3 pads
    middle = samples[len(samples) // 4 : len(samples) // 2]
    loudest = np.abs(np.fft.rfft(middle)).argmax() * RATE / len(middle)
    assert loudest == pytest.approx(440, abs=4)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.375 / 2**0.5, rel=0.05)


def test_16_khz_stays_as_it_is() -> None:
    given = tone(0.7)
    assert np.array_equal(decoded(io.BytesIO(encoded(given, subtype="FLOAT")), 60.0), given)


def test_what_cannot_be_heard_says_why() -> None:
    whole = encoded(tone(2.0), kind="flac")
    bad = {
        b"": "cannot be decoded",
        b"no recording at all" * 50: "Format not recognised",
        whole[: len(whole) // 2]: "cannot be decoded",
        encoded(np.zeros(0)): "has no samples",
        encoded(np.full(16, np.nan), subtype="FLOAT"): "samples that are no numbers",
        encoded(tone(2.0)): "longer than 1 seconds",
    }
    for data, why in bad.items():
        with pytest.raises(Unheard, match=why):
            decoded(io.BytesIO(data), 1.0 if why.startswith("longer") else 60.0)


def test_silence_is_heard_as_silence() -> None:
    assert not decoded(io.BytesIO(encoded(np.zeros(RATE))), 60.0).any()


def test_an_hour_is_read_in_blocks() -> None:
    with pytest.raises(Unheard, match="longer than 60 seconds"):
        decoded(io.BytesIO(encoded(np.zeros(8000 * 3600, np.int16), 8000)), 60.0)
    assert len(decoded(io.BytesIO(encoded(np.zeros(8000 * 3600, np.int16), 8000)), 3600.0)) == RATE * 3600


def test_a_folder_is_one_input_whose_rows_are_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.wav").write_bytes(encoded(tone(0.5)))
    (tmp_path / "a/two.FLAC").write_bytes(encoded(tone(0.25, 8000), 8000, "flac"))
    (tmp_path / "three.ogg").write_bytes(b"broken")
    (tmp_path / ".hidden.wav").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no recording")
    asked = config(tmp_path, keep_columns=["file"])
    plan = make_plan(asked)
    assert (plan.format, len(plan.files), plan.rows) == ("audio", 1, 3)
    assert heard(asked) == {
        "a/one.wav": RATE // 2,
        "a/two.FLAC": RATE // 4,
        "three.ogg": "the recording cannot be decoded (Format not recognised)",
    }
    assert [row["keep.file"] for row in rows_of(asked)] == ["a/one.wav", "a/two.FLAC", "three.ogg"]


def test_a_folder_changes_with_any_of_its_files(tmp_path: Path) -> None:
    def stamp() -> str:
        return make_plan(config(tmp_path)).files[0].file.stamp

    (tmp_path / "one.wav").write_bytes(encoded(tone(0.5)))
    first = stamp()
    assert stamp() == first
    (tmp_path / "two.wav").write_bytes(encoded(tone(0.5)))
    second = stamp()
    (tmp_path / "two.wav").rename(tmp_path / "three.wav")
    assert len({first, second, stamp()}) == 3


def test_one_file_and_a_glob_are_inputs_too(tmp_path: Path) -> None:
    for name in ("one.wav", "two.wav"):
        (tmp_path / name).write_bytes(encoded(tone(0.5)))
    assert heard(config(tmp_path / "one.wav")) == {"one.wav": RATE // 2}
    assert heard(config(tmp_path / "t*.wav")) == {"two.wav": RATE // 2}
    with pytest.raises(InputError, match="no recordings"):
        make_plan(config(tmp_path / "x", format="audio"))


def test_parquet_holds_bytes_or_paths_as_hugging_face_has_them(tmp_path: Path) -> None:
    (tmp_path / "beside.wav").write_bytes(encoded(tone(0.5)))
    column = [
        {"bytes": encoded(tone(1.0), kind="flac"), "path": "gone.flac"},
        {"bytes": None, "path": "beside.wav"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "s3://other/key.wav"},
        {"bytes": None, "path": "gone.wav"},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"audio": pa.array(column, kind), "text": ["said"] * 6, "n": list("abcdef")}), tmp_path / "in.parquet"
    )
    found = heard(config(tmp_path / "in.parquet", {"audio_column": "audio"}, id_column="n", keep_columns=["text"]))
    assert (found["a"], found["b"]) == (RATE, RATE // 2)
    assert "neither bytes nor a path" in str(found["c"])
    assert found["d"] == "recording is null"
    assert "another storage" in str(found["e"])
    assert "there is no recording at" in str(found["f"])


def test_a_parquet_column_of_plain_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sound": pa.array([encoded(tone(0.5))], pa.binary())}), tmp_path / "in.parquet")
    assert list(heard(config(tmp_path / "in.parquet", {"audio_column": "sound"})).values()) == [RATE // 2]
    pq.write_table(pa.table({"sound": [1.5]}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"column 'sound' is double, expected bytes, paths, or both"):
        make_plan(config(tmp_path / "in.parquet", {"audio_column": "sound"}))


def test_a_saved_dataset_has_the_column_as_its_library_writes_it(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array([{"bytes": encoded(tone(0.5)), "path": None}, None], kind)})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert list(heard(config(tmp_path, {"audio_column": "audio"})).values()) == [RATE // 2, "recording is null"]


def test_a_manifest_names_files_beside_it_and_settings_of_rows(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/one.wav").write_bytes(encoded(tone(0.5)))
    lines: list[Any] = [
        {"path": "clips/one.wav", "lang": "de", "what": "translate", "times": True},
        {"path": str(tmp_path / "clips/one.wav"), "lang": None},
        {"path": "clips/one.wav", "what": "sing"},
        {"path": "clips/one.wav", "times": "perhaps"},
        {"path": "clips/one.wav", "lang": 3},
        {"path": 5},
        {"other": "clips/one.wav"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"language_column": "lang", "task_column": "what", "timestamps_column": "times"}
    asked = config(tmp_path / "in.jsonl", {"audio_column": "path", **columns})
    found, rows = list(heard(asked).values()), rows_of(asked)
    assert found[:2] == [RATE // 2, RATE // 2]
    assert [rows[0]["text"][name] for name in ("language", "task", "timestamps")] == ["de", "translate", True]
    assert [rows[1]["text"][name] for name in ("language", "task", "timestamps")] == [None, None, None]
    whys = ["expected transcribe or translate", "expected true or false", "expected a language", "recording is int"]
    for what, why in zip(found[2:], [*whys, "no column 'path'"], strict=True):
        assert why in str(what)


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as layer:
        yield layer


def test_a_bucket_holds_recordings_and_manifests(server: FaultyS3) -> None:
    storage = Storage(f"s3://{BUCKET}/speech")
    storage.write(f"{BUCKET}/speech/clips/one.wav", encoded(tone(0.5)))
    storage.write(f"{BUCKET}/speech/clips/two.flac", encoded(tone(0.25), kind="flac"))
    lines = [{"path": "clips/one.wav"}, {"path": f"s3://{BUCKET}/speech/clips/two.flac"}, {"path": "/etc/passwd"}]
    storage.write(f"{BUCKET}/speech/in.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert heard(config(f"s3://{BUCKET}/speech/clips")) == {"one.wav": RATE // 2, "two.flac": RATE // 4}
    found = list(heard(config(f"s3://{BUCKET}/speech/in.jsonl", {"audio_column": "path"})).values())
    assert found[:2] == [RATE // 2, RATE // 4]
    assert "a path of no bucket" in str(found[2])
    server.faults = [Fault("internal", 1000, "GET")]
    with pytest.raises(StorageError):
        Listener(f"s3://{BUCKET}/speech", 60.0)({"bytes": None, "path": f"{BUCKET}/speech/clips/one.wav"})
    server.faults.clear()


def test_a_csv_of_paths(tmp_path: Path) -> None:
    (tmp_path / "one.wav").write_bytes(encoded(tone(0.5)))
    (tmp_path / "in.csv").write_text("clip,times\none.wav,yes\n")
    asked = config(tmp_path / "in.csv", {"audio_column": "clip", "timestamps_column": "times"})
    assert list(heard(asked).values()) == [RATE // 2]
    assert rows_of(asked)[0]["text"]["timestamps"] is True


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"audio": "one.wav"}) + "\n")
    with pytest.raises(InputError, match=r"no column 'sound' .*Set speech.audio_column"):
        make_plan(config(tmp_path / "in.jsonl", {"audio_column": "sound"}))
    with pytest.raises(InputError, match=r"no column 'lang' .*Set speech.language_column"):
        make_plan(config(tmp_path / "in.jsonl", {"audio_column": "audio", "language_column": "lang"}))


def test_seconds_are_told_by_the_header(tmp_path: Path) -> None:
    listen = Listener(str(tmp_path), 60.0)
    assert listen.seconds({"bytes": encoded(tone(1.5, 8000), 8000), "path": None}) == pytest.approx(1.5)
    assert listen.seconds({"bytes": b"broken", "path": None}) is None
    assert listen.seconds({"bytes": None, "path": "gone"}) is None


def test_what_is_given_from_python_is_checked() -> None:
    listen = Listener("-", 1.0)
    assert len(listen(np.zeros(100))) == 100
    for bad in (np.zeros((2, 5)), np.zeros(5, np.int16), np.zeros(RATE + 1), 5):
        with pytest.raises(Unheard):
            listen(bad)
