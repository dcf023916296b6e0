"""A cluster that starts nodes when actors ask for them, and stops them again: Ray's autoscaler over processes here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from cmasd.pipeline.cluster import ENVIRONMENT
from tests.integration.conftest import SENTENCES
from tests.integration.test_run_interrupted import ROOT, command, free_port, wait_for_port

NODE = {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000}


def cluster_config(gcs: str) -> dict[str, Any]:
    """A head that decodes nothing, and up to two nodes with a made-up GPU each, gone after six idle seconds."""
    return {
        "cluster_name": "cmasd-test",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": NODE, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of the head, which ends with its process group."""
    port, temporary = free_port(), tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    gcs = f"127.0.0.1:{port}"
    (tmp_path / "cluster.json").write_text(json.dumps(cluster_config(gcs)))
    ray = str(Path(sys.executable).parent / "ray")
    start = [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0"]
    start += [f"--autoscaling-config={tmp_path}/cluster.json", "--object-store-memory=100000000"]
    start += ["--include-dashboard=false", f"--temp-dir={temporary}"]
    environment = ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    head = subprocess.Popen(start, env={**os.environ, **environment}, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield gcs
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_come_for_the_actors_and_go_after_them(
    tmp_path: Path, pair: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    rows = 2000
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": SENTENCES[i % 6]}) + "\n" for i in range(rows)))
    words = [f"input.path={tmp_path}/in.jsonl", f"output.path={tmp_path}/run", "output.rows_per_shard=4"]
    words += [f"models.{name}={pair}/{name}" for name in ("verifier", "drafter")]
    words += ["models.device=cpu", "policy.kind=fixed", "engine.slots=4", "engine.max_new_tokens=40"]
    words += ["actors.min=1", "actors.max=2", "actors.gpus_each=1", "actors.shards_in_flight=2"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    ray.init(address=address, log_to_driver=False)
    try:
        most = 0
        with (tmp_path / "said.txt").open("w") as said:
            job = subprocess.Popen(command("run", *words), cwd=ROOT, env=environment, stdout=said, stderr=said)
            while job.poll() is None:
                most = max(most, nodes())
                time.sleep(0.5)
        assert job.returncode == 0, (tmp_path / "said.txt").read_text()
        ids = pads.dataset(tmp_path / "run" / "outputs").to_table()["id"].to_pylist()
        assert sorted(map(str, ids)) == sorted(f"in.jsonl:{row}" for row in range(rows))
        assert most == 2, "a second node came for the second actor"
        deadline = time.monotonic() + 240
        while nodes():
            assert time.monotonic() < deadline, "idle nodes stay"
            time.sleep(1)
    finally:
        ray.shutdown()


def nodes() -> int:
    """Alive, without the head."""
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU"))
