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
from scipy.optimize import isotonic_regression
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from cmasd.confidence import CalibrationMap
from cmasd.errors import RunFolderError
from cmasd.evaluation.calibration.judged import CHOOSE, COLUMNS, FIT, REPORT, Array, Counts, Judged
from cmasd.evaluation.calibration.reliability import EDGE, Reliability, ScoredTokens, log_loss, verdicts
from cmasd.io.run_folder import RunFolder

LEAST_TOKENS = 200
"""Judged tokens under which nothing is fitted."""
MOST_KNOTS = 64
"""Of an isotonic map."""
WEAK = 1e3
"""Inverse strength of the penalty on a slope: it matters only where a score parts accepted from rejected tokens."""


def fit_logistic(sample: ScoredTokens, with_offset: bool) -> CalibrationMap:
    """sigmoid(a * logit(c) + b); b = 0 is temperature scaling. A slope below 0 would turn scores round: 0 instead."""
    score, verdict, tokens = verdicts(sample)
    model = LogisticRegression(C=WEAK, fit_intercept=with_offset, solver="newton-cholesky")
    model.fit(logit(np.clip(score, EDGE, 1 - EDGE))[:, None], verdict, sample_weight=tokens)
    a, b = float(model.coef_[0, 0]), float(model.intercept_[0]) if with_offset else 0.0
    if a < 0:
        a, b = 0.0, float(logit(np.clip(sample.accepted_share, EDGE, 1 - EDGE))) if with_offset else 0.0
    return CalibrationMap("platt", a=a, b=b)


def fit_isotonic(sample: ScoredTokens) -> CalibrationMap:
    """The non-falling steps nearest to the accepted shares, as knots at the middle of each step."""
    groups = _quantiles(sample)
    steps = isotonic_regression(groups[:, 2] / groups[:, 1], weights=groups[:, 1]).blocks[:-1]
    scores, tokens, accepted = np.add.reduceat(groups, steps).T
    x, y = tuple((scores / tokens).tolist()), tuple((accepted / tokens).tolist())
    return CalibrationMap("isotonic", x=x, y=y) if len(x) > 1 else CalibrationMap("isotonic", x=(0.0, 1.0), y=y * 2)


def _quantiles(sample: ScoredTokens) -> Array:
    """(at most MOST_KNOTS, 3): sum of scores, tokens, accepted, in groups of about as many tokens each."""
    rank_J = np.cumsum(sample.tokens_J) - sample.tokens_J / 2
    group_J = np.minimum((rank_J / sample.size * MOST_KNOTS).astype(int), MOST_KNOTS - 1)
    weights = (sample.score_J * sample.tokens_J, sample.tokens_J, sample.accepted_J)
    columns: Array = np.stack([np.bincount(group_J, weight, MOST_KNOTS) for weight in weights], axis=1)
    return columns[columns[:, 1] > 0]


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

    @property
    def helps(self) -> bool:
        """Whether a map was chosen, and is better than none on the rows that nothing was fitted to or chosen by."""
        return self.method != "none" and self.after.log_loss_nats < self.before.log_loss_nats

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
        ("drafter.kind", config.drafter.name, config.drafter.model is not None and not config.drafter.free, "model"),
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
