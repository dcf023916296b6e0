"""How likely a draft token is to be accepted, learned while running from the drafts of the latest rows.

p = sigmoid(slope * logit(C) + offset_j) of the confidence C, with one slope for all and an offset for each draft
position j (the form that vLLM's adaptive verification uses), fitted on the judged tokens: those up to and including a
row's first rejection, since the verifier's verdict on later ones means nothing. The rows themselves are kept too: what
a rule would have made of them is what it will make of those to come.

In numpy: the numbers are few, and the host decides by them.

Estimators that know more than C, or how sure they are, begin from here (`cmasd.policies.estimators`).

Shapes: N rows that are remembered, K draft, J judged tokens of these, F features.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cmasd.config.speculation import HOPE
from cmasd.policies.base import Float64, Int64, Observation, log_odds

REMEMBERED = 512
"""Rows whose latest drafts are learned from: enough for an acceptance within 2 %, and few enough for a millisecond."""

RECALLED = 128
"""Of these a next run begins with so many, which its own soon outvote."""


class Calibration:
    """From confidence to probability, and a sample of what confidences there are."""

    wants_signals: ClassVar[bool] = False
    """Whether it looks at more of a token than its confidence."""
    weights_2: Float64 | None = None
    """See `Rule`."""

    def __init__(self, max_draft_tokens: int, hope: float = HOPE) -> None:
        """`hope`: acceptance that is assumed of each token before any was judged."""
        self._hope = hope
        self.slope = 1.0
        self.offsets_K = np.zeros(max_draft_tokens)
        self._odds_NK = np.zeros((REMEMBERED, max_draft_tokens))
        """Log-odds of the confidences; one that nobody knows counts as 1/2."""
        self._counts_N3 = np.zeros((REMEMBERED, 3), dtype=np.int64)
        """Tokens that were drafted, sent and accepted."""
        self._seen = 0
        """Rows in all; the latest are remembered."""

    @property
    def rows(self) -> int:
        """How many are remembered."""
        return min(self._seen, REMEMBERED)

    def observe(self, seen: Sequence[Observation]) -> None:
        """Learn from some iterations at once."""
        counts = [(_known(one), one.lengths_B, one.accepted_B) for one in seen]
        counts_3M = np.stack([np.concatenate(of_all) for of_all in zip(*counts, strict=True)])
        confidence_MK = side_by_side([one.confidence_BK for one in seen], len(self.offsets_K))[-REMEMBERED:]
        odds_MK = log_odds(np.nan_to_num(confidence_MK, nan=0.5))
        places = np.arange(self._seen, self._seen + len(odds_MK)) % REMEMBERED
        self._odds_NK[places] = odds_MK
        self._counts_N3[places] = counts_3M.T[-REMEMBERED:]
        self._remember(seen, confidence_MK, places)
        self._seen += len(odds_MK)
        self._fit()

    def latest(self) -> dict[str, Any]:
        """Of the latest rows, what `recall` takes."""
        places = np.arange(self._seen - min(self.rows, RECALLED), self._seen) % REMEMBERED
        return {name: rows[places].round(3).tolist() for name, rows in self._remembered().items()}

    def recall(self, latest: dict[str, Any]) -> None:
        """What an earlier run remembered last; raises KeyError, TypeError or ValueError for anything else."""
        known, places = self._remembered(), np.arange(len(latest["counts"]))
        if len(places) > REMEMBERED:
            raise ValueError(f"{len(places)} drafts, {REMEMBERED} are remembered at most")
        shapes = {name: (len(places), *rows.shape[1:]) for name, rows in known.items()}
        found = {name: np.reshape(np.asarray(latest[name], rows.dtype), shapes[name]) for name, rows in known.items()}
        if len(places):
            for name, rows in known.items():
                rows[places] = found[name]
            self._seen = len(places)
            self._recalled(places)
            self._fit()

    def _remembered(self) -> dict[str, NDArray[Any]]:
        """All that is, row by row."""
        return {"odds": self._odds_NK, "counts": self._counts_N3}

    def _recalled(self, places: Int64) -> None:
        """Rows at these places came from an earlier run."""
        return

    def log_odds(self) -> Float64:
        """(N, K) of the acceptance of each remembered row's tokens; of those that were not drafted it means nothing."""
        odds_NK: Float64 = self.slope * self._odds_NK[: self.rows] + self.offsets_K
        return odds_NK

    def survival(self) -> tuple[Float64, Float64]:
        """(N, K): the chance that the first j tokens of each remembered row are all accepted; (K,): the usual p_j.

        Of tokens that were not drafted the usual is assumed; of places where none was, that of the place before. A row
        that drafted nothing had nothing to draft.
        """
        if not self._seen:
            usual_K = np.full(len(self.offsets_K), self._hope)
            return usual_K.cumprod()[None], usual_K
        drafted_NK = np.arange(len(self.offsets_K)) < self._counts_N3[: self.rows, :1]
        p_NK = 1 / (1 + np.exp(-self.log_odds()))
        usual_K = np.full(len(self.offsets_K), self._hope)
        for place in range(len(usual_K)):
            if drafted_NK[:, place].any():
                usual_K[place] = p_NK[drafted_NK[:, place], place].mean()
            elif place:
                usual_K[place] = usual_K[place - 1]
        survival_NK: Float64 = np.where(drafted_NK, p_NK, usual_K).cumprod(1)
        survival_NK[~drafted_NK[:, 0]] = 0.0
        return survival_NK, usual_K

    def _remember(self, seen: Sequence[Observation], confidence_NK: Float64, places: Int64) -> None:
        """What else is known of these rows, the latest of which have these confidences, at these places."""
        return

    def _judged(self) -> tuple[Int64, Int64]:
        """(J,) row and position of every remembered token that was judged."""
        _, sent_N, accepted_N = self._counts_N3[: self.rows].T
        at_J, position_J = np.nonzero(np.arange(len(self.offsets_K)) < np.minimum(accepted_N + 1, sent_N)[:, None])
        return at_J, position_J

    def _fit(self) -> None:
        """Logistic regression by Newton steps from where it was.

        Beforehand the slope is thought within 1 of C as it is, and each offset within 1 of that before, from 0.
        """
        at, positions = self._judged()
        position_K = np.arange(len(self.offsets_K))
        odds, accepted = self._odds_NK[at, positions], positions < self._counts_N3[at, 2]
        trusted, belief = beforehand(len(position_K))
        weights: Float64 = np.r_[self.slope, self.offsets_K]
        for _ in range(3):
            p = 1 / (1 + np.exp(-np.clip(weights[0] * odds + weights[1:][positions], -30, 30)))
            spread = p * (1 - p)
            curvature = np.diag(np.r_[(spread * odds**2).sum(), _sums(spread, positions, position_K)])
            curvature[0, 1:] = curvature[1:, 0] = _sums(spread * odds, positions, position_K)
            gradient = np.r_[((p - accepted) * odds).sum(), _sums(p - accepted, positions, position_K)]
            gradient += belief @ (weights - trusted)
            weights = weights - np.clip(np.linalg.solve(curvature + belief, gradient), -1.0, 1.0)
        self.slope, self.offsets_K = max(float(weights[0]), 0.0), weights[1:]


def beforehand(positions: int) -> tuple[Float64, Float64]:
    """(1 + K,) slope and offsets, and the precision (1 + K, 1 + K) of what is thought before anything was judged."""
    differences = np.eye(1 + positions) - np.diag(np.r_[0.0, np.ones(positions - 1)], -1)
    return np.r_[1.0, np.zeros(positions)], differences.T @ differences


def newton(
    feature_JF: Float64, accepted_J: NDArray[np.bool_], start_F: Float64, trusted_F: Float64, belief_FF: Float64
) -> tuple[Float64, Float64]:
    """Weights (F,) of a logistic regression by Newton steps from `start_F`, and their precision (F, F).

    Beforehand they are thought to be `trusted_F`, with precision `belief_FF`.
    """
    weights_F = start_F
    for _ in range(3):
        p_J = 1 / (1 + np.exp(-np.clip(feature_JF @ weights_F, -30, 30)))
        precision_FF = belief_FF + (feature_JF * (p_J * (1 - p_J))[:, None]).T @ feature_JF
        gradient_F = feature_JF.T @ (p_J - accepted_J) + belief_FF @ (weights_F - trusted_F)
        weights_F = weights_F - np.clip(np.linalg.solve(precision_FF, gradient_F), -1.0, 1.0)
    return weights_F, precision_FF


def _sums(values: Float64, positions: Int64, position_K: Int64) -> Float64:
    """(K,)"""
    return np.bincount(positions, values, minlength=len(position_K)).astype(np.float64)


def _known(one: Observation) -> Int64:
    """(B,) tokens that were drafted, as far as their confidences are known: not behind the most that was sent."""
    known: Int64 = one.drafted_B.clip(max=max(1, one.confidence_BK.shape[1]))
    return known


def side_by_side(parts: Sequence[Float64], most: int) -> Float64:
    """(M, most, ...): the rows (B, J, ...) of all parts, one after the other; NaN behind those of a part with fewer."""
    joined = np.full((sum(map(len, parts)), most, *parts[0].shape[2:]), np.nan)
    start = 0
    for part in parts:
        known = part[:, :most]
        joined[start : start + len(known), : known.shape[1]] = known
        start += len(known)
    return joined
