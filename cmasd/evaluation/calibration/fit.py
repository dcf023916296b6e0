"""Fits calibration maps to judged draft tokens, and chooses among them.

Per score: as it is, temperature, Platt and isotonic regression are fitted on one part of the rows, the one with the
least log loss on a second part is taken, and every figure reported is of a third part that neither has seen.
Works on counts by bin (`judged.py`): a bin stands for its mean score.

Shapes: J bins.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cmasd.confidence import CalibrationMap
from cmasd.errors import RunFolderError
from cmasd.evaluation.calibration.judged import CHOOSE, COLUMNS, FIT, REPORT, Array, Counts, Judged
from cmasd.evaluation.calibration.reliability import EDGE, Reliability, ScoredTokens, log_loss
from cmasd.io.run_folder import RunFolder

LEAST_TOKENS = 200
"""Judged tokens under which nothing is fitted."""
MOST_KNOTS = 64
"""Of an isotonic map."""
NEWTON_STEPS = 50


def fit_logistic(sample: ScoredTokens, with_offset: bool) -> CalibrationMap:
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


def fit_isotonic(sample: ScoredTokens) -> CalibrationMap:
    """The non-falling steps nearest to the accepted shares, as knots at the middle of each step."""
    blocks = _pool(_quantiles(sample))
    x, y = (tuple(float(value) for value in column) for column in (blocks[:, 0] / blocks[:, 1], blocks[:, 2]))
    shares = tuple(accepted / tokens for accepted, tokens in zip(y, blocks[:, 1].tolist(), strict=True))
    if len(x) == 1:
        return CalibrationMap("isotonic", x=(0.0, 1.0), y=shares * 2)
    return CalibrationMap("isotonic", x=x, y=shares)


def _quantiles(sample: ScoredTokens) -> Array:
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
FITS: dict[str, Callable[[ScoredTokens], CalibrationMap]] = {
    "none": lambda sample: AS_IS,
    "temperature": lambda sample: fit_logistic(sample, with_offset=False),
    "platt": lambda sample: fit_logistic(sample, with_offset=True),
    "isotonic": fit_isotonic,
}
"""By name; the first of equals is taken."""


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
    before: Reliability
    after: Reliability
    positions_before: list[Reliability]
    """By draft position."""
    positions_after: list[Reliability]

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
    fit_on, choose_by, report = (ScoredTokens.of(counts, part) for part in (FIT, CHOOSE, REPORT))
    maps = {name: make(fit_on) for name, make in FITS.items()}
    losses = {name: log_loss(choose_by.mapped(one)) for name, one in maps.items()}
    method = min(losses, key=lambda name: losses[name])
    chosen = maps[method]
    by_position = [ScoredTokens.of(counts, REPORT, position) for position in range(counts.tokens_PKJ.shape[1])]
    return Fitted(
        score,
        method,
        chosen,
        losses[method],
        Reliability.of(report),
        Reliability.of(report.mapped(chosen)),
        [Reliability.of(sample) for sample in by_position],
        [Reliability.of(sample.mapped(chosen)) for sample in by_position],
    )
