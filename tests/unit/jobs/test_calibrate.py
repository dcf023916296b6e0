"""What `cmasd calibrate` says, and what it writes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cmasd.confidence import CalibrationMap, load_calibration
from cmasd.config.tree import ConfidenceConfig
from cmasd.errors import ConfigError
from cmasd.evaluation.calibration import fit
from cmasd.io.run_folder import RunFolder
from jobs.calibrate import check_files, content
from jobs.calibrate_tables import report
from tests.unit.evaluation.drawn import judged_from

TRUTH = {"max_prob": CalibrationMap("platt", a=0.4, b=-1.0), "entropy": CalibrationMap("platt", a=0.0, b=0.4)}


def arguments(**given: Any) -> Any:
    return SimpleNamespace(**{"run": "runs/x", "output": None, "plot": None, **given})


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


def test_where_the_maps_go(tmp_path: Path) -> None:
    local, remote = RunFolder(str(tmp_path)), RunFolder("memory://runs/x")
    assert check_files(arguments(), local) == tmp_path / "calibration.json"
    assert check_files(arguments(output=tmp_path / "own.json"), remote) == tmp_path / "own.json"
    with pytest.raises(ConfigError, match=r"--output: must be given for a run that is not on this machine, got runs/x"):
        check_files(arguments(), remote)
    with pytest.raises(ConfigError, match=r"--output: no such folder"):
        check_files(arguments(output=tmp_path / "no" / "own.json"), local)
