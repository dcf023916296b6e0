"""How likely a draft token is to be accepted, learned while running.

The drafter's confidence is mapped by p = sigmoid(w * logit(C) + b_j), with one slope for all and an offset for each
draft position j (the form that vLLM's adaptive verification uses). It is refitted every few iterations on the latest
judged tokens: those up to and including the first rejection, since the verifier's verdict on later ones means nothing.

Shapes: B rows, K draft, J tokens drafted so far, N samples.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.core import Draft, Verdict

SAMPLES = 4096
"""Latest judged tokens that count."""
REFIT_EVERY = 32
"""Iterations."""
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
        self._samples = np.zeros((0, 3))
        self._iterations = 0
        self._rates: Array | None = None

    def survival(self, confidence_BJ: Tensor) -> Tensor:
        """(B, J): probability that the first j tokens of a row are all accepted. NaN confidence counts as 1/2."""
        odds_BJ = torch.logit(confidence_BJ.nan_to_num(0.5).float(), eps=EDGE)
        weights = torch.tensor(self._weights, dtype=torch.float32, device=odds_BJ.device)
        return torch.sigmoid(weights[0] * odds_BJ + weights[1 : 1 + odds_BJ.shape[1]]).cumprod(-1)

    def rates(self) -> Array:
        """(K,): share accepted of the tokens judged at each position."""
        if self._rates is None:
            position_N, accepted_N = self._samples[:, 1].astype(int), self._samples[:, 2]
            judged_K = np.bincount(position_N, minlength=self.positions)
            accepted_K = np.bincount(position_N, accepted_N, minlength=self.positions)
            self._rates = (accepted_K + PRIOR_ACCEPTED) / (judged_K + PRIOR_JUDGED)
        return self._rates

    def observe(self, draft: Draft, verdict: Verdict) -> None:
        """Learn from one iteration."""
        fresh = _judged(draft, verdict)
        if len(fresh):
            self._samples = np.concatenate([self._samples, fresh])[-SAMPLES:]
            self._rates = None
        self._iterations += 1
        if self._iterations % REFIT_EVERY == 0 and len(self._samples):
            self._weights = _fit(self._samples, self._weights)


def _judged(draft: Draft, verdict: Verdict) -> Array:
    """(N, 3): log-odds of the confidence, position, accepted; of the tokens up to the first rejection."""
    confidence_BK = draft.confidence_BK.nan_to_num(0.5).float().cpu().numpy()
    lengths_B, accepted_B = draft.lengths_B.cpu().numpy(), verdict.accepted_B.cpu().numpy()
    position_K = np.arange(confidence_BK.shape[1])
    rows, positions = np.nonzero(position_K < np.minimum(accepted_B + 1, lengths_B)[:, None])
    chosen_N = np.clip(confidence_BK[rows, positions].astype(float), EDGE, 1 - EDGE)
    return np.stack([np.log(chosen_N / (1 - chosen_N)), positions, positions < accepted_B[rows]], axis=1)


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
