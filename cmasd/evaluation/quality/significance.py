"""Scores of several outputs against references, each compared with the first by a paired bootstrap.

BLEU and chrF with p-values by sacrebleu's own test; ROUGE by rouge-score, where that is installed; word error rates of
what was heard. Rows without a reference are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from cmasd.evaluation.quality.words import word_errors

RESAMPLES = 1000
ROUGE = ("rouge1", "rouge2", "rougeLsum")


@dataclass(frozen=True)
class ReferenceScores:
    """Of one output."""

    bleu: float | None = None
    bleu_ci: float | None = None
    """Half of BLEU's 95 % interval."""
    bleu_p_value: float | None = None
    """Of a difference from the first output that is due to the choice of rows; None for the first itself."""
    chrf: float | None = None
    chrf_ci: float | None = None
    chrf_p_value: float | None = None
    rouge1: float | None = None
    """F1 in percent, the mean over rows; None where rouge-score is not installed."""
    rouge2: float | None = None
    rougeLsum: float | None = None
    wer: float | None = None
    """Word error rate in percent; None of texts, and where jiwer is not installed."""
    wer_low: float | None = None
    """Lower end of its 95 % interval."""
    wer_high: float | None = None


def paired_scores(
    texts: dict[str, list[str]], references: list[str] | None, normalised: Callable[[str], str] | None = None
) -> tuple[dict[str, ReferenceScores], dict[str, str]]:
    """Scores by name, and the signatures to quote; both empty without references. The first name is the baseline.

    `normalised`: of transcripts, whose words are counted: how they are made comparable.
    """
    rows = [i for i, reference in enumerate(references or []) if reference]
    if references is None or not rows:
        return {}, {}
    kept = [references[i] for i in rows]
    systems: list[tuple[str, Sequence[str]]] = [(name, [outputs[i] for i in rows]) for name, outputs in texts.items()]
    metrics = {"bleu": BLEU(references=[kept]), "chrf": CHRF(references=[kept])}
    # What comes back is in the order of the metrics, under names of its own, after the names of the systems.
    named_signatures, named = PairedTest(systems, metrics, None, test_type="bs", n_samples=RESAMPLES)()
    signatures = dict(zip(metrics, map(str, named_signatures.values()), strict=True))
    results: dict[str, Any] = dict(zip(metrics, list(named.values())[1:], strict=True))
    scores = {}
    for i, (name, outputs) in enumerate(systems):
        figures: dict[str, Any] = {}
        for metric in metrics:
            one = results[metric][i]
            p_value = None if one.p_value is None else float(one.p_value)
            if i and outputs == systems[0][1]:
                p_value = 1.0  # sacrebleu counts resamples with a larger difference than none, and finds few
            figures |= {metric: float(one.score), f"{metric}_ci": float(one.ci), f"{metric}_p_value": p_value}
        words = None if normalised is None else word_errors(outputs, kept, normalised)
        wer = {} if words is None else {"wer": words.value, "wer_low": words.low, "wer_high": words.high}
        scores[name] = ReferenceScores(**figures, **_rouge(outputs, kept), **wer)
    return scores, signatures


def _rouge(outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    if find_spec("rouge_score") is None:
        return {}
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    rows = [scorer.score(reference, output) for reference, output in zip(references, outputs, strict=True)]
    return {name: 100 * fmean(row[name].fmeasure for row in rows) for name in ROUGE}
