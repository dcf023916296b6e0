"""The gate: the end of a run with one actor four times slower, and a gate that is lost together with a reader.

The real pipeline, with sleeping in the models' place.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from cmasd.config import from_dict
from cmasd.io.lease import Watch
from cmasd.io.runs import look_at
from cmasd.pipeline import decoding_actor as decoder
from cmasd.pipeline.actors import decode_shards
from cmasd.pipeline.cluster import connected, resources, start_local
from cmasd.pipeline.gate import MOST_WAIT_SECONDS, StartLimits
from cmasd.pipeline.report import ShardReport
from tests.integration.chaos import processes

SHARD_SECONDS, SLOWNESS = 0.25, 4
SHARDS, IN_FLIGHT = 72, 12


@pytest.fixture(scope="module", autouse=True)
def connection() -> Iterator[None]:
    import ray

    start_local(logging.CRITICAL, num_cpus=2)
    with connected():
        yield
    ray.shutdown()


def sleeper(lock_file: str) -> type:
    """Decodes one shard after the other; the first of its kind is slow. Made here, so that it travels by value."""

    class Sleeper:
        def __init__(self, config: Any, watch: Any) -> None:
            self.name, self.ready_at, self.lock = uuid.uuid4().hex, time.time(), threading.Lock()
            try:
                Path(lock_file).touch(exist_ok=False)
                self.seconds = SHARD_SECONDS * SLOWNESS
            except FileExistsError:
                self.seconds = SHARD_SECONDS

        def __call__(self, block: pa.Table) -> pa.Table:
            from cmasd.pipeline.blocks import from_block
            from cmasd.pipeline.report import ShardReport
            from cmasd.telemetry.stats import EngineStats
            from cmasd.telemetry.totals import Totals

            with self.lock:
                time.sleep(self.seconds)
            about: Any = (self.name, self.ready_at, EngineStats(), [], None)
            return ShardReport.to_table(ShardReport(shard, Totals(), *about) for shard, _ in from_block(block))

    return Sleeper


def decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardReport]:
    """By two actors."""
    folder.mkdir()
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": "x"}) + "\n" for _ in range(SHARDS)))
    monkeypatch.setattr(decoder, "DecodingActor", sleeper(str(folder / "lock")))
    config = from_dict(
        {
            "input": {"path": str(folder / "in.jsonl")},
            "output": {"path": str(folder / "run"), "rows_per_shard": 1},
            "engine": {"slots": 1},
            "actors": {"count": 2, "shards_in_flight": IN_FLIGHT},
        }
    )
    state = look_at(config)
    watch = Watch(config.output.path, 1)
    yield from decode_shards(config, state.plan, state.todo, resources(config.actors, local=True), watch)


def idle_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Between the first actor's last shard and the end."""
    last: dict[str, float] = {}
    count = 0
    for report in decoding(folder, monkeypatch):
        last[report.actor] = time.monotonic()
        count += 1
    assert count == SHARDS
    assert len(last) == 2
    return max(last.values()) - min(last.values())


def wide_open(*_: Any) -> StartLimits:
    return StartLimits(10**9, 10**9, 10**9)


@pytest.mark.slow
def test_the_quick_actor_takes_what_the_slow_one_would_sit_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gate = idle_seconds(tmp_path / "gate", monkeypatch)
    without = with_limits(wide_open, lambda: idle_seconds(tmp_path / "open", monkeypatch), monkeypatch)
    assert with_gate < without / 2, (with_gate, without)


def with_limits(limits: Callable[..., StartLimits], act: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> float:
    with monkeypatch.context() as patched:
        patched.setattr("cmasd.pipeline.run.limits", limits)
        return act()


@pytest.mark.chaos
@pytest.mark.slow
def test_a_gate_that_is_lost_with_a_reader_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader asks again for all that it had handed out, and most of it is done: nothing of that opens a gate."""
    done, lost_at = set(), 0.0
    for report in decoding(tmp_path / "lost", monkeypatch):
        done.add((report.shard.file, report.shard.index))
        if len(done) == SHARDS // 2 and not lost_at:
            lost_at = time.monotonic()
            for kind in ("gate", "reader"):
                found = processes(kind, psutil.Process())
                assert found, kind
                for process in found:
                    process.kill()
    assert len(done) == SHARDS
    assert time.monotonic() - lost_at < MOST_WAIT_SECONDS / 2
