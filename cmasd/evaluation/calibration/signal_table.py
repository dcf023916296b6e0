"""What each signal of a drafted token says of its acceptance: AUC, ECE, Brier and log loss, with intervals.

Rows are split at random in two. On one half each score gets a map to probabilities, and what is no score yet is made
one (position and source: their accepted share; `logistic`: regression on all signals); all figures are of the other
half, with 95 % bootstrap intervals over its rows, since tokens of one row are alike.

Shapes: N tokens, R resamples, G groups of equal width.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression

from cmasd.evaluation.calibration.fit import without_nan
from cmasd.evaluation.calibration.judged import Array
from cmasd.evaluation.calibration.judged_tokens import JudgedTokens
from cmasd.evaluation.calibration.reliability import GROUPS
from cmasd.policies.base import log_odds
from cmasd.signals import COMPONENTS

RESAMPLES = 200
LEAST_OF_POSITION = 100
"""Judged tokens of the reported half under which a position has no figures."""
Bools = NDArray[np.bool_]


class Figure(NamedTuple):
    """With its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Discrimination:
    """One score at one draft position, or at all."""

    name: str
    position: int | None
    """From 1; None: all."""
    tokens: int
    accepted_share: float
    auc: Figure
    ece: Figure
    """Of the score as it is."""
    ece_mapped: Figure
    brier: Figure
    """Of the mapped score, like the log loss."""
    log_loss_nats: Figure

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN becomes null."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


@dataclass(frozen=True)
class Shift:
    """A signal of one run on another."""

    name: str
    auc: float
    """On the other run."""
    distance: float
    """Kolmogorov-Smirnov, of its values in the two runs."""
    ece_moved: float
    """With the map of the one run."""
    ece_own: float
    """With one of the other's own."""


def is_fitted_to(evidence: JudgedTokens, seed: int) -> Bools:
    """(N,) whether a token is of the half that maps are fitted to."""
    is_fitted_R: Bools = np.random.default_rng(seed).random(evidence.rows) < 0.5
    return is_fitted_R[evidence.row_N]


def scores(evidence: JudgedTokens, is_fitted_N: Bools) -> dict[str, Array]:
    """(N,) in [0, 1] by name; those that nobody recorded are absent."""
    found = {"confidence": evidence.confidence_N} | dict(zip(COMPONENTS, evidence.components_N3.T, strict=True))
    found["max_prob"] = evidence.max_prob_N
    found["ensemble"] = evidence.components_N3 @ np.array(evidence.config.confidence.weights)
    found = {name: score_N for name, score_N in found.items() if not np.isnan(score_N).all()}
    numbers = {name: np.nan_to_num(log_odds(score_N)) for name, score_N in found.items()}
    found["position"] = _shares(evidence.position_N, evidence.accepted_N, is_fitted_N)
    found["source"] = _shares(evidence.source_N, evidence.accepted_N, is_fitted_N)
    found["row so far"] = evidence.rate_N
    places_NK = evidence.position_N[:, None] == np.arange(evidence.position_N.max() + 1)
    is_known_N = ~np.isnan(evidence.components_N3[:, 0])
    feature_NF = np.column_stack([*numbers.values(), log_odds(evidence.rate_N), is_known_N, places_NK])
    model = LogisticRegression(max_iter=1000).fit(feature_NF[is_fitted_N], evidence.accepted_N[is_fitted_N])
    found["logistic"] = model.predict_proba(feature_NF)[:, 1]
    return found


def _shares(kind_N: NDArray[np.int64], accepted_N: Array, is_fitted_N: Bools) -> Array:
    """(N,) accepted share of each kind in the fitted half."""
    kinds, at_N = np.unique(kind_N, return_inverse=True)
    judged, accepted = (np.bincount(at_N[is_fitted_N], one, len(kinds)) for one in (None, accepted_N[is_fitted_N]))
    share_N: Array = ((accepted + 1) / (judged + 2))[at_N]
    return share_N


def mapped(score_N: Array, accepted_N: Array, fit_by_N: Bools) -> Array:
    """(N,) probabilities by Platt scaling."""
    odds_N1 = log_odds(score_N)[:, None]
    model = LogisticRegression(C=1e3).fit(odds_N1[fit_by_N], accepted_N[fit_by_N])
    p_N: Array = model.predict_proba(odds_N1)[:, 1]
    return p_N


def judge(evidence: JudgedTokens, seed: int) -> list[Discrimination]:
    """Every score, at all positions and at each that has enough tokens."""
    is_fitted_N, found = is_fitted_to(evidence, seed), []
    for name, score_N in scores(evidence, is_fitted_N).items():
        known_N = ~np.isnan(score_N)
        p_N = np.full(len(score_N), np.nan)
        p_N[known_N] = mapped(score_N[known_N], evidence.accepted_N[known_N], is_fitted_N[known_N])
        shown_N = known_N & ~is_fitted_N
        for position in (None, *range(int(evidence.position_N.max()) + 1)):
            at_N = shown_N if position is None else shown_N & (evidence.position_N == position)
            if at_N.sum() >= LEAST_OF_POSITION or position is None:
                parts = score_N[at_N], p_N[at_N], evidence.accepted_N[at_N], evidence.row_N[at_N]
                found.append(_signal(name, None if position is None else position + 1, *parts, seed))
    return found


def _signal(
    name: str, position: int | None, score_N: Array, p_N: Array, accepted_N: Array, row_N: NDArray[np.int64], seed: int
) -> Discrimination:
    _, at_N = np.unique(row_N, return_inverse=True)
    rows = int(at_N.max()) + 1
    drawn_RR = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), RESAMPLES)
    weight_RN = np.vstack([np.ones(len(at_N)), drawn_RR[:, at_N]])
    p_N = p_N.clip(1e-6, 1 - 1e-6)
    loss_N = -np.where(accepted_N > 0, np.log(p_N), np.log1p(-p_N))
    figures = (
        aucs(score_N, accepted_N, weight_RN),
        eces(score_N, accepted_N, weight_RN),
        eces(p_N, accepted_N, weight_RN),
        weight_RN @ (p_N - accepted_N) ** 2 / weight_RN.sum(1),
        weight_RN @ loss_N / weight_RN.sum(1),
    )
    return Discrimination(name, position, len(at_N), float(accepted_N.mean()), *map(_figure, figures))


def _figure(value_R: Array) -> Figure:
    """The first is that of the tokens themselves."""
    return Figure(float(value_R[0]), *np.nanquantile(value_R[1:], [0.025, 0.975]).tolist())


def aucs(score_N: Array, accepted_N: Array, weight_RN: Array) -> Array:
    """(R,) areas under the ROC curve of weighted tokens, ties counted half: scikit-learn's, for all at once."""
    order_N = np.argsort(score_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score_N[order_N]) > 0])
    weight_RN, accepted_N = weight_RN[:, order_N], accepted_N[order_N]
    yes_RT = np.add.reduceat(weight_RN * accepted_N, starts, axis=1)
    no_RT = np.add.reduceat(weight_RN * (1 - accepted_N), starts, axis=1)
    below_RT = np.cumsum(no_RT, axis=1) - no_RT / 2
    pairs_R = yes_RT.sum(1) * no_RT.sum(1)
    area_R: Array = np.where(pairs_R > 0, (yes_RT * below_RT).sum(1) / np.where(pairs_R > 0, pairs_R, 1), np.nan)
    return area_R


def eces(score_N: Array, accepted_N: Array, weight_RN: Array) -> Array:
    """(R,) expected calibration errors of weighted tokens."""
    group_N = np.minimum((score_N * GROUPS).astype(int), GROUPS - 1)
    is_in_NG = (group_N[:, None] == np.arange(GROUPS)).astype(float)
    ece_R: Array = abs((weight_RN * (score_N - accepted_N)) @ is_in_NG).sum(1) / weight_RN.sum(1)
    return ece_R


def shifts(one: JudgedTokens, other: JudgedTokens, seed: int) -> list[Shift]:
    """Of all scores that both runs know."""
    found, halves = [], (is_fitted_to(one, seed), is_fitted_to(other, seed))
    here, there = (scores(evidence, half_N) for evidence, half_N in zip((one, other), halves, strict=True))
    for name in here.keys() & there.keys() - {"position", "source", "logistic"}:
        known_N, other_N = ~np.isnan(here[name]), ~np.isnan(there[name])
        score_N = np.concatenate([here[name][known_N], there[name][other_N]])
        accepted_N = np.concatenate([one.accepted_N[known_N], other.accepted_N[other_N]])
        is_here_N = np.arange(len(score_N)) < known_N.sum()
        by_own_N = np.r_[np.zeros(known_N.sum(), bool), halves[1][other_N]]
        shown_N = ~is_here_N & ~by_own_N
        ones_1N = np.ones((1, shown_N.sum()))
        moved, own = (
            float(eces(mapped(score_N, accepted_N, by_N)[shown_N], accepted_N[shown_N], ones_1N)[0])
            for by_N in (is_here_N, by_own_N)
        )
        auc = float(aucs(score_N[shown_N], accepted_N[shown_N], ones_1N)[0])
        distance = float(ks_2samp(here[name][known_N], there[name][other_N]).statistic)
        found.append(Shift(name, auc, distance, moved, own))
    return sorted(found, key=lambda shift: shift.name)
