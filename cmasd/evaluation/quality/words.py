"""Word error rates of transcripts, by jiwer, where that is installed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 1000


@dataclass(frozen=True)
class WordErrors:
    """In percent of the references' words, over all rows, with a 95 % bootstrap interval over rows."""

    rate: float
    low: float
    high: float


def word_errors(
    outputs: Sequence[str], references: Sequence[str], normalised: Callable[[str], str]
) -> WordErrors | None:
    """Substitutions, deletions and insertions; None without jiwer, and where no reference has a word left."""
    if find_spec("jiwer") is None:
        return None
    import jiwer

    pairs = [(normalised(reference), normalised(output)) for reference, output in zip(references, outputs, strict=True)]
    counted = [jiwer.process_words(reference, output) for reference, output in pairs if reference]
    errors_N = np.array([one.substitutions + one.deletions + one.insertions for one in counted], dtype=np.float64)
    words_N = np.array([one.hits + one.substitutions + one.deletions for one in counted], dtype=np.float64)

    def rate(errors: Any, words: Any, axis: int = -1) -> Any:
        return 100 * errors.sum(axis) / words.sum(axis)

    if len(counted) < 2:
        return WordErrors(*[float(rate(errors_N, words_N))] * 3) if counted else None
    found = stats.bootstrap(
        (errors_N, words_N),
        rate,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return WordErrors(float(rate(errors_N, words_N)), float(found.low), float(found.high))
