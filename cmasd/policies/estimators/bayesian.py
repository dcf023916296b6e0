"""Acceptance by a Bayesian logistic regression on confidence and position: as sure as what was judged allows.

Slope and offsets have a normal belief. Each batch of verdicts makes of it another (Laplace: mean and curvature at the
likeliest weights), and between batches it widens, since drafts of other texts are accepted otherwise. What is predicted
is the posterior mean: p = sigmoid(kappa(s^2) * m) of the log-odds m and their variance s^2 (MacKay's kappa), so that
places that few drafts have reached are thought nearer to 1/2. A rule takes one slope and an offset for each place:
those with which the prediction is right at each place's mean confidence.

Shapes: K draft, J judged tokens, F = 1 + K weights.
"""

from collections.abc import Sequence

import numpy as np

from cmasd.config.speculation import HOPE
from cmasd.policies.acceptance import Calibration, beforehand, newton
from cmasd.policies.base import Float64, Int64, Observation

WIDENS = 0.2
"""Standard deviation by which weights may have moved in `EVERY` drafts."""
EVERY = 512


class BayesianCalibration(Calibration):
    """`slope` and `offsets_K` are those of the prediction; the belief is apart."""

    def __init__(self, max_draft_tokens: int, hope: float = HOPE) -> None:
        super().__init__(max_draft_tokens, hope)
        self.mean_F, self.precision_FF = beforehand(max_draft_tokens)
        self._fresh: Int64 = np.zeros(0, dtype=np.int64)
        """Places of the rows that were not learned from yet."""

    def deviation(self, odds: float, position: int) -> float:
        """Of the log-odds of acceptance of a token whose confidence has these log-odds."""
        feature_F = np.r_[odds, np.eye(len(self.offsets_K))[position]]
        return float(np.sqrt(feature_F @ np.linalg.solve(self.precision_FF, feature_F)))

    def _remember(self, seen: Sequence[Observation], confidence_NK: Float64, places: Int64) -> None:
        self._fresh = places

    def _recalled(self, places: Int64) -> None:
        self._fresh = places

    def _fit(self) -> None:
        """Learn from what came last; then the line through the predictions."""
        at_J, position_J = self._judged()
        is_fresh_J = np.isin(at_J, self._fresh)
        at_J, position_J = at_J[is_fresh_J], position_J[is_fresh_J]
        positions = np.eye(len(self.offsets_K))
        feature_JF = np.concatenate([self._odds_NK[at_J, position_J, None], positions[position_J]], axis=1)
        spread_FF = np.linalg.inv(self.precision_FF)
        spread_FF += np.eye(len(spread_FF)) * WIDENS**2 * len(self._fresh) / EVERY
        belief_FF = np.linalg.inv(spread_FF)
        accepted_J = position_J < self._counts_N3[at_J, 2]
        self.mean_F, self.precision_FF = newton(feature_JF, accepted_J, self.mean_F, self.mean_F, belief_FF)
        self.slope, self.offsets_K = self._line()

    def _line(self) -> tuple[float, Float64]:
        """Slope and offsets (K,) that predict what the belief does at each place's mean confidence."""
        drafted_NK = np.arange(len(self.offsets_K)) < self._counts_N3[: self.rows, :1]
        count_K = drafted_NK.sum(0)
        usual_K = (self._odds_NK[: self.rows] * drafted_NK).sum(0) / count_K.clip(1)
        feature_KF = np.concatenate([usual_K[:, None], np.eye(len(usual_K))], axis=1)
        variance_K = np.einsum("kf,fk->k", feature_KF, np.linalg.solve(self.precision_FF, feature_KF.T))
        kappa_K = 1 / np.sqrt(1 + np.pi * variance_K / 8)
        slope = max(0.0, self.mean_F[0]) * float(np.average(kappa_K, weights=count_K if count_K.any() else None))
        offsets_K: Float64 = kappa_K * (feature_KF @ self.mean_F) - slope * usual_K
        return slope, offsets_K
