"""Fits calibration maps to judged draft tokens, chooses among them, and says how good scores are before and after.

Per score: as it is, temperature, Platt and isotonic regression are fitted on one part of the rows, the one with the
least log loss on a second part is taken, and every figure reported is of a third part that neither has seen.
Works on counts by bin (`judged.py`): a bin stands for its mean score.

Shapes: K draft positions, J bins, G groups of the reliability curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from cmasd.confidence import CalibrationMap
from cmasd.errors import RunFolderError
from cmasd.evaluation.judged import CHOOSE, COLUMNS, FIT, REPORT, Array, Counts, Judged
from cmasd.io.run_folder import RunFolder

GROUPS = 10
"""Equal widths of confidence, for ECE and the reliability curve."""
LEAST_GROUP_TOKENS = 50
"""Judged tokens of a group under which its accepted share is not compared with its neighbours'."""
LEAST_TOKENS = 200
"""Judged tokens under which nothing is fitted."""
MOST_KNOTS = 64
"""Of an isotonic map."""
NEWTON_STEPS = 50
EDGE = 1e-6


@dataclass(frozen=True)
class Sample:
    """Tokens as (score, how many, how many of them accepted)."""

    score_J: Array
    tokens_J: Array
    accepted_J: Array

    @classmethod
    def of(cls, counts: Counts, part: int, position: int | None = None) -> "Sample":
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

    def mapped(self, calibration: CalibrationMap) -> "Sample":
        """With calibrated scores."""
        return Sample(calibration(torch.from_numpy(self.score_J)).numpy(), self.tokens_J, self.accepted_J)


# ------------------------------------------------------------------------------- figures


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


def reliability(sample: Sample) -> list[Group]:
    """Groups of equal width that hold tokens."""
    group_J = np.minimum((sample.score_J * GROUPS).astype(int), GROUPS - 1)
    weights = (sample.tokens_J, sample.tokens_J * sample.score_J, sample.accepted_J)
    tokens_G, confidence_G, accepted_G = (np.bincount(group_J, weight, GROUPS) for weight in weights)
    return [
        Group(g / GROUPS, int(tokens_G[g]), float(confidence_G[g] / tokens_G[g]), float(accepted_G[g] / tokens_G[g]))
        for g in range(GROUPS)
        if tokens_G[g]
    ]


def expected_calibration_error(sample: Sample) -> float:
    """Mean distance of confidence and accepted share over the groups, weighted by tokens."""
    groups = reliability(sample)
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


def area_under_curve(sample: Sample) -> float:
    """Chance that an accepted token has the higher score than a rejected one, ties counted half; NaN without both."""
    _, place_J = np.unique(sample.score_J, return_inverse=True)
    accepted = np.bincount(place_J, sample.accepted_J)
    rejected = np.bincount(place_J, sample.tokens_J - sample.accepted_J)
    pairs = accepted.sum() * rejected.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(rejected) - rejected
    return float((accepted * (below + rejected / 2)).sum() / pairs)


def log_loss(sample: Sample) -> float:
    """Nats per token; what maps are chosen by."""
    p_J = np.clip(sample.score_J, EDGE, 1 - EDGE)
    rejected_J = sample.tokens_J - sample.accepted_J
    total = -(sample.accepted_J * np.log(p_J) + rejected_J * np.log(1 - p_J)).sum()
    return float(total / sample.size) if sample.size else float("nan")


# ------------------------------------------------------------------------------- maps


def fit_logistic(sample: Sample, with_offset: bool) -> CalibrationMap:
    """sigmoid(a * logit(c) + b) by Newton's method, each step halved until it gains; b = 0 is temperature scaling."""
    p_J = np.clip(sample.score_J, EDGE, 1 - EDGE)
    design = np.stack([np.log(p_J / (1 - p_J)), np.ones_like(p_J)], axis=1)[:, : 1 + with_offset]
    ridge = 1e-3 * np.eye(design.shape[1])

    def loss(weights: Array) -> float:
        odds_J = design @ weights
        return float((sample.tokens_J * np.logaddexp(0, odds_J) - sample.accepted_J * odds_J).sum())

    weights = np.eye(design.shape[1])[0]
    for _ in range(NEWTON_STEPS):
        q_J = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        gradient = design.T @ (sample.tokens_J * q_J - sample.accepted_J)
        curvature = (design.T * (sample.tokens_J * q_J * (1 - q_J))) @ design + ridge
        step, now = np.linalg.solve(curvature, gradient), loss(weights)
        while loss(weights - step) > now and np.abs(step).max() > EDGE:
            step = step / 2
        if np.abs(step).max() <= EDGE:
            break
        weights = weights - step
    a, b = max(0.0, float(weights[0])), float(weights[1]) if with_offset else 0.0
    return CalibrationMap("platt", a=a, b=b)


def fit_isotonic(sample: Sample) -> CalibrationMap:
    """The non-falling steps nearest to the accepted shares, as knots at the middle of each step."""
    blocks = _pool(_quantiles(sample))
    x, y = (tuple(float(value) for value in column) for column in (blocks[:, 0] / blocks[:, 1], blocks[:, 2]))
    shares = tuple(accepted / tokens for accepted, tokens in zip(y, blocks[:, 1].tolist(), strict=True))
    if len(x) == 1:
        return CalibrationMap("isotonic", x=(0.0, 1.0), y=shares * 2)
    return CalibrationMap("isotonic", x=x, y=shares)


def _quantiles(sample: Sample) -> Array:
    """(at most MOST_KNOTS, 3): sum of scores, tokens, accepted, in groups of about as many tokens each."""
    rank_J = np.cumsum(sample.tokens_J) - sample.tokens_J / 2
    group_J = np.minimum((rank_J / sample.size * MOST_KNOTS).astype(int), MOST_KNOTS - 1)
    weights = (sample.score_J * sample.tokens_J, sample.tokens_J, sample.accepted_J)
    columns: Array = np.stack([np.bincount(group_J, weight, MOST_KNOTS) for weight in weights], axis=1)
    return columns[columns[:, 1] > 0]


def _pool(rows: Array) -> Array:
    """Pool adjacent violators: neighbours are joined until accepted shares rise, and scores too."""
    blocks: list[Array] = []
    for row in rows:
        blocks.append(row)
        while len(blocks) > 1 and blocks[-1][2] / blocks[-1][1] <= blocks[-2][2] / blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = blocks[-1] + last
    return np.stack(blocks)


AS_IS = CalibrationMap("platt")
FITS: dict[str, Callable[[Sample], CalibrationMap]] = {
    "none": lambda sample: AS_IS,
    "temperature": lambda sample: fit_logistic(sample, with_offset=False),
    "platt": lambda sample: fit_logistic(sample, with_offset=True),
    "isotonic": fit_isotonic,
}
"""By name; the first of equals is taken."""


# ------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Quality:
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
    def of(cls, sample: Sample) -> "Quality":
        """All figures of a sample."""
        mean = float((sample.score_J * sample.tokens_J).sum() / sample.size) if sample.size else float("nan")
        figures = (expected_calibration_error(sample), area_under_curve(sample), log_loss(sample))
        return cls(sample.size, sample.accepted_share, mean, *figures, reliability(sample))


@dataclass(frozen=True)
class Fitted:
    """One score with its map."""

    score: str
    """As in `confidence.kind`."""
    method: str
    """none, temperature, platt or isotonic."""
    calibration: CalibrationMap
    choice_loss_nats: float
    """Log loss on the part that maps and scores are chosen by."""
    before: Quality
    after: Quality
    positions_before: list[Quality]
    """By draft position."""
    positions_after: list[Quality]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN becomes null."""
        plain: dict[str, Any] = without_nan(asdict(self) | {"calibration": self.calibration.to_dict()})
        return plain


def without_nan(value: Any) -> Any:
    """The same with null for what JSON cannot say."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def count_judged(folder: RunFolder, seed: int) -> Judged:
    """Judged tokens of every finished shard; raises `RunFolderError` where the run recorded none to calibrate."""
    from cmasd.config import from_dict  # needs omegaconf, which the rest of this room does without

    manifest = folder.manifest()
    if manifest is None:
        raise RunFolderError(f"{folder.address}: is not a run folder, it has no manifest.json.")
    config = from_dict(manifest["config"])
    for key, got, fits, advice in (
        ("telemetry.level", config.telemetry.level, config.telemetry.level == "token", "token"),
        ("drafter.kind", config.drafter.kind, config.drafter.kind != "lookup", "model"),
    ):
        if not fits:
            raise RunFolderError(
                f"{folder.address}: holds no confidences of a drafting model, {key} is {got}. "
                f"Run with {key}={advice} into a new folder."
            )
    judged = Judged(config, seed)
    for place, batch in folder.read_outputs(COLUMNS):
        judged.add(batch, place)
    return judged


def fit(judged: Judged, run: str) -> list[Fitted]:
    """A map for every score of a run, the best score first; raises `RunFolderError` where there is too little."""
    if judged.tokens < LEAST_TOKENS:
        raise RunFolderError(
            f"{run}: holds too few judged draft tokens to calibrate, got {judged.tokens}; expected at least "
            f"{LEAST_TOKENS}. Decode more rows, with policy.kind=fixed so that every iteration drafts."
        )
    fitted = [_fit_score(score, counts) for score, counts in judged.counts.items()]
    return sorted(fitted, key=lambda one: one.choice_loss_nats)


def _fit_score(score: str, counts: Counts) -> Fitted:
    fit_on, choose_by, report = (Sample.of(counts, part) for part in (FIT, CHOOSE, REPORT))
    maps = {name: make(fit_on) for name, make in FITS.items()}
    losses = {name: log_loss(choose_by.mapped(one)) for name, one in maps.items()}
    method = min(losses, key=lambda name: losses[name])
    chosen = maps[method]
    by_position = [Sample.of(counts, REPORT, position) for position in range(counts.tokens_PKJ.shape[1])]
    return Fitted(
        score,
        method,
        chosen,
        losses[method],
        Quality.of(report),
        Quality.of(report.mapped(chosen)),
        [Quality.of(sample) for sample in by_position],
        [Quality.of(sample.mapped(chosen)) for sample in by_position],
    )
