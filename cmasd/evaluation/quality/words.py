"""Word error rates of transcripts, by jiwer, where that is installed."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from cmasd.evaluation.speed.timing import Ratio, bootstrapped


def word_errors(outputs: Sequence[str], references: Sequence[str], normalised: Callable[[str], str]) -> Ratio | None:
    """Substitutions, deletions and insertions, in percent of the references' words, with an interval over rows.

    None without jiwer, and where no reference has a word left.
    """
    if find_spec("jiwer") is None:
        return None
    import jiwer

    pairs = [(normalised(reference), normalised(output)) for reference, output in zip(references, outputs, strict=True)]
    counted = [jiwer.process_words(reference, output) for reference, output in pairs if reference]
    errors_N = np.array([one.substitutions + one.deletions + one.insertions for one in counted], dtype=np.float64)
    words_N = np.array([one.hits + one.substitutions + one.deletions for one in counted], dtype=np.float64)

    def rate(errors: Any, words: Any, axis: int = -1) -> Any:
        return 100 * errors.sum(axis) / words.sum(axis)

    return bootstrapped((errors_N, words_N), rate) if counted else None
