"""How likely a draft token is to be accepted, learned while running.

`Rates` knows no more than the place of a token in its draft. `Calibration` maps the drafter's confidence too, by
p = sigmoid(w * logit(C) + b_j), with one slope for all and an offset for each draft position j (the form that vLLM's
adaptive verification uses), refitted every few iterations on the latest judged tokens: those up to and including the
first rejection, since the verifier's verdict on later ones means nothing.

In numpy: the numbers are few, and the host decides by them.

Shapes: B rows, K draft, J tokens drafted so far, N samples.
"""

import math
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.core import Draft, Verdict

MEMORY = 1024
"""Rows, added up over iterations, after which a verdict counts less in the rates by a factor of e."""
SAMPLES = 4096
"""Latest judged tokens that the calibration is fitted on."""
REFIT_EVERY = 32
"""Iterations."""
AT_ONCE = 32
"""Iterations that are learned from together, unless it is asked before."""
PRIOR_ACCEPTED, PRIOR_JUDGED = 3.0, 4.0
"""Assumed of each position beforehand; hopeful, because a policy that never drafts never learns."""
RIDGE = 4.0
"""Strength, in samples, of the pull towards trusting the confidence as it is (w = 1, b = 0)."""
NEWTON_STEPS = 4
EDGE = 1e-3
"""Confidences are kept this far from 0 and 1."""

Array = NDArray[np.float64]
Iteration = tuple[Draft, Verdict]


class Rates:
    """Acceptance by position."""

    def __init__(self, max_draft_tokens: int) -> None:
        self._counts = np.zeros((max_draft_tokens + 1, max_draft_tokens + 1))
        """Rows by tokens drafted for the batch, and tokens accepted."""
        self._pending: list[Iteration] = []

    def rates(self) -> Array:
        """(K,): share accepted of the tokens judged at each position; a row that ends there counts as a rejection."""
        self._settle()
        reached = self._counts[:, ::-1].cumsum(1)[:, ::-1]
        judged_K = np.array([reached[j + 1 :, j].sum() for j in range(len(reached) - 1)])
        accepted_K = reached[:, 1:].sum(0)
        rates: Array = (accepted_K + PRIOR_ACCEPTED) / (judged_K + PRIOR_JUDGED)
        return rates

    def observe(self, draft: Draft, verdict: Verdict) -> None:
        """Learn from one iteration, or remember it to learn from several at once."""
        self._pending.append((draft, verdict))
        if len(self._pending) >= AT_ONCE:
            self._settle()

    def forget(self, kept: int) -> None:
        """What was learned counts no more than so many rows from now on."""
        self._settle()
        self._counts *= min(1.0, kept / max(self._counts.sum(), 1.0))

    def _settle(self) -> None:
        """A draft that is shorter than others and all accepted has reached the end of its row: a token less, if any."""
        for drafted, iterations in _by_length(self._pending):
            lengths_N = torch.cat([draft.lengths_B for draft, _ in iterations]).cpu().numpy()
            accepted_N = torch.cat([verdict.accepted_B for _, verdict in iterations]).cpu().numpy()
            is_end_N = (accepted_N == lengths_N) & (lengths_N < drafted)
            self._counts *= math.exp(-len(is_end_N) / MEMORY)
            self._counts[drafted] += np.bincount((accepted_N - is_end_N).clip(0), minlength=len(self._counts))
        self._pending = []


class Calibration:
    """Calibrated survival of draft tokens."""

    def __init__(self, max_draft_tokens: int) -> None:
        self._weights = np.zeros(1 + max_draft_tokens)
        self._weights[0] = 1.0
        self._samples = np.zeros((SAMPLES, 3))
        self._seen = 0
        """Samples so far; the ring holds the latest."""
        self._since_fit = 0
        """Iterations."""
        self._pending: list[Iteration] = []

    def survival(self, confidence_BJ: Tensor) -> Array:
        """(B, J): probability that the first j tokens of a row are all accepted. NaN confidence counts as 1/2."""
        odds_BJ = _log_odds(confidence_BJ)
        return np.cumprod(
            1 / (1 + np.exp(-self._weights[0] * odds_BJ - self._weights[1 : 1 + odds_BJ.shape[1]])), axis=1
        )

    def observe(self, draft: Draft, verdict: Verdict) -> None:
        """See `Rates.observe`."""
        self._pending.append((draft, verdict))
        if len(self._pending) >= AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        fresh_N3 = np.concatenate([_judged(iterations) for _, iterations in _by_length(self._pending)])[-SAMPLES:]
        self._samples[np.arange(self._seen, self._seen + len(fresh_N3)) % SAMPLES] = fresh_N3
        self._seen += len(fresh_N3)
        self._since_fit += len(self._pending)
        self._pending = []
        if self._since_fit >= REFIT_EVERY and self._seen:
            self._since_fit = 0
            self._weights = _fit(self._samples[: self._seen], self._weights)


def _log_odds(confidence: Tensor) -> Array:
    known = np.nan_to_num(confidence.cpu().numpy().astype(float), nan=0.5).clip(EDGE, 1 - EDGE)
    odds: Array = np.log(known / (1 - known))
    return odds


def _by_length(iterations: list[Iteration]) -> list[tuple[int, list[Iteration]]]:
    """Those in which equally many tokens were drafted for the batch, together."""

    def drafted(one: Iteration) -> int:
        return one[0].tokens_BK.shape[1]

    return [(length, list(group)) for length, group in groupby(sorted(iterations, key=drafted), key=drafted)]


def _judged(iterations: list[Iteration]) -> Array:
    """(N, 3): log-odds of the confidence, position, accepted; of the tokens up to the first rejection.

    A draft that is shorter than others and all accepted has reached the end of its row: its last token says nothing.
    """
    odds_BK = _log_odds(torch.cat([draft.confidence_BK for draft, _ in iterations]))
    lengths_B = torch.cat([draft.lengths_B for draft, _ in iterations]).cpu().numpy()
    accepted_B = torch.cat([verdict.accepted_B for _, verdict in iterations]).cpu().numpy()
    position_K = np.arange(odds_BK.shape[1])
    ends_B = (accepted_B == lengths_B) & (lengths_B < odds_BK.shape[1])
    judged_B = np.where(ends_B, lengths_B - 1, np.minimum(accepted_B + 1, lengths_B))
    rows, positions = np.nonzero(position_K < judged_B[:, None])
    return np.stack([odds_BK[rows, positions], positions, positions < accepted_B[rows]], axis=1)


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
