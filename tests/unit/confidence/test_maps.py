"""Calibration maps: what they compute, and what is said of a file that is not one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.confidence import CalibrationMap, build_confidence, calibration_file, load_calibration
from cmasd.config.speculation import ConfidenceConfig
from cmasd.errors import ConfigError

PLATT = {"kind": "platt", "a": 1.5, "b": -0.5}
X, Y = [0.2, 0.5, 0.9], [0.1, 0.1, 0.8]
ISOTONIC = {"kind": "isotonic", "x": X, "y": Y}
RAW = torch.tensor([0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.95, 1.0])


def written(folder: Path, tree: Any) -> str:
    path = folder / "map.json"
    path.write_text(json.dumps(tree))
    return str(path)


def file_of(one: Any, **changes: Any) -> dict[str, Any]:
    """A file with this map for every score that the tests ask for."""
    maps = dict.fromkeys(("max_prob", "softmax", "margin", "ensemble"), one)
    return {"version": 2, "weights": [0.34, 0.33, 0.33], "margin_form": "full", "maps": maps, **changes}


def load(folder: Path, one: Any, kind: Any = "max_prob") -> CalibrationMap:
    found = load_calibration(ConfidenceConfig(kind=kind, calibration=written(folder, file_of(one))))
    assert found is not None
    return found


def test_platt_is_a_sigmoid_of_the_logit(tmp_path: Path) -> None:
    calibrated = load(tmp_path, PLATT)(RAW)
    for raw, value in zip(RAW.tolist(), calibrated.tolist(), strict=True):
        inside = min(max(raw, 1e-6), 1 - 1e-6)
        logit = math.log(inside / (1 - inside))
        assert value == pytest.approx(1 / (1 + math.exp(-(1.5 * logit - 0.5))), abs=1e-4)


def test_isotonic_is_linear_between_knots_and_flat_outside(tmp_path: Path) -> None:
    calibrated = load(tmp_path, ISOTONIC)(RAW)
    np.testing.assert_allclose(calibrated, np.interp(RAW.numpy(), X, Y), atol=1e-6)


@pytest.mark.parametrize("tree", [PLATT, ISOTONIC])
def test_maps_are_monotone_keep_the_shape_and_stay_in_range(tmp_path: Path, tree: dict[str, Any]) -> None:
    raw = torch.linspace(0, 1, 60).view(5, 4, 3).transpose(0, 2)
    calibrated = load(tmp_path, tree)(raw)
    assert calibrated.shape == raw.shape
    assert calibrated.dtype == raw.dtype
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    order = raw.flatten().argsort()
    assert (calibrated.flatten()[order].diff() >= -1e-6).all()


def test_an_identity_changes_nothing(tmp_path: Path) -> None:
    for tree in ({**PLATT, "a": 1, "b": 0}, {**ISOTONIC, "x": [0, 1], "y": [0, 1]}):
        torch.testing.assert_close(load(tmp_path, tree)(RAW), RAW, atol=2e-6, rtol=0)


def test_confidence_applies_its_map(tmp_path: Path) -> None:
    config = ConfidenceConfig(kind="softmax", calibration=written(tmp_path, file_of(ISOTONIC)))
    confidence_B, scores = build_confidence(config)(torch.randn(20, 30, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(confidence_B, load(tmp_path, ISOTONIC)(scores.softmax))
    assert not torch.equal(confidence_B, scores.softmax)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("steep", "must be of kind platt or isotonic, got None"),
        ({**PLATT, "kind": "spline"}, "must be of kind platt or isotonic, got spline"),
        ({"kind": "platt", "a": 1}, "needs the numbers a and b"),
        ({**PLATT, "a": "steep"}, "needs the numbers a and b"),
        ({**PLATT, "a": -1.0}, "a must be a finite number >= 0"),
        ({**PLATT, "b": float("nan")}, "finite"),
        ({"kind": "isotonic", "x": [0, 1]}, "needs the lists x and y"),
        ({**ISOTONIC, "y": [0.1, 0.2]}, "equal length >= 2"),
        ({**ISOTONIC, "x": [0.2, 0.2, 0.9]}, "x rising"),
        ({**ISOTONIC, "y": [0.5, 0.1, 0.8]}, "y never falling"),
        ({**ISOTONIC, "y": [0.5, 0.6, 1.8]}, "between 0 and 1"),
        ({**ISOTONIC, "x": [0.2], "y": [0.1]}, "equal length >= 2"),
    ],
)
def test_a_bad_map_is_refused_by_name(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, tree)
    assert str(caught.value).startswith(f"confidence.calibration: {tmp_path}")


@pytest.mark.parametrize(
    "tree", [[1, 2], PLATT, file_of(PLATT, version=1), file_of(PLATT, maps=[PLATT])], ids=["list", "map", "old", "maps"]
)
def test_what_is_not_a_calibration_file(tmp_path: Path, tree: Any) -> None:
    path = written(tmp_path, tree)
    with pytest.raises(ConfigError, match=r"not a calibration file; expected version 2 and maps\. Write one"):
        load_calibration(ConfidenceConfig(kind="max_prob", calibration=path))


def test_a_map_is_for_one_score_and_its_settings(tmp_path: Path) -> None:
    path = written(tmp_path, file_of(PLATT))
    with pytest.raises(
        ConfigError, match=r"no map for confidence\.kind entropy \(has: ensemble, margin, max_prob, sof"
    ):
        load_calibration(ConfidenceConfig(kind="entropy", calibration=path))
    with pytest.raises(ConfigError, match=r"another confidence\.margin_form, got printed; expected full"):
        load_calibration(ConfidenceConfig(kind="margin", margin_form="printed", calibration=path))
    with pytest.raises(ConfigError, match=r"other confidence\.weights, got \[1, 0, 0\]; expected \[0\.34"):
        load_calibration(ConfidenceConfig(kind="ensemble", weights=[1, 0, 0], calibration=path))
    unaffected = ConfidenceConfig(kind="max_prob", margin_form="printed", weights=[1, 0, 0], calibration=path)
    assert load_calibration(unaffected) is not None


def test_without_a_file_there_is_no_map() -> None:
    assert load_calibration(ConfidenceConfig()) is None


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    maps = {
        "max_prob": CalibrationMap("platt", a=0.5, b=0.25),
        "entropy": CalibrationMap("isotonic", x=(0.0, 0.5), y=(0.1, 0.9)),
    }
    path = written(tmp_path, calibration_file(maps, ConfidenceConfig(), {"run": "here"}))
    kinds: Any = tuple(maps)
    assert {kind: load_calibration(ConfidenceConfig(kind=kind, calibration=path)) for kind in kinds} == maps


def test_a_missing_file_and_one_that_is_not_json(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_calibration(ConfidenceConfig(kind="max_prob", calibration=str(path)))
        return str(caught.value)

    assert refusal(tmp_path / "absent.json").startswith("confidence.calibration: no such file, got ")
    (tmp_path / "text.json").write_text("a: 1")
    assert refusal(tmp_path / "text.json").endswith("text.json is not a JSON file.")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert refusal(tmp_path / "bytes.json").endswith("bytes.json is not a JSON file.")
