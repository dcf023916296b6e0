"""How far calibration maps carry: those of one run judged on another, next to the other run's own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cmasd.evaluation.calibration.fit import Fitted, fit, without_nan
from cmasd.evaluation.calibration.judged import REPORT, Judged
from cmasd.evaluation.calibration.reliability import Reliability, ScoredTokens


@dataclass(frozen=True)
class Drift:
    """What a map that was fitted to one run is worth on another; figures of the same held-out rows of the other."""

    score: str
    raw: Reliability
    """As it is."""
    moved: Reliability
    """Mapped as the one run would have it."""
    own: Reliability
    """Mapped as the other run itself would have it: the best that is to be had."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN becomes null."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def drift(fitted: Sequence[Fitted], other: Judged, run: str) -> list[Drift]:
    """Of every score that both runs know, in the order of `fitted`; raises `RunFolderError` for too few tokens."""
    theirs = {one.score: one for one in fit(other, run)}
    return [
        Drift(
            one.score,
            theirs[one.score].before,
            Reliability.of(ScoredTokens.of(other.counts[one.score], REPORT).mapped(one.calibration)),
            theirs[one.score].after,
        )
        for one in fitted
        if one.score in theirs
    ]
