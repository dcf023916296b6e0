"""Maps from a raw score to the acceptance probability it stands for, kept as small JSON files.

Two kinds: `platt` (sigmoid(a * logit(c) + b)) and `isotonic` (knots, linear between them).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmasd.errors import ConfigError

VERSION = 1
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

    def __call__(self, raw: Tensor) -> Tensor:
        """Calibrated scores, same shape; flat outside the outermost knots."""
        if self.kind == "platt":
            return torch.sigmoid(self.a * torch.logit(raw, eps=1e-6) + self.b)
        x, y = raw.new_tensor(self.x), raw.new_tensor(self.y)
        inside = raw.clamp(x[0].item(), x[-1].item())
        right = torch.searchsorted(x, inside.contiguous()).clamp(1, len(x) - 1)
        share = (inside - x[right - 1]) / (x[right] - x[right - 1]).clamp_min(1e-12)
        return y[right - 1] + share * (y[right] - y[right - 1])


def load_calibration(path: str) -> CalibrationMap:
    """Read a map; raises `ConfigError` naming the file."""
    try:
        tree = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{KEY}: no such file, got {path}.") from None
    except (OSError, ValueError):
        raise ConfigError(f"{KEY}: {path} is not a JSON file.") from None
    if not isinstance(tree, dict) or tree.get("version") != VERSION or tree.get("kind") not in ("platt", "isotonic"):
        raise ConfigError(
            f"{KEY}: {path} is not a calibration map; expected version {VERSION} and kind platt or isotonic."
        )
    return _platt(tree, path) if tree["kind"] == "platt" else _isotonic(tree, path)


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
