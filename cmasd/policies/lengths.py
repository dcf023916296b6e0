"""The rule that makes the most expected tokens per expected second: a price for each token, by Dinkelbach's algorithm.

While Theta tokens per second are being made, a second is worth Theta tokens. So a drafted token of survival a is worth
sending if a >= Theta * v, where v seconds is what one more token costs the verifier; and after it another is worth
drafting if a * p >= Theta * (v + d), where p is the usual acceptance there, and d seconds is what one more row costs
the drafter. Such a rule makes another Theta, which makes other prices, until none is better. Measured costs are a
staircase: v is not the slope at one place, but the secant as far as drafts of 1, 2, ... tokens reach, and what a rule
really costs is looked up for batches of remembered rows. Pure functions.

Shapes: N remembered rows, K draft, J lengths, L rules that are compared, G batches of rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmasd.policies.base import Float64, Int64, Rule
from cmasd.policies.costs import Curve


@dataclass(frozen=True)
class LengthChoice:
    """A rule's thresholds, and what is expected of it."""

    go_on_K: Float64
    """See `Rule`, for the product of acceptances."""
    keep_K: Float64
    tokens: float
    """Of a row in an iteration, the verifier's own included."""
    seconds: float
    """Of an iteration, by the table."""

    @property
    def speed(self) -> float:
        """Tokens of a row per second."""
        return self.tokens / self.seconds

    def gain(self, survival_NK: Float64, curve: Curve) -> float:
        """Of the log of the speed over plain decoding, that is expected of it by a curve."""
        tokens_L, seconds_L = expected(survival_NK, self.go_on_K[None], self.keep_K[None], curve)
        return float(np.log(tokens_L[0] / seconds_L[0] * curve.plain))

    def rule(self, slope: float, offsets_K: Float64, weights_2: Float64 | None = None) -> Rule:
        """For tokens whose acceptance is estimated so."""
        most = int(np.argmax(np.r_[self.go_on_K, np.inf] == np.inf)) + 1
        thresholds = self.go_on_K[:most], self.keep_K[:most]
        return Rule(*thresholds, slope=slope, offsets_K=offsets_K[:most], weights_2=weights_2)


def choose(survival_NK: Float64, usual_K: Float64, curve: Curve, looks: bool = True) -> LengthChoice:
    """The best rule that drafts a token for each row, and sends it for the surest quarter of those that have one.

    One that does not look at confidences is a length for every row.

    Where nothing is worth sending, a rule that sends nothing would never learn that this has changed.
    """
    first_N = survival_NK[:, 0]
    surest = np.quantile(first_N[first_N > 0], 0.75) if first_N.any() else 0.0
    theta, best = 1 / curve.plain, None
    while True:
        go_on_LK, keep_LK = priced(theta, usual_K, curve, looks)
        keep_LK[:, 0] = np.minimum(keep_LK[:, 0], surest)
        tokens_L, seconds_L = expected(survival_NK, go_on_LK, keep_LK, curve)
        at = int(np.argmax(tokens_L / seconds_L))
        reached = float(tokens_L[at] / seconds_L[at])
        if best is not None and reached <= best.speed:
            break
        best = LengthChoice(go_on_LK[at], keep_LK[at], float(tokens_L[at]), float(seconds_L[at]))
        if reached <= theta:
            break
        theta = reached
    return best


def priced(theta: float, usual_K: Float64, curve: Curve, looks: bool = True) -> tuple[Float64, Float64]:
    """Thresholds (L, K) to go on and to keep where Theta tokens a second are made for each row.

    For drafts of at most so many tokens as are `tried`: what is paid for all that they may cost, for half of it and for
    twice, as most of a batch ends before; and nothing, which is a draft of that length for every row.
    """
    places_K, lengths_J = np.arange(1, len(usual_K) + 1), tried(len(usual_K))
    verify_J = (curve.verify_N[curve.rows * lengths_J] - curve.plain) / lengths_J
    draft = 0.0 if curve.one_pass else float(curve.draft_R[-1])
    scale_S = np.array([1.0, 0.5, 2.0, 0.0] if looks else [0.0])  # of rules as good, one that looks at each row
    keep_L = theta * np.outer(scale_S, verify_J).ravel()
    go_L = theta * np.outer(scale_S, verify_J + draft).ravel()
    go_on_LK = go_L[:, None] / np.r_[usual_K[1:], 1.0]
    if curve.one_pass:
        go_on_LK[:] = -np.inf
    go_on_LK[go_L == 0] = -np.inf
    go_on_LK[np.tile(lengths_J, len(scale_S))[:, None] <= places_K] = np.inf
    keep_LK = np.repeat(np.where(keep_L > 0, keep_L, -np.inf)[:, None], len(usual_K), axis=1)
    return go_on_LK, keep_LK


def tried(most: int) -> Int64:
    """Lengths that are compared: each up to 8, then some in each doubling, since long drafts differ little."""
    lengths = [length for length in range(1, most) if length <= 8 or length % (1 << (length.bit_length() - 3)) == 0]
    return np.array([*lengths, most])


def expected(survival_NK: Float64, go_on_LK: Float64, keep_LK: Float64, curve: Curve) -> tuple[Float64, Float64]:
    """(L,) tokens of a row and seconds of an iteration that each rule would have made of the remembered rows."""
    if curve.one_pass and _are_flat(go_on_LK, keep_LK):
        lengths_LN = _lengths(survival_NK, go_on_LK, keep_LK)
        within_NK1 = np.pad(survival_NK.cumsum(1), ((0, 0), (1, 0)))
        tokens_L = 1 + within_NK1[np.arange(len(survival_NK)), lengths_LN].mean(1)
        return tokens_L, curve.draft_R[-1] + curve.verify_N[_batches(lengths_LN, curve.rows)].mean(1)
    going_LN = np.ones((len(go_on_LK), len(survival_NK)), dtype=bool)
    fits_LN, lengths_LN = going_LN.copy(), np.zeros(going_LN.shape, dtype=np.int64)
    tokens_L, seconds_L = np.ones(len(go_on_LK)), np.full(len(go_on_LK), curve.draft_R[-1])
    survival_KN = np.ascontiguousarray(survival_NK.T)
    for place, survival_N in enumerate(survival_KN):
        if place:
            going_LN &= survival_KN[place - 1] >= go_on_LK[:, place - 1, None]
            fits_LN &= going_LN
            if not curve.one_pass:
                seconds_L += curve.draft_R[_batches(going_LN, curve.rows)].mean(1)
        fits_LN &= survival_N >= keep_LK[:, place, None]
        lengths_LN += fits_LN
        tokens_L += (fits_LN * survival_N).mean(1)  # no BLAS: its threads would wait for each other
    seconds_L += curve.verify_N[_batches(lengths_LN, curve.rows)].mean(1)
    return tokens_L, seconds_L


def _are_flat(go_on_LK: Float64, keep_LK: Float64) -> bool:
    """Whether each rule asks the same of all tokens but the first, of which it asks no more, up to a length."""
    last_L1 = keep_LK[:, -1:]
    return bool(np.isinf(go_on_LK).all() and (keep_LK[:, 1:] == last_L1).all() and (keep_LK[:, :1] <= last_L1).all())


def _lengths(survival_NK: Float64, go_on_LK: Float64, keep_LK: Float64) -> Int64:
    """(L, N) of drafts by such rules: survival falls from place to place, so they end where it is first too low."""
    rows, places = survival_NK.shape
    asked_M, of_L = np.unique(keep_LK[:, -1], return_inverse=True)
    passed_NK = np.searchsorted(asked_M, survival_NK, side="right") + (len(asked_M) + 1) * np.arange(rows)[:, None]
    ends_NM1 = np.bincount(passed_NK.ravel(), minlength=rows * (len(asked_M) + 1)).reshape(rows, -1)
    passing_NM = ends_NM1[:, :0:-1].cumsum(1)[:, ::-1]
    stops_LK = go_on_LK[:, : places - 1] == np.inf
    most_L = np.where(stops_LK.any(1), stops_LK.argmax(1) + 1, places) if places > 1 else np.ones(len(keep_LK), int)
    lengths_LN: Int64 = np.minimum(passing_NM.T[of_L], most_L[:, None]).clip(1)
    lengths_LN[survival_NK[:, 0] < keep_LK[:, :1]] = 0
    return lengths_LN


def _batches(counts_LN: NDArray[Any], rows: int) -> Int64:
    """Sums (L, G) over batches of `rows`; of fewer, in proportion, where not so many are remembered."""
    size = min(rows, counts_LN.shape[1])
    number = counts_LN.shape[1] // size
    starts_G = np.arange(number) * size
    sums_LG: Int64 = np.add.reduceat(counts_LN[:, : number * size], starts_G, axis=1, dtype=np.int64)
    return sums_LG if size == rows else -(-sums_LG * rows // size)
