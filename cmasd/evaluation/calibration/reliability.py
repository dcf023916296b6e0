"""How good scores are as probabilities of acceptance: reliability curve, ECE, AUC and log loss of judged tokens.

Works on counts by bin (`judged.py`): a bin stands for its mean score.

Shapes: K draft positions, J bins, G groups of the reliability curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn import metrics

from cmasd.confidence import CalibrationMap
from cmasd.evaluation.calibration.judged import Array, Counts

GROUPS = 10
"""Equal widths of confidence, for ECE and the reliability curve."""
LEAST_GROUP_TOKENS = 50
"""Judged tokens of a group under which its accepted share is not compared with its neighbours'."""
EDGE = 1e-6


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens as (score, how many, how many of them accepted)."""

    score_J: Array
    tokens_J: Array
    accepted_J: Array

    @classmethod
    def of(cls, counts: Counts, part: int, position: int | None = None) -> "ScoredTokens":
        """Bins that hold tokens; of one draft position, or of all."""
        chosen = (counts.tokens_PKJ, counts.accepted_PKJ, counts.sums_PKJ)
        tokens_J, accepted_J, sums_J = (
            total[part].sum(0) if position is None else total[part, position] for total in chosen
        )
        held = tokens_J > 0
        score_J = np.clip(sums_J[held] / tokens_J[held], 0.0, 1.0)
        order = np.argsort(score_J, kind="stable")
        return cls(score_J[order], tokens_J[held][order], accepted_J[held][order])

    @property
    def size(self) -> int:
        """Tokens."""
        return int(self.tokens_J.sum())

    @property
    def accepted_share(self) -> float:
        """Of the tokens; NaN without any."""
        return float(self.accepted_J.sum() / self.tokens_J.sum()) if self.size else float("nan")

    def mapped(self, calibration: CalibrationMap) -> "ScoredTokens":
        """With calibrated scores."""
        return ScoredTokens(calibration(torch.from_numpy(self.score_J)).numpy(), self.tokens_J, self.accepted_J)


@dataclass(frozen=True)
class Group:
    """One point of a reliability curve."""

    low: float
    """The group holds confidences from here up to `low + 1 / GROUPS`."""
    tokens: int
    mean_confidence: float
    accepted_share: float

    @property
    def standard_error(self) -> float:
        """Of the accepted share."""
        return math.sqrt(self.accepted_share * (1 - self.accepted_share) / self.tokens)


def reliability_curve(sample: ScoredTokens) -> list[Group]:
    """Groups of equal width that hold tokens."""
    group_J = np.minimum((sample.score_J * GROUPS).astype(int), GROUPS - 1)
    weights = (sample.tokens_J, sample.tokens_J * sample.score_J, sample.accepted_J)
    tokens_G, confidence_G, accepted_G = (np.bincount(group_J, weight, GROUPS) for weight in weights)
    return [
        Group(g / GROUPS, int(tokens_G[g]), float(confidence_G[g] / tokens_G[g]), float(accepted_G[g] / tokens_G[g]))
        for g in range(GROUPS)
        if tokens_G[g]
    ]


def expected_calibration_error(sample: ScoredTokens) -> float:
    """Mean distance of confidence and accepted share over the groups, weighted by tokens."""
    groups = reliability_curve(sample)
    total = sum(group.tokens * abs(group.mean_confidence - group.accepted_share) for group in groups)
    return float(total / sample.size) if sample.size else float("nan")


def falls(curve: Sequence[Group], least_tokens: int = LEAST_GROUP_TOKENS) -> list[tuple[Group, Group]]:
    """Neighbours where the accepted share falls with confidence, by more than three standard errors of the difference.

    Three, because up to nine pairs are looked at; groups of fewer tokens are left out.
    """
    return [
        (low, high)
        for low, high in pairwise(group for group in curve if group.tokens >= least_tokens)
        if low.accepted_share - high.accepted_share > 3 * math.hypot(low.standard_error, high.standard_error)
    ]


def verdicts(sample: ScoredTokens) -> tuple[Array, Array, Array]:
    """(2 J,) scores, verdicts (1 accepted, 0 rejected) and tokens of that verdict, as scikit-learn takes them."""
    ones_J = np.ones_like(sample.score_J)
    rejected_J = sample.tokens_J - sample.accepted_J
    return np.tile(sample.score_J, 2), np.append(ones_J, 0 * ones_J), np.append(sample.accepted_J, rejected_J)


def area_under_curve(sample: ScoredTokens) -> float:
    """Chance that an accepted token has the higher score than a rejected one, ties counted half; NaN without both."""
    score, verdict, tokens = verdicts(sample)
    if not 0 < sample.accepted_J.sum() < sample.tokens_J.sum():
        return float("nan")
    return float(metrics.roc_auc_score(verdict, score, sample_weight=tokens))


def log_loss(sample: ScoredTokens) -> float:
    """Nats per token; what maps are chosen by."""
    if not sample.size:
        return float("nan")
    score, verdict, tokens = verdicts(sample)
    return float(metrics.log_loss(verdict, np.clip(score, EDGE, 1 - EDGE), sample_weight=tokens, labels=[0, 1]))


@dataclass(frozen=True)
class Reliability:
    """How good scores are as probabilities of acceptance."""

    tokens: int
    accepted_share: float
    mean_confidence: float
    ece: float
    """Expected calibration error over ten groups."""
    auc: float
    """Area under the ROC curve."""
    log_loss_nats: float
    curve: list[Group]

    @property
    def is_monotone(self) -> bool:
        """Whether more confidence never means less acceptance, beyond noise."""
        return not falls(self.curve)

    @classmethod
    def of(cls, sample: ScoredTokens) -> "Reliability":
        """All figures of a sample."""
        mean = float((sample.score_J * sample.tokens_J).sum() / sample.size) if sample.size else float("nan")
        figures = (expected_calibration_error(sample), area_under_curve(sample), log_loss(sample))
        return cls(sample.size, sample.accepted_share, mean, *figures, reliability_curve(sample))
