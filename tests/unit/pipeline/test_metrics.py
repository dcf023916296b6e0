"""What reaches the exporter, and how rarely."""

import re
from typing import Any

import pytest

from cmasd.pipeline import metrics
from cmasd.pipeline.metrics import METRICS, EngineMetrics, RunMetrics, ShardMetrics, exported_names
from cmasd.pipeline.tally import Progress
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals


class Exporter:
    """In Ray's place: keeps every call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str, float, dict[str, str]]] = []
        self.clock = 100.0
        monkeypatch.setattr(metrics, "_build", lambda metric: Recorded(self, metric))
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def values(self, name: str, **tags: str) -> list[float]:
        return [value for _, n, value, t in self.calls if n == f"cmasd_{name}" and tags.items() <= t.items()]


class Recorded:
    def __init__(self, exporter: Exporter, metric: metrics.Metric) -> None:
        self.exporter, self.metric = exporter, metric

    def _keep(self, how: str, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.metric.tags, "Ray refuses a metric without all its tags"
        assert how in {"counter": ("inc",), "gauge": ("set",), "histogram": ("observe",)}[self.metric.kind]
        self.exporter.calls.append((how, self.metric.name, value, tags))

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self._keep("inc", value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._keep("set", value, tags)

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self._keep("observe", value, tags)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    return Exporter(monkeypatch)


def test_counters_add_up_to_the_engines_own(exporter: Exporter) -> None:
    engine, stats = EngineMetrics("run", "a1"), EngineStats()
    for step in range(1000):
        exporter.clock += 0.01
        stats.iterations += 1
        stats.drafting_row_iterations += 4
        stats.drafted_tokens += 12
        stats.accepted_tokens += 7
        stats.output_tokens += 11
        stats.busy_seconds += 0.008
        engine.stepped(stats, rows=0 if step == 999 else 40, slots=32)
    assert sum(exporter.values("iterations", run="run", actor="a1")) == 1000
    assert sum(exporter.values("spec_decode_num_drafts")) == 4000
    assert sum(exporter.values("spec_decode_num_draft_tokens")) == 12000
    assert sum(exporter.values("spec_decode_num_accepted_tokens")) == 7000
    assert sum(exporter.values("generation_tokens")) == 11000
    assert sum(exporter.values("busy_seconds")) == pytest.approx(8.0)
    updates = len(exporter.values("num_rows_running"))
    assert updates <= 10 / metrics.UPDATED_EVERY_SECONDS + 2, "ten seconds of iterations"
    assert exporter.values("num_rows_running")[:2] == [32, 32]
    assert exporter.values("num_rows_waiting")[0] == 8
    assert exporter.values("slot_occupancy")[-1] == 0 == exporter.values("num_rows_running")[-1], (
        "told when rows run out"
    )
    observed = exporter.values("iteration_seconds")
    assert observed == pytest.approx([0.008] * 1000)


def test_the_histogram_is_sampled_when_iterations_are_many(exporter: Exporter) -> None:
    engine, stats = EngineMetrics("run", "a1"), EngineStats()
    engine.stepped(stats, rows=1, slots=1)
    for _ in range(100_000):
        stats.busy_seconds += 0.001
        engine.stepped(stats, rows=1, slots=1)
    exporter.clock += 1
    engine.stepped(stats, rows=1, slots=1)
    assert 40 <= len(exporter.values("iteration_seconds")) <= 1 + metrics.MOST_OBSERVATIONS


def test_shards_and_the_run(exporter: Exporter) -> None:
    ShardMetrics("run", "a1").written(Totals(rows=10, errors=1, stopped=9, input_tokens=70))
    assert exporter.values("rows", outcome="stop") == [9]
    assert exporter.values("rows", outcome="error") == [1]
    assert exporter.values("rows", outcome="length") == []
    assert (exporter.values("shards"), exporter.values("prompt_tokens")) == ([1], [70])
    progress = Progress(200, 50, 1, 65.0, 1234.5, 2.5, 0.75, None)
    RunMetrics("run").update(progress, actors_seen=2)
    assert exporter.values("run_rows_done", run="run") == [50]
    assert exporter.values("run_eta_seconds") == [], "unknown yet"
    told = {name for _, name, _, _ in exporter.calls}
    assert {f"cmasd_run_{name}" for name in metrics.RUN_GAUGES} - told == {"cmasd_run_eta_seconds"}


def test_names_are_prometheus_names_and_follow_the_stats() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"cmasd_[a-z_]+", name) for name in names)
    assert all(metric.description.endswith(".") for metric in METRICS)
    fields: dict[str, Any] = EngineStats().to_dict()
    assert metrics.ENGINE_COUNTERS.keys() <= fields.keys()
    assert {"ray_cmasd_generation_tokens_total", "ray_cmasd_iteration_seconds_bucket"} <= exported_names()
    assert "ray_cmasd_run_rows_done" in exported_names()


def test_rays_own_objects_take_what_is_told() -> None:
    """Without a cluster they count into the void; the calls must be valid all the same."""
    engine, stats = EngineMetrics("run", "a1"), EngineStats(iterations=3, busy_seconds=1.0)
    engine.loaded(1.5)
    engine.stepped(stats, rows=0, slots=4)
    ShardMetrics("run", "a1").written(Totals(rows=1, errors=1))
    RunMetrics("run").update(Progress(2, 1, 0, 1.0, 1.0, 1.0, 1.0, 1.0), actors_seen=1)


@pytest.mark.parametrize(
    ("run", "tag"),
    [
        ("runs/größe", "runs/gr%C3%B6%C3%9Fe"),
        ("läufe/日本", "l%C3%A4ufe/%E6%97%A5%E6%9C%AC"),
        ("s3://bucket/a b=c,d:e", "s3://bucket/a b=c,d:e"),
        ("a\nb", "a%0Ab"),
        ("\udcff", r"\udcff"),
    ],
)
def test_letters_beyond_ascii_reach_rays_own_objects_as_in_a_url(
    run: str, tag: str, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ShardMetrics(run, "a1").written(Totals(rows=1, stopped=1))
    assert exporter.values("shards", run=tag) == [1]
    monkeypatch.undo()
    series = metrics._Series([metrics.SHARDS], run=run, actor="a1")
    series.add(metrics.SHARDS, 1)
    assert not series._fails


def test_an_exporter_that_fails_costs_one_line_and_nothing_else(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnicodeEncodeError("ascii", "ö", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr(Recorded, "set", fail)
    run = RunMetrics("run")
    for _ in range(3):
        run.update(Progress(200, 50, 1, 65.0, 1234.5, 2.5, 0.75, None), actors_seen=2)
    monkeypatch.setattr(metrics, "_build", fail)
    EngineMetrics("run", "a1").loaded(1.0)
    assert [record.getMessage().split(" (")[1][:18] for record in caplog.records] == ["UnicodeEncodeError"] * 2
