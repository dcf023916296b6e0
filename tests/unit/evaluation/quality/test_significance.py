"""Scores against references, and the chance that a difference is one."""

import pytest

from cmasd.evaluation.quality.significance import paired_scores


def test_scores_are_paired_with_the_first() -> None:
    references = ["a b c d e", "f g h i j", "", "k l m n o"]
    texts = {"one": list(references), "same": list(references), "bad": ["x", "y", "z", "w"]}
    texts["one"][2] = "of a row without a reference"
    scores, signatures = paired_scores(texts, references)
    assert scores["one"].bleu == pytest.approx(100)
    assert scores["bad"].bleu == pytest.approx(0, abs=1e-3)
    assert scores["one"].bleu_p_value is None
    assert (scores["same"].bleu_p_value, scores["same"].chrf_p_value) == (1, 1)
    assert (scores["bad"].bleu_p_value or 1) < 0.2
    assert "bs:1000" in signatures["bleu"]
    assert paired_scores(texts, None) == ({}, {})
    assert paired_scores(texts, [""] * 4) == ({}, {})


def test_rouge_where_it_is_installed() -> None:
    pytest.importorskip("rouge_score", reason="rouge-score is not installed (extra `bench`)")
    scores, _ = paired_scores({"one": ["a b c d"], "half": ["a b"]}, ["a b c d"])
    assert (scores["one"].rouge1, scores["one"].rougeLsum) == (100, 100)
    assert scores["half"].rouge1 == pytest.approx(100 * 2 / 3)


def test_words_are_counted_of_transcripts() -> None:
    pytest.importorskip("jiwer", reason="jiwer is not installed (extra `bench`)")
    references = ["THE CAT SAT ON THE MAT", "A DOG"]
    texts = {"one": ["The cat sat on the mat.", "a dog"], "bad": ["The cat sat on a mat.", "a dog barks"]}
    scores, _ = paired_scores(texts, references, lambda text: text.lower().replace(".", ""))
    assert scores["one"].wer == 0
    assert scores["bad"].wer == pytest.approx(100 * 2 / 8)
    assert (scores["bad"].wer_low or 0) <= 100 / 6 <= 50 <= (scores["bad"].wer_high or 0)
    assert paired_scores(texts, references)[0]["bad"].wer is None, "of texts they are not"
