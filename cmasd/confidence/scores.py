"""Confidence C in [0, 1] from one row of drafter logits (CM-ASD, arXiv 2508.15371, section 3).

The paper prints the normalised entropy itself, which measures uncertainty; it is inverted here. Its
logit margin sigmoid(z1 - z2) never falls under 0.5; the full range is the default, the printed form
an option. Raw scores are not calibrated: P(accept | C = c) = c holds only after a fitted map.

Shapes: B rows, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmasd.confidence.calibration import CalibrationMap, load_calibration
from cmasd.confidence.largest import statistics
from cmasd.config.tree import ConfidenceConfig


@dataclass(frozen=True)
class Scores:
    """The components of one drafted position; (B,) float32 but for the last."""

    entropy: Tensor
    """1 - H(P_d)/ln V."""
    margin: Tensor
    """2*sigmoid(z1 - z2) - 1, or sigmoid(z1 - z2) in the printed form."""
    softmax: Tensor
    """p1 - p2."""
    max_prob: Tensor
    """p1."""
    token: Tensor
    """(B,) int64: the argmax."""


def score(logits_BV: Tensor, margin_form: str = "full") -> Scores:
    """All components from one pass over the logits; masked ones (-inf) count as probability 0."""
    found = statistics(logits_BV.float())
    p1_B = torch.exp(-found.log_mass)
    sigmoid_B = torch.sigmoid(found.margin)
    return Scores(
        entropy=(1 - found.entropy / math.log(logits_BV.shape[-1])).clamp(0, 1),
        margin=sigmoid_B if margin_form == "printed" else 2 * sigmoid_B - 1,
        softmax=p1_B * (1 - torch.exp(-found.margin)),
        max_prob=p1_B,
        token=found.token,
    )


@dataclass(frozen=True)
class Confidence:
    """One way of turning components into C."""

    kind: str
    weights: tuple[float, float, float]
    margin_form: str
    calibration: CalibrationMap | None

    def __call__(self, logits_BV: Tensor, head_B: Tensor | None = None) -> tuple[Tensor, Scores]:
        """Return C (B,) float32 in [0, 1] and the components behind it; `head_B` is the drafter's own prediction."""
        scores = score(logits_BV, self.margin_form)
        return self.combine(scores, head_B), scores

    def combine(self, scores: Scores, head_B: Tensor | None = None) -> Tensor:
        """C (B,) of given components."""
        if self.kind == "ensemble":
            w1, w2, w3 = self.weights
            raw_B = w1 * scores.entropy + w2 * scores.margin + w3 * scores.softmax
        elif self.kind == "head":
            assert head_B is not None, "the pair is checked to have a head"
            raw_B = head_B.float()
        else:
            raw_B = getattr(scores, self.kind)
        return raw_B if self.calibration is None else self.calibration(raw_B)


def build_confidence(config: ConfidenceConfig, kind: str | None = None) -> Confidence:
    """Of `kind`, which is `config.kind` unless told otherwise (`Config.score` resolves `auto`).

    Raises `ConfigError` when the calibration file is missing or malformed.
    """
    w1, w2, w3 = config.weights
    score = config.kind if kind is None else kind
    return Confidence(score, (w1, w2, w3), config.margin_form, load_calibration(config, score))
