"""Drafter logits, or what is behind them -> a score in [0, 1]; and maps that calibrate it."""

from cmasd.confidence.insight import Insight
from cmasd.confidence.maps import CalibrationMap, calibration_file, load_calibration
from cmasd.confidence.scores import Confidence, Scores, build_confidence

__all__ = [
    "CalibrationMap",
    "Confidence",
    "Insight",
    "Scores",
    "build_confidence",
    "calibration_file",
    "load_calibration",
]
