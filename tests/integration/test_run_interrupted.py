"""A driver that is told to stop, and the same job through `ray job submit`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from cmasd.io.status import status
from tests.integration.conftest import SENTENCES

ROOT = Path(__file__).parents[2]
START_SECONDS = 500


def write_job(folder: Path, pair: Path, rows: int, new_tokens: int = 6) -> Path:
    lines = [json.dumps({"text": SENTENCES[i % 6]}) + "\n" for i in range(rows)]
    (folder / "in.jsonl").write_text("".join(lines))
    file = folder / "job.yaml"
    file.write_text(
        f"input: {{path: {folder}/in.jsonl}}\noutput: {{path: {folder}/run, rows_per_shard: 4}}\n"
        f"models: {{verifier: {pair}/verifier, drafter: {pair}/drafter}}\n"
        f"engine: {{slots: 4, max_new_tokens: {new_tokens}}}\nactors: {{local: false, shards_in_flight: 2}}\n"
    )
    return file


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jobs", *words]


def parts(folder: Path) -> dict[str, int]:
    """Output files with the time of their writing."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "run" / "outputs").glob("part-*.parquet")}


def wait_for_parts(folder: Path, process: "subprocess.Popen[Any]", count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while len(parts(folder)) < count:
        assert process.poll() is None, "the job ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sigterm(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)


def ctrl_c(process: "subprocess.Popen[str]") -> None:
    """A terminal sends it to all processes in the foreground, so to Ray's as well."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("stop", "code"), [(sigterm, 143), pytest.param(ctrl_c, 130, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, pair: Path, stop: "Callable[[subprocess.Popen[str]], None]", code: int
) -> None:
    file = write_job(tmp_path, pair, rows=320, new_tokens=40)
    words = command("run", str(file))
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_parts(tmp_path, process, 2)
    second = subprocess.run(command("run", str(file)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"is in use by process {process.pid} on" in second.stderr
    stop(process)
    assert process.wait(timeout=120) == code
    assert process.stderr is not None
    said = process.stderr.read()
    assert "finishing the shards being decoded, for 25 s at most" in said
    assert "Resume with: cmasd run" in said
    assert status(str(tmp_path / "run"))["state"] == "interrupted"
    kept = parts(tmp_path)
    assert 2 <= len(kept) < 80

    done = subprocess.run(command("run", str(file)), cwd=ROOT, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    ids = pads.dataset(tmp_path / "run" / "outputs").to_table()["id"].to_pylist()
    assert sorted(map(str, ids)) == sorted(f"in.jsonl:{row}" for row in range(320))
    assert (summary["rows"], summary["attempts"]) == (320, 2)
    assert summary["rows_done_before"] == 4 * len(kept)
    assert f"{len(kept)} of 80 shards done" in done.stderr
    assert kept.items() <= parts(tmp_path).items(), "finished shards are not done again"
    for part in ("tokens/s", "acceptance", "ETA"):
        assert part in done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused_without_its_mode(environment: dict[str, str], file: Path, folder: Path) -> None:
    """A run at the address of a cluster that wants a token, which is there, but not told to be sent."""
    del environment["RAY_AUTH_MODE"]
    words = [*command("run", str(file)), f"output.path={folder}/other"]
    refused = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "wants a token, got none; expected RAY_AUTH_MODE=token" in refused.stderr
    assert "Traceback" not in refused.stderr


TOKEN = "0123456789abcdef" * 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("auth", ["disabled", "token"])
def test_ray_job_submit(auth: str, tmp_path: Path, pair: Path) -> None:
    """Against a real head node of its own, which ends with its process group."""
    file = write_job(tmp_path, pair, rows=20)
    ray = str(Path(sys.executable).parent / "ray")
    dashboard, port = free_port(), free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": auth,
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    environment.pop("RAY_ADDRESS", None)
    start = [
        ray,
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--num-cpus=2",
    ]
    start += ["--include-dashboard=true", "--object-store-memory=200000000", f"--temp-dir=/tmp/r{os.getpid()}"]
    head = subprocess.Popen(start, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(dashboard)
        submit = [ray, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "jobs", "run", str(file)]
        done = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        if auth == "token":
            refused_without_its_mode({**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}, file, tmp_path)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"rows"')]
        assert json.loads(lines[-1])["rows"] == 20
        failing = subprocess.run(
            [*submit, "input.on_too_long=truncate"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert failing.returncode != 0
        assert "another configuration (input.on_too_long: error -> truncate)" in failing.stdout
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(f"/tmp/r{os.getpid()}", ignore_errors=True)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the head node did not start")
