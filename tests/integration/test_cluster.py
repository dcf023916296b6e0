"""Several nodes on one machine: a node lost in mid-run, actors that come and go with the work."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from cmasd.config import Config, from_dict
from cmasd.io.run_folder import RunFolder
from cmasd.pipeline.run import run
from tests.integration.conftest import SENTENCES

WAIT_SECONDS = 240


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs; tests add the nodes."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False},
    )
    ray.init(address=started.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield started
    ray.shutdown()
    started.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=100_000_000)


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
@pytest.mark.timeout(600)
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
@pytest.mark.timeout(600)
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
