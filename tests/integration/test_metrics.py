"""A run's metrics, read where Prometheus reads them: at the metrics port of Ray's node."""

import json
import logging
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmasd.config import from_dict
from cmasd.pipeline.cluster import start_local
from cmasd.pipeline.metrics import exported_names
from cmasd.pipeline.run import run
from tests.integration.conftest import SENTENCES


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the exporter, of a Ray that reports twice a second."""
    import ray

    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    start_local(logging.CRITICAL, num_cpus=2)
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def scrape(address: str) -> dict[str, float]:
    """Series with their tags -> value. A process whose earlier Ray had a run still reports that run's, too."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("ray_cmasd"))
    }


@pytest.mark.timeout(280)
def test_every_metric_is_scraped_while_a_run_goes_on(tmp_path: Path, pair: Path, address: str) -> None:
    rows = 160
    lines = [json.dumps({"text": SENTENCES[i % 6] if i % 20 else None}) + "\n" for i in range(rows)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    asked = from_dict(
        {
            "input": {"path": str(tmp_path / "in.jsonl")},
            "output": {"path": str(tmp_path / "run"), "rows_per_shard": 4},
            "models": {"verifier": str(pair / "verifier"), "drafter": str(pair / "drafter")},
            "policy": {"kind": "fixed"},
            "engine": {"slots": 4, "max_new_tokens": 40},
            "actors": {"shards_in_flight": 4},
        }
    )
    worker = threading.Thread(target=run, args=(asked,), daemon=True)
    worker.start()
    seen: dict[str, float] = {}
    not_counted = ("ray_cmasd_spec_decode_num_rollbacks_total", "ray_cmasd_stitch_")
    wanted = {name for name in exported_names() if not name.startswith(not_counted)}
    deadline = time.monotonic() + 240
    while worker.is_alive() and time.monotonic() < deadline:
        scraped = scrape(address)
        assert all('run="' in series for series in scraped), scraped
        seen |= {series: value for series, value in scraped.items() if f'run="{tmp_path}/run"' in series}
        time.sleep(0.3)
    worker.join(1)
    assert not worker.is_alive()
    names = {series.split("{")[0] for series in seen}
    assert wanted <= names | {"ray_cmasd_spec_decode_num_accepted_tokens_total"}, wanted - names
    assert names <= exported_names()
    outcomes = {re.search(r'outcome="(\w+)"', series)[1] for series in seen if "ray_cmasd_rows_total" in series}  # type: ignore[index]
    assert {"error", "length"} <= outcomes
    (planned,) = (value for series, value in seen.items() if series.startswith("ray_cmasd_run_rows_planned"))
    assert planned == rows
