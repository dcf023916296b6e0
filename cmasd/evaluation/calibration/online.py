"""What estimators of acceptance are worth: each predicts a recorded run's drafts before it learns from them.

AUC, ECE and log loss are of the judged tokens behind the first `WARM` ones. What better estimates would bring is a
replay of goodput's lengths: for each batch of drafts the best rule by what was learned until then, at assumed costs;
and a bound by an oracle that drafts exactly what is accepted. Behind a rejected token nothing is known of a draft, and
the usual acceptance is assumed, which only says what drafting on costs.

Shapes: B drafts, K their tokens, N judged tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics

from cmasd.evaluation.calibration.judged import Array
from cmasd.evaluation.calibration.judged_tokens import JudgedTokens
from cmasd.evaluation.calibration.signal_table import eces
from cmasd.policies.base import Observation, Rule
from cmasd.policies.costs import Curve, StepTable
from cmasd.policies.estimators import ESTIMATORS, Calibration
from cmasd.policies.lengths import choose, expected

BATCH, WARM, ROWS = 64, 2000, 8
"""Drafts that are learned from at once; judged tokens before figures count; rows at a time of the replay."""
COSTS = {"cheap": (0.02, 0.05), "dear": (0.18, 0.42)}
"""Shares of a verifier step that one more token of each row to check costs, and one forward of the drafter; `dear` is
eight rows of the bundled pair on two CPU cores."""


@dataclass(frozen=True)
class Online:
    """One estimator on one run."""

    name: str
    tokens: int
    """Judged, behind the first ones."""
    auc: float
    ece: float
    log_loss_nats: float
    speed: dict[str, float]
    """Times plain decoding, by `COSTS`."""


def table_of(checking: float, drafting: float, most: int, one_pass: bool) -> StepTable:
    """Of a verifier step that takes a second at any number of rows."""
    window = tuple(1 + checking * place for place in range(most + 1))
    return StepTable((1, ROWS), (window, window), (drafting, drafting), one_pass)


def drafts(evidence: JudgedTokens) -> Observation:
    """All of a run as one iteration; of each draft what was judged."""
    judged_I = np.bincount(evidence.draft_N, minlength=len(evidence.sent_I))
    most, count = evidence.config.drafter.max_draft_tokens, len(judged_I)
    confidence_BK, components_BK3 = np.full((count, most), np.nan), np.full((count, most, 3), np.nan)
    at = evidence.draft_N, evidence.position_N
    confidence_BK[at], components_BK3[at] = evidence.confidence_N, evidence.components_N3
    return Observation(
        evidence.sent_I, evidence.accepted_I, confidence_BK, judged_I, 1.0, True, components_BK3=components_BK3
    )


def _part(whole: Observation, start: int) -> Observation:
    some = slice(start, start + BATCH)
    assert whole.components_BK3 is not None, "recorded"
    parts = whole.lengths_B[some], whole.accepted_B[some], whole.confidence_BK[some], whole.drafted_B[some]
    return Observation(*parts, 1.0, True, components_BK3=whole.components_BK3[some])


def run_online(evidence: JudgedTokens) -> list[Online]:
    """Every estimator, then the oracle."""
    whole, found = drafts(evidence), []
    one_pass = evidence.config.drafter.model != "model"
    most = evidence.config.drafter.max_draft_tokens
    curves = {name: table_of(*cost, most, one_pass).curve(ROWS) for name, cost in COSTS.items()}
    for name, kind in ESTIMATORS.items():
        estimator, predicted = kind(most), []
        totals = {cost: np.zeros(2) for cost in curves}
        for start in range(0, len(whole.lengths_B), BATCH):
            part = _part(whole, start)
            never_K = np.full(most, -np.inf)
            weights_2 = estimator.weights_2
            rule = Rule(never_K, never_K, "product", estimator.slope, estimator.offsets_K, 0, weights_2)
            predicted.append(rule.acceptance(part.confidence_BK, part.components_BK3))
            for cost, curve in curves.items():
                totals[cost] += replayed(estimator, part, predicted[-1], curve)
            estimator.observe([part])
        p_N = np.concatenate(predicted)[evidence.draft_N, evidence.position_N][WARM:]
        figures = _figures(p_N, evidence.accepted_N[WARM:])
        found.append(Online(name, len(p_N), *figures, {cost: float(t[0] / t[1]) for cost, t in totals.items()}))
    nan = float("nan")
    bound = {cost: oracle(whole.accepted_B, most, curve) for cost, curve in curves.items()}
    return [*found, Online("oracle", max(0, len(evidence.accepted_N) - WARM), nan, nan, nan, bound)]


def _figures(p_N: Array, accepted_N: Array) -> tuple[float, float, float]:
    if len(np.unique(accepted_N)) < 2:
        return float("nan"), float("nan"), float("nan")
    ece = float(eces(p_N, accepted_N, np.ones((1, len(p_N))))[0])
    return float(metrics.roc_auc_score(accepted_N, p_N)), ece, float(metrics.log_loss(accepted_N, p_N))


def replayed(estimator: Calibration, part: Observation, p_BK: Array, curve: Curve) -> Array:
    """(2,) tokens of these drafts, and seconds of their iterations, under the best rule; or plainly, where that expects
    no more.
    """
    survival_NK, usual_K = estimator.survival()
    choice = choose(survival_NK, usual_K, curve)
    count = len(part.lengths_B)
    if choice.speed * curve.plain <= 1:
        return np.array([count, count * curve.plain])
    places_K = np.arange(len(usual_K))
    survival_BK = np.where(places_K < part.drafted_B[:, None], p_BK, usual_K).cumprod(1)
    fits_BK = survival_BK >= choice.keep_K
    fits_BK[:, 1:] &= survival_BK[:, :-1] >= choice.go_on_K[:-1]
    sent_B = np.minimum(np.logical_and.accumulate(fits_BK, axis=1).sum(1), part.lengths_B)
    _, seconds_1 = expected(survival_BK, choice.go_on_K[None], choice.keep_K[None], curve)
    return np.array([count + np.minimum(sent_B, part.accepted_B).sum(), count * seconds_1[0]])


def oracle(accepted_B: Any, most: int, curve: Curve) -> float:
    """Times plain decoding: each row drafts what is accepted, up to the best length of all."""
    best = 1.0
    for longest in range(1, most + 1):
        sent_B = np.minimum(accepted_B, longest)
        share_K = (sent_B[:, None] > np.arange(longest)).mean(0)
        forwards_K = share_K[:1] if curve.one_pass else share_K
        rows = np.arange(curve.rows + 1)
        drafting = np.interp(forwards_K * curve.rows, rows, curve.draft_R).sum()
        at = np.arange(len(curve.verify_N)) / curve.rows
        seconds = drafting + np.interp(sent_B.mean(), at, curve.verify_N)
        best = max(best, float((1 + sent_B.mean()) / seconds * curve.plain))
    return best
