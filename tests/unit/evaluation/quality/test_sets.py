"""Scores are sacrebleu's, sets are kept apart, and outputs stay in the order of the texts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sacrebleu

from cmasd.config import Config, from_dict
from cmasd.engine import Pair, load_pair
from cmasd.errors import InputError
from cmasd.evaluation.quality import sets as quality
from cmasd.evaluation.quality.references import first_pairs
from cmasd.evaluation.quality.sets import SetScores, evenly, score, score_sets, translate
from cmasd.evaluation.speed.request_decoder import EngineDecoder
from tests.unit.training.small import save_small_model, sentences, write_rows


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    model = save_small_model(tmp_path_factory.mktemp("quality"))
    return from_dict(
        {
            "models": {"verifier": str(model), "drafter": None, "device": "cpu"},
            "policy": {"kind": "plain"},
            "engine": {"slots": 3, "max_new_tokens": 8, "max_source_tokens": 20},
        }
    )


@pytest.fixture(scope="module")
def pair(config: Config) -> Pair:
    return load_pair(config)


def test_scores_are_those_of_sacrebleu() -> None:
    outputs = ["The cat sat on the mat today .", "A dog barks at the big cat ."]
    references = ["The cat sat on a mat today .", "The dog barked at the big cat ."]
    scores = score("news", outputs, references)
    assert (scores.name, scores.rows) == ("news", 2)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(outputs, [references]).score)
    assert 0 < scores.bleu < 100
    assert sacrebleu.__version__ in scores.bleu_signature
    assert "tok:13a" in scores.bleu_signature
    assert "nc:6" in scores.chrf_signature


def test_outputs_are_in_the_order_of_the_texts(pair: Pair, config: Config) -> None:
    texts = sentences(7, longest=5)
    together = translate(EngineDecoder(pair, config), pair, texts)
    assert together == [translate(EngineDecoder(pair, config), pair, [text])[0] for text in texts]
    assert len(set(together)) > 1


def test_a_text_that_cannot_be_encoded_gives_nothing(pair: Pair, config: Config) -> None:
    texts = ["ah bee", "qx " * 50, "cee"]
    outputs = translate(EngineDecoder(pair, config), pair, texts)
    assert outputs[1] == ""
    assert [outputs[0], outputs[2]] == translate(EngineDecoder(pair, config), pair, ["ah bee", "cee"])


def test_sets_of_a_file(pair: Pair, config: Config, tmp_path: Path) -> None:
    """The references of one set are the model's own outputs, those of the other are not."""
    texts = sentences(6)
    own = translate(EngineDecoder(pair, config), pair, texts)
    path = write_rows(
        tmp_path / "test.parquet",
        source=[*texts, *texts, None, "ah"],
        reference=[*own, *["Nothing of the kind 123"] * 6, "ah", None],
        part=["web", "web", "web", "web", "web", "web", *["news"] * 6, "web", "news"],
    )
    told: list[SetScores] = []
    qualities = score_sets(pair, config, quality.TestSets(str(path), "source", "reference", "part"), told.append)
    assert [(one.name, one.rows) for one in qualities] == [("news", 6), ("web", 6)]
    assert qualities[1].chrf == pytest.approx(100)
    assert qualities[0].chrf < 50
    assert told == qualities


def test_rows_are_spread_over_a_set() -> None:
    rows = [(str(i), "") for i in range(10)]
    assert [source for source, _ in evenly(rows, 4)] == ["0", "2", "5", "7"]
    assert evenly(rows, 10) == evenly(rows, 99) == evenly(rows, None) == rows


def test_a_column_without_texts_is_no_reference(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2], "tags": [["x"], ["y"]]}), tmp_path / "in.parquet")
    asked = from_dict({"input": {"path": str(tmp_path / "in.parquet")}, "output": {"path": "unused"}})
    assert first_pairs(asked, "n", 9) == [("a", "1"), ("b", "2")]
    with pytest.raises(InputError, match=r"^tags: is list<.*>, expected texts"):
        first_pairs(asked, "tags", 9)
