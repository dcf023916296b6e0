"""The driver's account of a run: tallies, the summary, and which error a user gets to see."""

from pathlib import Path
from typing import Any

import pytest

from cmasd.config import from_dict
from cmasd.errors import DecodingError, ModelError, TooManyFailedRowsError
from cmasd.io.plan import Shard
from cmasd.io.run_folder import RunFolder
from cmasd.pipeline.attempt import Attempt
from cmasd.pipeline.failures import cause_of
from cmasd.pipeline.report import ShardReport
from cmasd.pipeline.run import check_failures
from cmasd.pipeline.summary import own_notices, summarise
from cmasd.pipeline.tally import Tally
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals

TOTALS = Totals(
    rows=10,
    errors=1,
    stopped=8,
    cut=1,
    input_tokens=50,
    output_tokens=100,
    iterations=40,
    drafted_tokens=80,
    accepted_tokens=60,
)


def report(index: int, actor: str = "a", iterations: int = 10, ready_at: float = 1000.0) -> ShardReport:
    shard = Shard(0, index, 10 * index, 10 * index + 10)
    stats = EngineStats(iterations=iterations, row_iterations=iterations, slot_iterations=2 * iterations)
    return ShardReport(shard, TOTALS, actor, ready_at, stats, ["greedy is used"], "in.jsonl:3: read: text is null")


def config(**sections: Any) -> Any:
    return from_dict({"input": {"path": "in"}, "output": {"path": "out"}, **sections})


def test_reports_survive_the_trip_through_arrow() -> None:
    reports = [report(0), report(1, actor="b")]
    assert ShardReport.from_table(ShardReport.to_table(reports)) == reports


def test_a_report_that_comes_twice_counts_once() -> None:
    tally = Tally(30, Totals())
    for one in (report(0), report(0), report(1)):
        tally.add(one)
    assert tally.now.rows == 20
    assert tally.progress().rows_done == 20
    assert tally.notices == ["greedy is used"]


def test_the_newest_statistics_of_each_actor_are_added_up() -> None:
    tally = Tally(30, Totals())
    for one in (report(0, iterations=30), report(1, iterations=20), report(2, actor="b", iterations=5)):
        tally.add(one)
    assert tally.stats.iterations == 35
    assert tally.actors == 2


def test_progress_counts_earlier_rows_but_not_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmasd.pipeline.tally.time.time", lambda: 1010.0)
    tally = Tally(100, Totals(rows=70, errors=2))
    assert tally.progress().eta_seconds is None
    tally.add(report(7))
    progress = tally.progress()
    assert (progress.rows_done, progress.errors, progress.seconds) == (80, 3, 10.0)
    assert (progress.tokens_per_second, progress.eta_seconds) == (10.0, 20.0)
    assert (progress.acceptance_rate, progress.tokens_per_iteration) == (0.75, 2.5)


def test_too_many_failed_rows() -> None:
    tally = Tally(40, Totals(rows=10, errors=1))
    check_failures(config(), tally)
    tally.add(report(1))
    check_failures(config(), tally)
    tally.add(report(2))
    with pytest.raises(
        TooManyFailedRowsError, match=r"3 of 40 rows failed, at most 2 may \(0.05\). The first: in.jsonl:3"
    ):
        check_failures(config(), tally)
    check_failures(config(limits={"max_failed_fraction": 1.0}), tally)


def test_the_summary_covers_all_attempts() -> None:
    stats = EngineStats(row_iterations=9, slot_iterations=10, rollbacks=1, drafting_row_iterations=4)
    attempt = {"seconds": 5.0, "start_up_seconds": 20.0, "actors": 2, "stats": stats.to_dict()}
    priced = config(cost={"accelerator_per_hour": 3.6}, verification={"kind": "relaxed"})
    baseline = {"rows": 5, "speedup": 0.9, "speedup_low": 0.8, "speedup_high": 0.97, "seconds": 30.0, "algorithmic": 2}
    summary = summarise(priced, TOTALS, [attempt, attempt], 4, baseline, ["greedy is used"])
    assert (summary["rows"], summary["errors"], summary["seconds"], summary["tokens_per_second"]) == (10, 1, 10.0, 10.0)
    assert (summary["slot_occupancy"], summary["rollback_rate"], summary["rows_done_before"]) == (0.9, 0.25, 4)
    assert (summary["acceptance_rate"], summary["tokens_per_iteration"]) == (0.75, 2.5)
    assert summary["finish_reasons"] == {"stop": 8, "length": 1, "error": 1}
    assert summary["seconds_by_phase"] == {"start_up": 40.0, "decoding": 10.0, "comparing": 30.0}
    hours = {"decoding": 20 / 3600, "whole_job": (20 + 80 + 30) / 3600}
    assert summary["actor_hours"] == pytest.approx(hours, abs=1e-6), "two actors, and one that compares"
    assert summary["cost"] == {
        "total": 0.02,
        "per_million_output_tokens": 200.0,
        "whole_job": 0.13,
        "whole_job_per_million_output_tokens": 1300.0,
    }
    assert summary["lossless"] == "lossy"
    greedy, lossy, slow, fault = summary["notices"]
    assert fault.startswith("2 of 5 compared rows differ from AR decoding by more than rounding")
    assert lossy.startswith("verification.kind=relaxed is lossy: ")
    assert (greedy, "lossy" in lossy, "Slower than AR on the rows compared: 0.90 times (0.80-0.97)" in slow) == (
        "greedy is used",
        True,
        True,
    )


def test_what_makes_a_run_lossy_is_named() -> None:
    budget = config(verification={"kind": "budget"})
    [notice] = own_notices(budget, None)
    assert notice == "verification.budget_nats_per_token=0.02 is lossy: outputs may differ from AR decoding."


def test_where_nothing_was_drafted_no_ratio_is_told() -> None:
    [notice] = own_notices(config(), {"rows": 5, "speedup": 0.97, "drafted_tokens": 0})
    assert notice == "Nothing was drafted in the check against AR: it is the same decoding."


def test_a_summary_of_nothing() -> None:
    summary = summarise(config(), Totals(), [], 0, None, [])
    assert (summary["tokens_per_second"], summary["slot_occupancy"], summary["cost"], summary["notices"]) == (
        0,
        0,
        None,
        [],
    )


def test_where_nothing_was_drafted_nothing_was_accepted_or_rolled_back() -> None:
    plain = EngineStats(row_iterations=9, slot_iterations=10)
    attempt = {"seconds": 5.0, "actors": 1, "stats": plain.to_dict()}
    summary = summarise(config(), Totals(rows=2, output_tokens=9, iterations=9), [attempt], 0, None, [])
    assert (summary["acceptance_rate"], summary["rollback_rate"], summary["drafted_tokens"]) == (None, None, 0)
    tally = Tally(10, Totals())
    assert tally.progress().acceptance_rate is None


def test_slot_occupancy_is_the_share_of_slots_that_held_a_row() -> None:
    """Over all iterations, whenever the rows arrived."""
    assert EngineStats(4, 40, 128).slot_occupancy == 40 / 128
    assert (EngineStats(4, 40, 128) + EngineStats(1, 8, 32)).slot_occupancy == 48 / 160
    assert EngineStats().slot_occupancy == 0


@pytest.mark.parametrize(("ready", "seconds"), [(None, 30.0), (1012.5, 12.5), (990.0, 0.0)])
def test_start_up_is_from_the_command_to_the_first_loaded_models(
    ready: float | None, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmasd.pipeline.attempt.time.time", lambda: 1030.0)
    tally = Tally(10, Totals())
    if ready is not None:
        tally.add(report(0, ready_at=ready))
    record = Attempt(RunFolder(str(tmp_path)), tally, began=1000.0).record("finished")
    assert record["start_up_seconds"] == seconds


def test_the_projects_own_error_is_found_in_the_chain() -> None:
    outer = RuntimeError("task failed")
    outer.__cause__ = ModelError("models.verifier: no such folder")
    assert str(cause_of(outer)) == "models.verifier: no such folder"
    assert cause_of(outer).exit_code == 2


def test_rays_wrapping_of_an_error_is_removed() -> None:
    from ray.exceptions import RayTaskError

    inner = DecodingError("RuntimeError: out of memory\nFailed to apply UDF transform after 1/1 attempts")
    wrapped = RayTaskError("decode", "Traceback ...", inner).as_instanceof_cause()
    found = cause_of(wrapped)
    assert type(found) is DecodingError
    assert str(found) == "RuntimeError: out of memory"


def test_other_errors_become_one_line() -> None:
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("decode", "Traceback ...\nOSError: disk full\n", OSError("disk full")).as_instanceof_cause()
    assert "disk full" in str(cause_of(wrapped))
    assert "\n" not in str(cause_of(wrapped))
    assert str(cause_of(ValueError("odd"))) == "ValueError: odd"
