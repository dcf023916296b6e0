"""Whole runs on a real Ray, with a real, tiny pair: outputs, resumption, bad rows, failures, S3."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

from cmasd.config import Config, from_dict
from cmasd.errors import ConfigError, ModelError, RunFolderError, RunInUseError, TooManyFailedRowsError
from cmasd.io.compaction import compact
from cmasd.io.lease import Lease, newest_lease
from cmasd.io.plan import make_plan
from cmasd.io.status import status
from cmasd.io.storage import Storage
from cmasd.pipeline.cluster import start_local
from cmasd.pipeline.run import run
from cmasd.telemetry.schema import output_schema
from tests.integration.conftest import SENTENCES


@pytest.fixture(scope="module", autouse=True)
def connection() -> Iterator[None]:
    """One Ray for all runs of this file."""
    import ray

    start_local(logging.CRITICAL, num_cpus=2)
    yield
    ray.shutdown()


def config(folder: Path | str, pair: Path, source: Path | str, **sections: Any) -> Config:
    keys: dict[str, dict[str, Any]] = {
        "input": {"path": str(source)},
        "output": {"path": f"{folder}/run", "rows_per_shard": 8},
        "models": {"verifier": str(pair / "verifier"), "drafter": str(pair / "drafter"), "dtype": "float64"},
        "engine": {"slots": 8, "max_new_tokens": 6},
        "policy": {"kind": "fixed"},
    }
    for name, values in sections.items():
        keys[name] = {**keys.get(name, {}), **values}
    return from_dict(keys)


def corpus(path: Path, rows: int) -> Path:
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": SENTENCES[i % 6], "n": i}) + "\n" for i in range(rows)))
    return path


def outputs(folder: Path) -> Any:
    return pads.dataset(folder / "run" / "outputs").to_table()


def test_a_run_and_its_resumption(tmp_path: Path, pair: Path) -> None:
    columns = {"keep_columns": ["n"], "id_column": "id"}
    asked = config(tmp_path, pair, corpus(tmp_path / "in.jsonl", 37), input=columns)
    summary = run(asked)
    table = outputs(tmp_path)
    assert sorted(table["n"].to_pylist()) == list(range(37))
    assert table["id"].to_pylist() == [f"r{n}" for n in table["n"].to_pylist()]
    part = pq.read_schema(tmp_path / "run" / "outputs" / "part-00000-000000.parquet")
    assert part.equals(output_schema("token", list(make_plan(asked).spec.keep), keeps_source=True))
    assert (summary["rows"], summary["errors"], summary["lossless"], summary["rows_done_before"]) == (37, 0, "exact", 0)
    assert summary["output_tokens"] == sum(table["num_output_tokens"].to_pylist())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"config", "fingerprint", "versions", "hardware", "git_commit", "plan"} <= manifest.keys()

    first = (tmp_path / "run" / "outputs" / "part-00000-000000.parquet").stat().st_mtime_ns
    (tmp_path / "run" / "outputs" / "part-00000-000002.parquet").unlink()
    again = run(replace(asked, engine=replace(asked.engine, slots=3)))
    exact = ["n", "id", "output", "finish_reason", "token_id", "iteration_accepted"]
    assert outputs(tmp_path).sort_by("n").select(exact).equals(table.sort_by("n").select(exact))
    assert (again["rows"], again["rows_done_before"], again["attempts"]) == (37, 29, 2)
    assert again["output_tokens"] == summary["output_tokens"]
    assert (tmp_path / "run" / "outputs" / "part-00000-000000.parquet").stat().st_mtime_ns == first
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == again
    assert status(str(tmp_path / "run"))["state"] == "complete"
    assert again["notices"] == [
        f"engine.slots: {asked.engine.slots} -> 3 since the run began; exact output does not depend on it."
    ]
    assert run(asked)["attempts"] == 2, "a complete run starts nothing"

    with pytest.raises(RunFolderError, match=r"input.on_too_long: error -> truncate"):
        run(
            config(
                tmp_path,
                pair,
                tmp_path / "in.jsonl",
                input={"keep_columns": ["n"], "id_column": "id", "on_too_long": "truncate"},
            )
        )


def test_bad_rows_stay_in_the_output_until_there_are_too_many(tmp_path: Path, pair: Path) -> None:
    good = [{"text": sentence} for sentence in SENTENCES * 5]
    bad = [{"text": None}, {"text": 7}, {"text": "long " * 500}, {"other": 1}]
    lines = [json.dumps(row) for row in (*good, *bad)] + ["{broken"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pytest.raises(TooManyFailedRowsError, match=r"of 35 rows failed, at most 1.75 may") as caught:
        run(config(tmp_path, pair, tmp_path / "in.jsonl"))
    assert caught.value.exit_code == 3
    assert status(str(tmp_path / "run"))["state"] == "failed"
    assert (tmp_path / "run" / "outputs").is_dir(), "finished shards stay"

    summary = run(config(tmp_path, pair, tmp_path / "in.jsonl", limits={"max_failed_fraction": 0.2}))
    rows = outputs(tmp_path).to_pylist()
    failed = sorted((row for row in rows if row["error"]), key=lambda row: int(row["id"].split(":")[1]))
    assert (len(rows), summary["errors"], summary["finish_reasons"]["error"]) == (35, 5, 5)
    stages = [row["error"].split(":")[0] for row in failed]
    assert stages == ["read", "read", "encode", "read", "read"]
    assert all(row["finish_reason"] == "error" and row["output"] is None and row["token_id"] == [] for row in failed)


def test_a_model_that_fails_ends_the_run_with_its_cause(tmp_path: Path, pair: Path) -> None:
    source = corpus(tmp_path / "in.jsonl", 20)
    with pytest.raises(ConfigError, match=r"^engine\.slots: does not fit into memory, got 10{15} ") as caught:
        run(config(tmp_path, pair, source, engine={"slots": 10**15}))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(ModelError, match="nowhere"):
        run(config(tmp_path, pair, source, models={"verifier": str(tmp_path / "nowhere")}))
    assert status(str(tmp_path / "run"))["state"] == "failed"


def test_two_actors_and_many_files(tmp_path: Path, pair: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        corpus(tmp_path / "in" / f"{number}.jsonl", 3 + 9 * number)
    asked = config(tmp_path, pair, tmp_path / "in", actors={"count": 2}, telemetry={"level": "none"})
    summary = run(asked)
    ids = outputs(tmp_path)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == summary["rows"] == 105
    assert outputs(tmp_path).column_names == output_schema("none", keeps_source=True).names


def test_the_check_against_ar_runs_once(tmp_path: Path, pair: Path) -> None:
    asked = config(tmp_path, pair, corpus(tmp_path / "in.jsonl", 20), baseline={"rows": 5})
    seen = {"rows": 5, "speedup": 1.5, "speedup_high": 1.6, "sources": 0}

    def compare(pair: Any, config: Config, sources: list[list[int]], previous: object) -> dict[str, Any]:
        assert previous is None
        return {**seen, "sources": len(sources), "first": sources[0][-1] == pair.codec.encode(["x"])[0][-1]}

    summary = run(asked, compare)
    seconds = summary["baseline"]["seconds"]
    assert summary["baseline"] == {
        **seen,
        "sources": 5,
        "first": True,
        "seconds": seconds,
        "asked": {"rows": 5, "hf_generate": False, "batch_sizes": [], "rerun_dtype": None},
    }
    assert summary["seconds_by_phase"]["comparing"] == seconds > 0
    assert run(asked, None)["baseline"] == summary["baseline"], "an earlier result is kept"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server on loopback."""
    boto3 = pytest.importorskip("boto3")
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in {**values, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="corpus")
    yield "corpus"
    server.stop()


def test_s3_in_and_out(tmp_path: Path, pair: Path, bucket: str) -> None:
    import boto3
    import ray

    client = boto3.client("s3")
    for number in range(2):
        client.upload_file(str(corpus(tmp_path / f"{number}.jsonl", 12)), bucket, f"in/{number}.jsonl")
    # Workers of the running Ray have the environment of its start; a job's workers would have the driver's.
    names = [name for name in os.environ if name.startswith("AWS_")]
    ray.shutdown()
    start_local(logging.CRITICAL, num_cpus=2, runtime_env={"env_vars": {name: os.environ[name] for name in names}})
    asked = config(f"s3://{bucket}/out", pair, f"s3://{bucket}/in", actors={"shards_in_flight": 3})
    summary = run(asked)
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix="out/run/")["Contents"]]
    assert summary["rows"] == 24
    assert sum("outputs/part-" in key for key in keys) == 4
    assert {"out/run/manifest.json", "out/run/summary.json", "out/run/attempts/0001.json"} <= set(keys)

    client.delete_object(Bucket=bucket, Key="out/run/outputs/part-00001-000001.parquet")
    assert status(f"s3://{bucket}/out/run")["shards_done"] == 3
    seen = newest_lease(Storage(f"s3://{bucket}/out/run"))
    with Lease(Storage(f"s3://{bucket}/out/run"), "RUN", "run", after=seen) as lease:
        with pytest.raises(RunInUseError, match=rf"out/run: is in use by process {os.getpid()} on "):
            run(asked)
        path = f"{bucket}/out/run/leases/{lease.record.number + 1:06d}.json"
        assert Storage("s3://").create(path, b"first")
        assert not Storage("s3://").create(path, b"second"), "the store grants a name once"
        client.delete_object(Bucket=bucket, Key=path.partition("/")[2])
    assert compact(f"s3://{bucket}/out/run", 10**9).files_after == 1
    assert run(asked)["rows_done_before"] == 20
    assert status(f"s3://{bucket}/out/run")["state"] == "complete"
    client.put_object(Bucket=bucket, Key="in/1.jsonl", Body=b'{"text": "changed"}\n')
    with pytest.raises(RunFolderError, match=r"1\.jsonl has changed"):
        run(asked)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_calibration_from_the_telemetry_of_a_run(
    tmp_path: Path, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the run is enough; the file that is written changes confidences as it says, and no output."""
    from cmasd.confidence import load_calibration
    from jobs.main import main

    source = corpus(tmp_path / "in.jsonl", 120)
    run(config(tmp_path, pair, source))
    for part in ("000003", "000007"):
        (tmp_path / "run" / "outputs" / f"part-00000-{part}.parquet").unlink()
    assert main(["calibrate", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    report = json.loads(said.splitlines()[-1])
    raw = outputs(tmp_path)
    rejected = sum(value == value for row in raw["iteration_rejected_confidence"].to_pylist() for value in row)
    assert report["rows"] == 104
    assert report["tokens"] == sum(raw["num_accepted_tokens"].to_pylist()) + rejected
    assert {one["score"] for one in report["scores"]} == {"max_prob", "entropy", "margin", "softmax", "ensemble"}
    assert f"confidence.kind={report['best']} confidence.calibration={tmp_path}/run/calibration.json" in said

    kept = tmp_path / "maps.json"
    (tmp_path / "run" / "calibration.json").rename(kept)
    (tmp_path / "run").rename(tmp_path / "before")
    confidence = {"kind": "max_prob", "calibration": str(kept)}
    asked = config(tmp_path, pair, source, confidence=confidence)
    run(asked)
    first = pads.dataset(tmp_path / "before" / "outputs").to_table().sort_by("id")
    mapped = outputs(tmp_path)
    mapped = mapped.filter(pc.is_in(mapped["id"], first["id"])).sort_by("id")
    assert mapped["output"].equals(first["output"])
    calibration = load_calibration(asked.confidence, asked.score)
    assert calibration is not None
    before, after = (
        torch.tensor([value for row in table["token_confidence"].to_pylist() for value in row or ()])
        for table in (first, mapped)
    )
    torch.testing.assert_close(after, calibration(before), equal_nan=True, atol=1e-4, rtol=0)


def test_runs_that_cannot_be_calibrated(tmp_path: Path, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.main import main

    assert main(["calibrate", str(tmp_path)]) == 2
    run(config(tmp_path, pair, corpus(tmp_path / "in.jsonl", 8), telemetry={"level": "iteration"}))
    assert main(["calibrate", str(tmp_path / "run")]) == 2
    (tmp_path / "run").rename(tmp_path / "coarse")
    run(config(tmp_path, pair, tmp_path / "in.jsonl", policy={"kind": "plain"}))
    assert main(["calibrate", str(tmp_path / "run")]) == 2
    assert main(["calibrate", str(tmp_path / "run"), "--output", str(tmp_path / "nowhere" / "map.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "is not a run folder" in said[0]
    assert "telemetry.level is iteration. Run with telemetry.level=token" in said[1]
    assert "too few judged draft tokens to calibrate, got 0; expected at least 200" in said[2]
    assert said[3].startswith("error: --output: no such folder")
