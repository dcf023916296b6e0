"""Judged tokens drawn from a known truth, without a run."""

import numpy as np
import torch

from cmasd.confidence import CalibrationMap
from cmasd.evaluation.calibration.judged import Array, Counts, Judged
from tests.unit.engine.pairs import tiny_config


def judged_from(truth: dict[str, CalibrationMap], tokens: int = 30_000) -> Judged:
    """Every score is drawn on its own."""
    judged = Judged(tiny_config(drafter={"max_draft_tokens": 2}), seed=0, tokens=tokens)
    rng = np.random.default_rng(4)
    for name, one in truth.items():
        score_N: Array = rng.random(tokens)
        accepted_N = (rng.random(tokens) < one(torch.from_numpy(score_N)).numpy()).astype(float)
        judged.counts[name] = Counts.empty(2)
        judged.counts[name].add(score_N, rng.integers(0, 3, tokens), rng.integers(0, 2, tokens), accepted_N)
    return judged
