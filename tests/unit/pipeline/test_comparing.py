"""The comparison with AR decoding has no say in whether a run is complete."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cmasd.config import Config, from_dict
from cmasd.core import RowError
from cmasd.engine import capacity
from cmasd.errors import ConfigError
from cmasd.io.runs import look_at
from cmasd.io.status import status
from cmasd.pipeline import actors, place
from cmasd.pipeline.actors import Cluster
from cmasd.pipeline.baseline import _with_what_fits, asked_of
from cmasd.pipeline.cluster import Resources
from cmasd.pipeline.run import Watcher, run
from cmasd.telemetry.recorder import Row, record

RESULT = {"speedup": 1.2, "speedup_high": 1.3, "asked": asked_of(from_dict({"baseline": {"rows": 4}}))}


def config(folder: Path, **sections: Any) -> Config:
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(8)))
    output = {"path": str(folder / "run"), "rows_per_shard": 4}
    limits = {"max_failed_fraction": 1.0}
    keys: dict[str, Any] = {"input": {"path": str(folder / "in.jsonl")}, "output": output, "limits": limits}
    keys |= {"baseline": {"rows": 4}, "actors": {"local": False}}
    return from_dict({**keys, **sections})


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a run whose rows are all there, with a Ray in which nothing runs."""

    @contextmanager
    def connected() -> Iterator[bool]:
        yield True

    monkeypatch.setattr(actors, "connected", connected)
    monkeypatch.setattr(actors, "resources", lambda *_: Resources(1, 1, 1.0, 0.0, True, room=1))
    asked = config(tmp_path)
    state = look_at(asked)
    state.folder.start(asked, state.plan, {})
    for shard in state.plan.shards():
        rows = [Row(str(i), RowError("read", "no"), None) for i in range(shard.rows)]
        state.folder.write_shard(shard, record(rows, "token"))
    return asked


def compare(*_: object) -> dict[str, Any]:
    raise AssertionError("never called here")


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Cluster, "_compare", fail)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            ConfigError("engine.slots: does not fit into memory, got 32."),
            "engine.slots: does not fit into memory, got 32.",
        ),
        (MemoryError("no room\nat all"), "MemoryError: no room"),
    ],
)
def test_a_comparison_that_fails_is_a_notice(
    error: Exception, why: str, asked: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(error, monkeypatch)
    summary = run(asked, compare)
    assert (summary["rows"], summary["baseline"]) == (8, None)
    assert summary["notices"] == [f"baseline.rows: not compared with AR decoding ({why}). The run is complete."]
    assert status(asked.output.path)["state"] == "complete"
    monkeypatch.setattr(Cluster, "_compare", lambda *_: (dict(RESULT), ["in fewer slots"]))
    monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=iter([1.0, 8.5]).__next__))
    summary = run(asked, compare)
    expected = {**RESULT, "seconds": 7.5}
    assert (summary["baseline"], summary["notices"]) == (expected, ["in fewer slots"]), "tried again, and told anew"
    assert summary["seconds_by_phase"]["comparing"] == 7.5
    fails_with(error, monkeypatch)
    assert run(asked, compare)["baseline"] == expected, "and then kept"


def test_a_run_says_what_begins_and_connects_once(asked: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    watcher = Watcher()
    monkeypatch.setattr(watcher, "stage", stages.append)
    monkeypatch.setattr(Cluster, "_compare", lambda *_: (dict(RESULT), []))
    run(asked, compare, watcher)
    assert stages == ["starting Ray", "comparing with AR decoding on 4 rows"]
    run(asked, compare, watcher)
    assert len(stages) == 2, "nothing is left to do, so nothing is connected to"


def test_a_cluster_that_is_gone_is_a_notice_too(asked: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise ConfigError("RAY_ADDRESS: no Ray cluster answers there")

    monkeypatch.setattr(actors, "connected", gone)
    assert "no Ray cluster answers there" in run(asked, compare)["notices"][0]


def test_a_run_is_closed_before_it_is_compared(asked: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the process meanwhile, be it the kernel's want of memory, finds the summary written."""
    fails_with(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(asked, compare, Watcher())
    assert status(asked.output.path)["state"] == "complete"


@pytest.mark.parametrize(("fits", "slots", "notices"), [(True, 32, 0), (False, None, 1)])
def test_two_engines_that_do_not_fit_share_what_is_there(
    fits: bool, slots: int | None, notices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`engine.slots` null: as many as two of them find room for."""
    seen: list[int | None] = []
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(capacity, "fits", lambda pair, config, slots, free: fits and (slots, free) == (32, 500))

    def compared(pair: object, config: Config, sources: object, previous: object) -> dict[str, Any]:
        assert (sources, previous) == ([[1]], [[2]])
        seen.append(config.engine.slots)
        return RESULT

    pair = cast(Any, type("Pair", (), {"device": None}))
    result, said = _with_what_fits(pair, config(tmp_path), [[1]], compared, [[2]])
    assert (result, seen, len(said)) == (RESULT, [slots], notices)
