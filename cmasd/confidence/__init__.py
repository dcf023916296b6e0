"""Drafter logits -> a score in [0, 1]; and maps that calibrate it."""

from cmasd.confidence.maps import CalibrationMap, calibration_file, load_calibration
from cmasd.confidence.scores import Confidence, Scores, build_confidence

__all__ = ["CalibrationMap", "Confidence", "Scores", "build_confidence", "calibration_file", "load_calibration"]
