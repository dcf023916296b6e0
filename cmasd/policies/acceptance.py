"""How likely a draft token is to be accepted, learned while running.

The drafter's confidence is mapped by p = sigmoid(w * logit(C) + b_j), with one slope for all and an offset for each
draft position j (the form that vLLM's adaptive verification uses). It is refitted every few iterations on the latest
judged tokens: those up to and including the first rejection, since the verifier's verdict on later ones means nothing.

In numpy: the numbers are few, and the host decides by them.

Shapes: B rows, K draft, J tokens drafted so far, N samples.
"""

from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.core import Draft, Verdict

SAMPLES = 4096
"""Latest judged tokens that count."""
REFIT_EVERY = 32
"""Iterations."""
AT_ONCE = 8
"""Iterations that are learned from together, unless the rates are asked for before."""
PRIOR_ACCEPTED, PRIOR_JUDGED = 3.0, 4.0
"""Assumed of each position beforehand; hopeful, because a policy that never drafts never learns."""
RIDGE = 4.0
"""Strength, in samples, of the pull towards trusting the confidence as it is (w = 1, b = 0)."""
NEWTON_STEPS = 4
EDGE = 1e-3
"""Confidences are kept this far from 0 and 1."""

Array = NDArray[np.float64]


class Acceptance:
    """Calibrated survival of draft tokens."""

    def __init__(self, max_draft_tokens: int) -> None:
        self.positions = max_draft_tokens
        self._weights = np.zeros(1 + max_draft_tokens)
        self._weights[0] = 1.0
        self._samples = np.zeros((SAMPLES, 3))
        self._seen = 0
        """Samples so far; the ring holds the latest."""
        self._counts = np.zeros((2, max_draft_tokens))
        """Judged and accepted samples in the ring, by position."""
        self._since_fit = 0
        """Iterations."""
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def survival(self, confidence_BJ: Tensor) -> Array:
        """(B, J): probability that the first j tokens of a row are all accepted. NaN confidence counts as 1/2."""
        odds_BJ = _log_odds(confidence_BJ)
        return np.cumprod(
            1 / (1 + np.exp(-self._weights[0] * odds_BJ - self._weights[1 : 1 + odds_BJ.shape[1]])), axis=1
        )

    def rates(self) -> Array:
        """(K,): share accepted of the tokens judged at each position; a row that ends there counts as a rejection."""
        if self._pending:
            self._settle()
        judged_K, accepted_K = self._counts
        return (accepted_K + PRIOR_ACCEPTED) / (judged_K + PRIOR_JUDGED)

    def observe(self, draft: Draft, verdict: Verdict) -> None:
        """Learn from one iteration, or remember it to learn from several at once."""
        self._pending.append((draft.confidence_BK, draft.lengths_B, verdict.accepted_B))
        if len(self._pending) >= AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        fresh_N3 = np.concatenate([_judged(*one) for one in _joined(self._pending)])[-SAMPLES:]
        places = np.arange(self._seen, self._seen + len(fresh_N3)) % SAMPLES
        self._counts += _by_position(fresh_N3, self.positions)
        self._counts -= _by_position(self._samples[places[max(0, SAMPLES - self._seen) :]], self.positions)
        self._samples[places] = fresh_N3
        self._seen += len(fresh_N3)
        self._since_fit += len(self._pending)
        self._pending = []
        if self._since_fit >= REFIT_EVERY and self._seen:
            self._since_fit = 0
            known_N3 = self._samples[: self._seen]
            self._weights = _fit(known_N3[~np.isnan(known_N3[:, 0])], self._weights)


def _log_odds(confidence: Tensor) -> Array:
    known = np.nan_to_num(confidence.cpu().numpy().astype(float), nan=0.5).clip(EDGE, 1 - EDGE)
    odds: Array = np.log(known / (1 - known))
    return odds


def _joined(iterations: list[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, ...]]:
    """Those in which equally many tokens were drafted, as one."""
    by_length = sorted(iterations, key=lambda one: one[0].shape[1])
    groups = groupby(by_length, key=lambda one: one[0].shape[1])
    return [tuple(torch.cat(parts) for parts in zip(*group, strict=True)) for _, group in groups]


def _judged(confidence_BK: Tensor, lengths: Tensor, accepted: Tensor) -> Array:
    """(N, 3): log-odds of the confidence, position, accepted; of the tokens up to the first rejection.

    A draft that is shorter than others and all accepted has reached the end of its row: as many tokens as if its last
    one had been rejected, which has log-odds NaN here.
    """
    odds_BK = _log_odds(confidence_BK)
    lengths_B, accepted_B = lengths.cpu().numpy(), accepted.cpu().numpy()
    position_K = np.arange(odds_BK.shape[1])
    ends_B = (accepted_B == lengths_B) & (lengths_B < odds_BK.shape[1])
    judged_B = np.where(ends_B, lengths_B - 1, np.minimum(accepted_B + 1, lengths_B))
    rows, positions = np.nonzero(position_K < judged_B[:, None])
    judged_N3 = np.stack([odds_BK[rows, positions], positions, positions < accepted_B[rows]], axis=1)
    last_E = np.maximum(lengths_B[ends_B] - 1, 0)
    return np.concatenate([judged_N3, np.stack([np.full(len(last_E), np.nan), last_E, np.zeros(len(last_E))], axis=1)])


def _by_position(samples_N3: Array, positions: int) -> Array:
    """(2, K): how many were judged, and accepted."""
    position_N = samples_N3[:, 1].astype(int)
    return np.stack([np.bincount(position_N, weights, positions) for weights in (None, samples_N3[:, 2])])


def _fit(samples_N3: Array, weights: Array) -> Array:
    """Penalised logistic regression by damped Newton steps, starting from `weights`."""
    odds_N, position_N, accepted_N = samples_N3.T
    design = np.zeros((len(odds_N), len(weights)))
    design[:, 0] = odds_N
    design[np.arange(len(odds_N)), 1 + position_N.astype(int)] = 1.0
    trusting = np.zeros_like(weights)
    trusting[0] = 1.0
    for _ in range(NEWTON_STEPS):
        probability_N = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (probability_N - accepted_N) + RIDGE * (weights - trusting)
        curvature = (design.T * (probability_N * (1 - probability_N))) @ design + RIDGE * np.eye(len(weights))
        weights = weights - np.clip(np.linalg.solve(curvature, gradient), -1.0, 1.0)
    return weights
