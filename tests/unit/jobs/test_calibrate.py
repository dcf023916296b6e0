"""What `cmasd calibrate` says, and what it writes."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cmasd.confidence import CalibrationMap, load_calibration
from cmasd.config.speculation import ConfidenceConfig
from cmasd.errors import ConfigError
from cmasd.evaluation.calibration.drift import drift
from cmasd.evaluation.calibration.fit import AS_IS, fit
from cmasd.io.run_folder import RunFolder
from jobs.calibrate import OPTIONS, content, register, target_of
from jobs.calibrate_tables import advice, drift_table, report
from jobs.records import command
from tests.unit.evaluation.calibration.drawn import judged_from

TRUTH = {"max_prob": CalibrationMap("platt", a=0.4, b=-1.0), "entropy": CalibrationMap("platt", a=0.0, b=0.4)}


def arguments(**given: Any) -> Any:
    return SimpleNamespace(**{"run": "runs/x", "output": None, "plot": None, "record": None, **given})


def test_the_report_has_every_score_and_the_best_by_position_and_confidence() -> None:
    judged = judged_from(TRUTH)
    fitted = fit(judged, "runs/x")
    text = report("runs/x", judged, fitted)
    assert text.startswith("runs/x: 30,000 judged draft tokens")
    assert [line.split()[0] for line in text.splitlines()[4:6]] == ["max_prob", "entropy"]
    assert "max_prob by draft position:" in text
    curves = [line for line in text.splitlines() if line.startswith("90% to 100%")]
    assert len(curves) == 2, "before and after"
    before = float(curves[0].split()[3].rstrip("%"))
    assert before < 75, "the raw score promises more than it keeps"


def test_a_map_that_was_rejected_is_not_recommended() -> None:
    """A score that tells the truth already: no second table of it, and no map."""
    judged = judged_from({"max_prob": AS_IS})
    [one] = fit(judged, "runs/x")
    kept = replace(one, method="none", calibration=AS_IS, after=one.before, positions_after=one.positions_before)
    text = report("runs/x", judged, [kept])
    assert len([line for line in text.splitlines() if line.startswith("90% to 100%")]) == 1
    assert "after calibration" not in text
    assert advice(kept, "maps.json", "runs/y") == (
        "No map of max_prob is better than the score as it is. Use it so: "
        "confidence.kind=max_prob confidence.calibration=null output.path=runs/y"
    )
    worse = replace(one, method="platt", after=replace(one.after, log_loss_nats=one.before.log_loss_nats + 0.01))
    assert advice(worse, "maps.json", "runs/y").startswith(
        "The map of max_prob, by platt, is not better than the score as it is"
    )
    [best, _] = fit(judged_from(TRUTH), "runs/x")
    told = advice(best, "maps.json", "runs/y")
    assert told == "To use it: confidence.kind=max_prob confidence.calibration=maps.json output.path=runs/y"


def test_the_file_holds_a_map_for_each_score_and_where_it_comes_from(tmp_path: Path) -> None:
    judged = judged_from(TRUTH)
    fitted = fit(judged, "runs/x")
    path = tmp_path / "maps.json"
    path.write_text(json.dumps(content(RunFolder(str(tmp_path)), judged, fitted)))
    for one in fitted:
        kind = cast(Any, one.score)
        assert load_calibration(ConfidenceConfig(kind=kind, calibration=str(path))) == one.calibration
    about = json.loads(path.read_text())["about"]
    assert about["tokens"] == 30_000
    assert about["held_out"]["max_prob"]["ece"] < 0.05


def test_where_the_maps_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, remote = RunFolder(str(tmp_path)), RunFolder("memory://runs/x")
    assert target_of(arguments(), local) == tmp_path / "calibration.json"
    assert target_of(arguments(output=tmp_path / "own.json"), remote) == tmp_path / "own.json"
    with pytest.raises(ConfigError, match=r"--output: must be given for a run that is not on this machine, got runs/x"):
        target_of(arguments(), remote)
    with pytest.raises(ConfigError, match=r"--output: no such folder"):
        target_of(arguments(output=tmp_path / "no" / "own.json"), local)
    monkeypatch.chdir(tmp_path.parent)
    assert target_of(arguments(), local) == Path(tmp_path.name) / "calibration.json", "as it would be typed here"


def test_another_run_has_a_table_of_its_own() -> None:
    judged = judged_from(TRUTH)
    fitted = fit(judged, "runs/x")
    lines = drift_table("runs/x", "runs/y", judged, drift(fitted, judged, "runs/y")).splitlines()
    assert lines[0].startswith("runs/y: 30,000 judged draft tokens of 0 rows, by the maps of runs/x and by its own")
    assert lines[2].split()[:1] == ["score"]
    cells = lines[4].split()
    assert cells[0] == "max_prob"
    assert cells[4] == cells[5] != cells[3], "its own maps are those of the run, and better than none"


def test_the_command_means_the_same() -> None:
    parser = argparse.ArgumentParser()
    register(parser)
    for line in ("runs/x", "runs/x --against runs/y --against runs/z --plot a.png --record b.json --seed 3"):
        args = parser.parse_args(line.split())
        assert parser.parse_args(command(args, "calibrate", OPTIONS).split()[2:]) == args
