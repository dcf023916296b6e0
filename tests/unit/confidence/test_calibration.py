"""Calibration maps: what they compute, and what is said of a file that is not one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.confidence import build_confidence, load_calibration
from cmasd.config.tree import ConfidenceConfig
from cmasd.errors import ConfigError

PLATT = {"version": 1, "kind": "platt", "a": 1.5, "b": -0.5}
X, Y = [0.2, 0.5, 0.9], [0.1, 0.1, 0.8]
ISOTONIC = {"version": 1, "kind": "isotonic", "x": X, "y": Y}
RAW = torch.tensor([0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.95, 1.0])


def written(folder: Path, tree: Any) -> str:
    path = folder / "map.json"
    path.write_text(json.dumps(tree))
    return str(path)


def test_platt_is_a_sigmoid_of_the_logit(tmp_path: Path) -> None:
    calibrated = load_calibration(written(tmp_path, PLATT))(RAW)
    for raw, value in zip(RAW.tolist(), calibrated.tolist(), strict=True):
        inside = min(max(raw, 1e-6), 1 - 1e-6)
        logit = math.log(inside / (1 - inside))
        assert value == pytest.approx(1 / (1 + math.exp(-(1.5 * logit - 0.5))), abs=1e-4)


def test_isotonic_is_linear_between_knots_and_flat_outside(tmp_path: Path) -> None:
    calibrated = load_calibration(written(tmp_path, ISOTONIC))(RAW)
    np.testing.assert_allclose(calibrated, np.interp(RAW.numpy(), X, Y), atol=1e-6)


@pytest.mark.parametrize("tree", [PLATT, ISOTONIC])
def test_maps_are_monotone_keep_the_shape_and_stay_in_range(tmp_path: Path, tree: dict[str, Any]) -> None:
    raw = torch.linspace(0, 1, 60).view(5, 4, 3).transpose(0, 2)
    calibrated = load_calibration(written(tmp_path, tree))(raw)
    assert calibrated.shape == raw.shape
    assert calibrated.dtype == raw.dtype
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    order = raw.flatten().argsort()
    assert (calibrated.flatten()[order].diff() >= -1e-6).all()


def test_an_identity_changes_nothing(tmp_path: Path) -> None:
    for tree in ({**PLATT, "a": 1, "b": 0}, {**ISOTONIC, "x": [0, 1], "y": [0, 1]}):
        torch.testing.assert_close(load_calibration(written(tmp_path, tree))(RAW), RAW, atol=2e-6, rtol=0)


def test_confidence_applies_its_map(tmp_path: Path) -> None:
    config = ConfidenceConfig(kind="softmax", calibration=written(tmp_path, ISOTONIC))
    confidence_B, scores = build_confidence(config)(torch.randn(20, 30, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(confidence_B, load_calibration(config.calibration or "")(scores.softmax))
    assert not torch.equal(confidence_B, scores.softmax)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1, 2], "not a calibration map; expected version 1 and kind platt or isotonic"),
        ({**PLATT, "version": 2}, "not a calibration map"),
        ({**PLATT, "kind": "spline"}, "not a calibration map"),
        ({"version": 1, "kind": "platt", "a": 1}, "needs the numbers a and b"),
        ({**PLATT, "a": "steep"}, "needs the numbers a and b"),
        ({**PLATT, "a": -1.0}, "a must be a finite number >= 0"),
        ({**PLATT, "b": float("nan")}, "finite"),
        ({"version": 1, "kind": "isotonic", "x": [0, 1]}, "needs the lists x and y"),
        ({**ISOTONIC, "y": [0.1, 0.2]}, "equal length >= 2"),
        ({**ISOTONIC, "x": [0.2, 0.2, 0.9]}, "x rising"),
        ({**ISOTONIC, "y": [0.5, 0.1, 0.8]}, "y never falling"),
        ({**ISOTONIC, "y": [0.5, 0.6, 1.8]}, "between 0 and 1"),
        ({**ISOTONIC, "x": [0.2], "y": [0.1]}, "equal length >= 2"),
    ],
)
def test_a_bad_map_is_refused_by_name(tmp_path: Path, tree: Any, message: str) -> None:
    path = written(tmp_path, tree)
    with pytest.raises(ConfigError, match=message) as caught:
        load_calibration(path)
    assert str(caught.value).startswith(f"confidence.calibration: {path}")


def test_a_missing_file_and_one_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"confidence\.calibration: no such file, got .*absent\.json"):
        load_calibration(str(tmp_path / "absent.json"))
    (tmp_path / "text.json").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"text\.json is not a JSON file"):
        load_calibration(str(tmp_path / "text.json"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.json is not a JSON file"):
        load_calibration(str(tmp_path / "bytes.json"))
