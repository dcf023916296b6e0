"""Several nodes on one machine: a node lost in mid-run, actors that come and go with nodes and work."""

import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from cmasd.config import Config, from_dict
from cmasd.io.lease import Watch
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import look_at
from cmasd.pipeline import decoding_actor as decoder
from cmasd.pipeline.actors import decode_shards
from cmasd.pipeline.cluster import ENVIRONMENT, connected, resources
from cmasd.pipeline.gate import StartLimits, open_gate
from cmasd.pipeline.run import run
from tests.integration.conftest import SENTENCES
from tests.integration.hub import hub

WAIT_SECONDS = 500


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs; tests add the nodes."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False},
    )
    ray.init(address=started.address, log_to_driver=False, logging_level=logging.CRITICAL)
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    ray.shutdown()
    started.shutdown()


def add_node(cluster: Any, gpus: int = 0) -> Any:
    """Its GPUs are made up: Ray hands them out, and nobody looks for them."""
    return cluster.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=100_000_000)


def job(folder: Path, pair: Path, rows: int, **actors: Any) -> Config:
    lines = [json.dumps({"text": SENTENCES[i % 6]}) + "\n" for i in range(rows)]
    (folder / "in.jsonl").write_text("".join(lines))
    return from_dict(
        {
            "input": {"path": str(folder / "in.jsonl")},
            "output": {"path": str(folder / "run"), "rows_per_shard": 4},
            "models": {"verifier": str(pair / "verifier"), "drafter": str(pair / "drafter")},
            "policy": {"kind": "fixed"},
            "engine": {"slots": 4, "max_new_tokens": 40},
            "actors": {"shards_in_flight": 2, **actors},
        }
    )


def started(config: Config) -> tuple[threading.Thread, list[dict[str, Any]]]:
    """The run in a thread, and where its summary will be."""
    summaries: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: summaries.append(run(config)), daemon=True)
    thread.start()
    return thread, summaries


def wait_until(what: Callable[[], bool], thread: threading.Thread | None = None) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert thread is None or thread.is_alive(), "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def actors_seen(config: Config) -> int:
    """Actors that wrote a shard, by the driver's record."""
    records = RunFolder(config.output.path).attempts()
    return int(records[-1]["actors"]) if records else 0


def rows_once(config: Config, rows: int) -> None:
    ids = pads.dataset(Path(config.output.path) / "outputs").to_table()["id"].to_pylist()
    assert sorted(map(str, ids)) == sorted(f"in.jsonl:{row}" for row in range(rows))


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_row_once_after_a_node_is_lost_and_replaced(tmp_path: Path, pair: Path, cluster: Any) -> None:
    add_node(cluster)
    doomed = add_node(cluster)
    config = job(tmp_path, pair, 400, count=2)
    thread, summaries = started(config)
    wait_until(lambda: actors_seen(config) == 2, thread)
    cluster.remove_node(doomed, allow_graceful=False)
    add_node(cluster)
    thread.join(WAIT_SECONDS)
    assert summaries, "the run did not end"
    rows_once(config, 400)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("actors", [{"count": 2}, {"min": 1, "max": 2}], ids=["fixed", "range"])
def test_each_row_once_after_a_node_is_lost_for_good(
    tmp_path: Path, pair: Path, cluster: Any, actors: dict[str, int]
) -> None:
    add_node(cluster)
    doomed = add_node(cluster)
    config = job(tmp_path, pair, 600, **actors)
    thread, summaries = started(config)
    wait_until(lambda: actors_seen(config) == 2, thread)
    cluster.remove_node(doomed, allow_graceful=False)
    thread.join(WAIT_SECONDS)
    assert summaries, "the run did not end"
    rows_once(config, 600)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_actors_are_added_when_a_node_is(tmp_path: Path, pair: Path, cluster: Any) -> None:
    add_node(cluster)
    config = job(tmp_path, pair, 600, min=1, max=2)
    thread, summaries = started(config)
    wait_until(lambda: actors_seen(config) == 1, thread)
    add_node(cluster)
    wait_until(lambda: actors_seen(config) == 2, thread)
    thread.join(WAIT_SECONDS)
    assert summaries, "the run did not end"
    rows_once(config, 600)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_waits_for_its_first_node(
    tmp_path: Path, pair: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than Ray Data lets an execution stand still, by default half an hour."""
    import ray.data

    limit_seconds = 5.0
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", limit_seconds)
    config = job(tmp_path, pair, 8, count=1)
    thread, summaries = started(config)
    wait_until(lambda: bool(RunFolder(config.output.path).attempts()), thread)
    thread.join(4 * limit_seconds)
    assert thread.is_alive(), "the run gave up"
    add_node(cluster)
    thread.join(WAIT_SECONDS)
    assert summaries, "the run did not end"
    rows_once(config, 8)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cluster_that_cannot_grow_does_with_the_actors_that_found_room(
    tmp_path: Path, pair: Path, cluster: Any
) -> None:
    add_node(cluster)
    config = job(tmp_path, pair, 200, min=1, max=8)
    thread, summaries = started(config)
    thread.join(WAIT_SECONDS)
    assert summaries, "the run did not end"
    rows_once(config, 200)
    assert actors_seen(config) == 1


@pytest.mark.slow
def test_the_gate_is_on_the_drivers_node(cluster: Any) -> None:
    """Though nodes that join take what reserves nothing, and may not know the driver's yet."""
    import ray

    gates = []
    for _ in range(4):
        add_node(cluster)
        gates += [open_gate(StartLimits(1, 1, 1)) for _ in range(4)]
    ray.get([gate.enter.remote(0, 0) for gate in gates])
    nodes = Counter(actor["Address"]["NodeID"] for actor in ray._private.state.actors().values())
    assert nodes == {ray.get_runtime_context().get_node_id(): len(gates)}


def sleeper(lock_file: str, slow_seconds: float) -> type:
    """In the models' place: takes no time but for the first of its kind, which is slow. Travels by value."""

    class Sleeper:
        def __init__(self, config: Any, watch: Any) -> None:
            self.name, self.ready_at = uuid.uuid4().hex, time.time()
            try:
                Path(lock_file).touch(exist_ok=False)
                self.seconds = slow_seconds
            except FileExistsError:
                self.seconds = 0.1

        def __call__(self, block: pa.Table) -> pa.Table:
            from cmasd.pipeline.blocks import from_block
            from cmasd.pipeline.report import ShardReport
            from cmasd.telemetry.stats import EngineStats
            from cmasd.telemetry.totals import Totals

            time.sleep(self.seconds)
            about: Any = (self.name, self.ready_at, EngineStats(), [], None)
            return ShardReport.to_table(ShardReport(shard, Totals(), *about) for shard, _ in from_block(block))

    return Sleeper


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("actors", [{"count": 2}, {"min": 1, "max": 2}], ids=["fixed", "range"])
def test_an_idle_actor_gives_its_gpu_back_before_the_run_ends(
    tmp_path: Path, cluster: Any, actors: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    slow_seconds, shards = 25.0, 40
    for _ in range(2):
        add_node(cluster, gpus=1)
    wait_until(lambda: ray.cluster_resources().get("GPU") == 2)
    monkeypatch.setattr(decoder, "DecodingActor", sleeper(str(tmp_path / "lock"), slow_seconds))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": "x"}) + "\n" for _ in range(shards)))
    config = from_dict(
        {
            "input": {"path": str(tmp_path / "in.jsonl")},
            "output": {"path": str(tmp_path / "run"), "rows_per_shard": 1},
            "engine": {"slots": 1},
            "actors": {"shards_in_flight": 2, "gpus_each": 1.0, **actors},
        }
    )
    state = look_at(config)
    reports: list[Any] = []

    def decode() -> None:
        with connected() as local:
            has = resources(config.actors, local)
            reports.extend(decode_shards(config, state.plan, state.todo, has, Watch(config.output.path, 1)))

    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    wait_until(lambda: ray.available_resources().get("GPU", 0) == 0, thread)
    wait_until(lambda: ray.available_resources().get("GPU", 0) == 1, thread)
    freed = time.monotonic()
    thread.join(WAIT_SECONDS)
    assert len(reports) == shards
    assert len({report.actor for report in reports}) == 2
    assert time.monotonic() - freed > slow_seconds / 5, "the slow actor was still at work"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_node_fetches_a_model_once(tmp_path: Path, pair: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four actors at once, from a hub on loopback that counts: the cache's locks make three of them wait."""
    import ray

    with hub({f"org/{name}": pair / name for name in ("verifier", "drafter")}) as (address, fetched):
        values = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        cluster.add_node(num_cpus=4, object_store_memory=100_000_000)
        wait_until(lambda: ray.cluster_resources().get("CPU") == 4)
        config = job(tmp_path, pair, 64, count=4)
        models = replace(config.models, verifier="org/verifier", drafter="org/drafter")
        thread, summaries = started(replace(config, models=models))
        thread.join(WAIT_SECONDS)
        assert summaries, "the run did not end"
    rows_once(config, 64)
    assert {name: fetched[f"org/{name}/model.safetensors"] for name in ("verifier", "drafter")} == {
        "verifier": 1,
        "drafter": 1,
    }
