"""Maps from a raw score to the acceptance probability it stands for, kept as small JSON files.

A file holds one map per score and the settings that the scores were computed with, so that a map is never applied to
anything else. Two kinds: `platt` (sigmoid(a * logit(c) + b)) and `isotonic` (knots, linear between them).
`cmasd calibrate` writes the files; `cmasd.evaluation.calibration.fit` fits the maps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmasd.config.speculation import ConfidenceConfig
from cmasd.errors import ConfigError

VERSION = 2
KEY = "confidence.calibration"


@dataclass(frozen=True)
class CalibrationMap:
    """A monotone map of [0, 1] onto itself."""

    kind: str
    a: float = 1.0
    """Slope of `platt`."""
    b: float = 0.0
    """Offset of `platt`."""
    x: tuple[float, ...] = ()
    """Raw scores at the knots of `isotonic`, ascending."""
    y: tuple[float, ...] = ()
    """Acceptance probabilities at the knots, ascending."""
    _uploaded: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, raw: Tensor) -> Tensor:
        """Calibrated scores, same shape; flat outside the outermost knots."""
        if self.kind == "platt":
            return torch.sigmoid(self.a * torch.logit(raw, eps=1e-6) + self.b)
        x, y = self._knots(raw)
        inside = raw.clamp(self.x[0], self.x[-1])
        right = torch.searchsorted(x, inside.contiguous()).clamp(1, len(x) - 1)
        share = (inside - x[right - 1]) / (x[right] - x[right - 1]).clamp_min(1e-12)
        return y[right - 1] + share * (y[right] - y[right - 1])

    def _knots(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The knots on the scores' device, made once."""
        key = (like.dtype, like.device)
        if key not in self._uploaded:
            self._uploaded[key] = like.new_tensor(self.x), like.new_tensor(self.y)
        return self._uploaded[key]

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        if self.kind == "platt":
            return {"kind": self.kind, "a": self.a, "b": self.b}
        return {"kind": self.kind, "x": list(self.x), "y": list(self.y)}


def calibration_file(
    maps: Mapping[str, CalibrationMap], config: ConfidenceConfig, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The file's content: maps by score, how the scores were computed, and where the maps come from."""
    return {
        "version": VERSION,
        "weights": list(config.weights),
        "margin_form": config.margin_form,
        "maps": {score: one.to_dict() for score, one in maps.items()},
        "about": dict(about),
    }


def load_calibration(config: ConfidenceConfig, kind: str | None = None) -> CalibrationMap | None:
    """The map of the score `kind`, else of the configured one; None without a file.

    Raises `ConfigError` naming the file.
    """
    path, kind = config.calibration, config.kind if kind is None else kind
    if path is None:
        return None
    tree = _read(path)
    if tree.get("margin_form") != config.margin_form and kind in ("margin", "ensemble"):
        raise ConfigError(
            f"{KEY}: {path} was fitted with another confidence.margin_form, got {config.margin_form}; "
            f"expected {tree.get('margin_form')}. Set it so, or calibrate anew."
        )
    if tree.get("weights") != list(config.weights) and kind == "ensemble":
        raise ConfigError(
            f"{KEY}: {path} was fitted with other confidence.weights, got {list(config.weights)}; "
            f"expected {tree.get('weights')}. Set them so, or calibrate anew."
        )
    return _map(tree["maps"], kind, path)


def _read(path: str) -> dict[str, Any]:
    try:
        tree = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{KEY}: no such file, got {path}.") from None
    except (OSError, ValueError):
        raise ConfigError(f"{KEY}: {path} is not a JSON file.") from None
    if not isinstance(tree, dict) or tree.get("version") != VERSION or not isinstance(tree.get("maps"), dict):
        raise ConfigError(
            f"{KEY}: {path} is not a calibration file; expected version {VERSION} and maps. "
            "Write one with cmasd calibrate."
        )
    return tree


def _map(maps: dict[str, Any], score: str, path: str) -> CalibrationMap:
    """Map of one score, its numbers checked."""
    tree = maps.get(score)
    if tree is None:
        has = ", ".join(sorted(maps)) or "none"
        raise ConfigError(f"{KEY}: {path} has no map for confidence.kind {score} (has: {has}). Choose one of these.")
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if kind not in ("platt", "isotonic"):
        raise ConfigError(f"{KEY}: {path}: the map of {score} must be of kind platt or isotonic, got {kind}.")
    return _platt(tree, path) if kind == "platt" else _isotonic(tree, path)


def _platt(tree: dict[str, Any], path: str) -> CalibrationMap:
    try:
        a, b = float(tree["a"]), float(tree["b"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{KEY}: {path} needs the numbers a and b.") from None
    if not (math.isfinite(a) and math.isfinite(b) and a >= 0):
        raise ConfigError(f"{KEY}: {path}: a must be a finite number >= 0 and b finite, got {a} and {b}.")
    return CalibrationMap("platt", a=a, b=b)


def _isotonic(tree: dict[str, Any], path: str) -> CalibrationMap:
    try:
        x, y = tuple(map(float, tree["x"])), tuple(map(float, tree["y"]))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{KEY}: {path} needs the lists x and y.") from None
    if len(x) != len(y) or len(x) < 2 or sorted(set(x)) != list(x) or sorted(y) != list(y):
        raise ConfigError(f"{KEY}: {path} needs x and y of equal length >= 2, x rising, y never falling.")
    if not all(0 <= value <= 1 for value in x + y):
        raise ConfigError(f"{KEY}: {path} needs x and y between 0 and 1.")
    return CalibrationMap("isotonic", x=x, y=y)
