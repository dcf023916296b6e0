"""Which way of decoding to use, from a comparison: a lossless one of ours that is faster beyond doubt, else plain.

Beyond doubt means that the 95 % interval of the speed-up lies above 1. The best of several is chosen, which favours
lucky ones a little. Lossy ways and peers are never chosen, only named where they are faster than the choice. A way that
drafted nothing decodes plainly, and is neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cmasd.evaluation.compare.comparison import Compared
from cmasd.evaluation.compare.ways import PLAIN, WAYS
from cmasd.evaluation.speed.engines import LOSSLESS, PEERS_GREEDY


@dataclass(frozen=True)
class Recommendation:
    """What follows from the figures."""

    choice: Compared
    best_drafting: Compared | None
    """The fastest lossless way that drafts, whether chosen or not; None where there is none."""
    faster_lossy: Compared | None
    """The fastest lossy way of ours, where it is faster than the choice beyond doubt."""
    faster_peer: Compared | None
    """The same of peers that decode greedily."""
    same_decoding: tuple[str, ...] = ()
    """Lossless ways that drafted nothing."""


def recommend(results: Sequence[Compared]) -> Recommendation:
    """`results` hold `ar_greedy`."""
    plain = next(one for one in results if one.name == PLAIN)
    ours = [one for one in results if one.name in WAYS and one.drafted_tokens]
    best = fastest([one for one in ours if one.lossless in LOSSLESS])
    idle = [one for one in results if one.name in WAYS and one is not plain and not one.drafted_tokens]
    choice = best if best is not None and best.speedup_low > 1 else plain
    faster = [one for one in results if one.speedup_low > choice.speedup_high]
    return Recommendation(
        choice,
        best,
        fastest([one for one in faster if one in ours and one.lossless == "lossy"]),
        fastest([one for one in faster if one.lossless in PEERS_GREEDY]),
        tuple(one.name for one in idle),
    )


def fastest(results: Sequence[Compared]) -> Compared | None:
    """By speed-up."""
    return max(results, key=lambda one: one.speedup, default=None)
