"""Corpora: which rows are taken, in which order, in how large batches."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.errors import ConfigError, InputError
from cmasd.telemetry.schema import teacher_fields
from cmasd.training.corpus import Bare, Corpus, Side, build_corpus, read_pairs, read_texts, stream
from cmasd.training.recipe import DataRecipe
from tests.unit.training.small import sentences, small_tokenizer, write_rows


def random_corpus(rows: int, seed: int, longest: int = 30, share: float = 1.0) -> Corpus:
    """Sides of random lengths; a token's id is its position in the side."""
    rng = np.random.default_rng(seed)

    def side() -> Side:
        offsets = np.concatenate([[0], np.cumsum(rng.integers(1, longest + 1, rows))])
        return Side(np.arange(offsets[-1], dtype=np.int32), offsets)

    return Corpus(side(), side(), np.full(rows, share))


def side_text(side: Side, row: int) -> str:
    ids = side.tokens[side.offsets[row] : side.offsets[row + 1]]
    return str(small_tokenizer().decode(ids, skip_special_tokens=True))


@given(st.integers(1, 200), st.integers(0, 5), st.sampled_from([30, 64, 300]))
@settings(max_examples=50)
def test_batches_keep_the_budget_and_take_each_row_once(rows: int, seed: int, budget: int) -> None:
    corpus = random_corpus(rows, seed)
    batches = corpus.batches(seed, 0, budget)
    for batch in batches:
        shapes = [side.padded(batch, 0).numel() for side in (corpus.source, corpus.target)]
        assert max(shapes) <= budget
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))


def test_a_row_over_the_budget_is_a_batch_of_its_own() -> None:
    assert {len(batch) for batch in random_corpus(20, 0).batches(0, 0, 1)} == {1}


def test_batches_hold_rows_of_like_length() -> None:
    corpus = random_corpus(2000, 0)
    padded = sum(len(batch) * corpus.target.lengths[batch].max() for batch in corpus.batches(0, 0, 300))
    assert corpus.target.lengths.sum() / padded > 0.9


def test_padded_rows() -> None:
    side = Side(np.array([5, 6, 7, 8, 9, 4], dtype=np.int32), np.array([0, 2, 5, 6]))
    assert side.padded(np.array([1, 0]), pad=3).tolist() == [[7, 8, 9], [5, 6, 3]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    corpus = random_corpus(300, 0, share=0.7)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in corpus.batches(seed, epoch, 200)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_rows_are_taken_by_their_share() -> None:
    corpus = random_corpus(6000, 0)
    share = np.repeat([0.0, 0.25, 1.0], 2000)
    corpus = Corpus(corpus.source, corpus.target, share)
    taken = np.concatenate(corpus.batches(0, 0, 500)) // 2000
    counts = np.bincount(taken, minlength=3)
    assert counts[0] == 0
    assert abs(counts[1] - 500) < 100, "five standard deviations"
    assert counts[2] == 2000


@pytest.mark.parametrize("skip", [0, 1, 7, 40, 95])
def test_stream_goes_on_where_it_stopped(skip: int) -> None:
    corpus = random_corpus(100, 0, share=0.8)
    assert len(corpus.batches(3, 0, 200)) < 40, "the stream must cross epochs"
    whole = [rows.tolist() for rows in islice(stream(corpus, 3, 200, 0), 100)]
    resumed = [rows.tolist() for rows in islice(stream(corpus, 3, 200, skip), 100 - skip)]
    assert resumed == whole[skip:]


def test_pairs_too_long_or_mismatched_are_left_out(tmp_path: Path) -> None:
    many = " ".join(["bee"] * 20)
    path = write_rows(
        tmp_path / "a.parquet", en=["ah", f"{many} " * 4, "ah", "bee cee"], de=["ah", f"{many} " * 4, many, "cee bee"]
    )
    lengths = [len(small_tokenizer()(text)["input_ids"]) for text in ("ah", many)]
    assert lengths[1] > 3 * lengths[0] + 8, "the third pair is mismatched"
    corpus = build_corpus(DataRecipe(path=str(path), max_tokens=60), Bare(small_tokenizer()))
    assert corpus.share.tolist() == [1, 0, 0, 1]


def test_rows_without_text_are_left_out(tmp_path: Path) -> None:
    sources, targets = ["ah", None, "", "dee", "eff", "gee"], ["bee", "cee", "dee", None, "", "hay"]
    path = write_rows(tmp_path / "a.parquet", en=sources, de=targets)
    [pairs] = read_pairs(DataRecipe(path=str(path)))
    assert (pairs.sources, pairs.targets, pairs.shares) == (["ah", "gee"], ["bee", "hay"], [1.0, 1.0])
    assert list(read_texts(DataRecipe(path=str(path)))) == ["ah", "bee", "gee", "hay"]


def test_reads_a_folder_in_order_and_maps_shares(tmp_path: Path) -> None:
    texts = sentences(30)
    for part in range(3):
        some = texts[10 * part : 10 * part + 10]
        write_rows(tmp_path / f"part-{part}.parquet", a=some, b=some[::-1], c=[["x", "y", None][part]] * 10)
    recipe = DataRecipe(str(tmp_path), "a", "b", "c", mix={"x": 0.5, "None": 0.25})
    corpus = build_corpus(recipe, Bare(small_tokenizer()))
    assert [side_text(corpus.source, row) for row in range(30)] == texts
    assert [side_text(corpus.target, row) for row in range(10)] == texts[:10][::-1]
    assert corpus.share.tolist() == [0.5] * 10 + [1.0] * 10 + [0.25] * 10


def test_size_of_pieces_changes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", en=[*sentences(50), None], de=sentences(51, seed=1))
    pieces = list(read_pairs(DataRecipe(path=str(path)), chunk_rows=7))
    [whole] = read_pairs(DataRecipe(path=str(path)))
    assert len(pieces) == 8
    assert [source for piece in pieces for source in piece.sources] == whole.sources
    assert [target for piece in pieces for target in piece.targets] == whole.targets


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.parquet", en=["ah"], de=["ah"], corpus=["x"]))
    empty = str(write_rows(tmp_path / "b.parquet", en=[""], de=["ah"]))
    with pytest.raises(InputError, match=r"no column fr, got en, de, corpus"):
        build_corpus(DataRecipe(path, "fr"), Bare(small_tokenizer()))
    with pytest.raises(InputError, match=r"b\.parquet: no row has text on both sides"):
        build_corpus(DataRecipe(empty), Bare(small_tokenizer()))
    with pytest.raises(InputError, match=r"no pair is left to train on, 1 were read"):
        build_corpus(DataRecipe(path, group_column="corpus", mix={"x": 0.0}), Bare(small_tokenizer()))
    with pytest.raises(ConfigError, match=r"data\.mix: needs to know the corpus"):
        build_corpus(DataRecipe(path, mix={"x": 0.5}), Bare(small_tokenizer()))


def test_a_teacher_stays_with_its_tokens(tmp_path: Path) -> None:
    """Rows without text are left out with what was taught of them."""
    ids: list[Any] = [[[7, 1], [8, 2]], [[9, 3]], [], [[5, 4], [6, 5], [1, 0]]]
    logprobs: list[Any] = [[[-float(a), -float(b)] for a, b in row] for row in ids]
    names = pa.schema(teacher_fields(2))
    table = pa.table({"en": ["ah", None, "", "bee"], "de": ["x", "y", "z", "w"]})
    for field, values in zip(names, (ids, logprobs), strict=True):
        table = table.append_column(field, pa.array(values, type=field.type))
    pq.write_table(table, tmp_path / "rows.parquet")
    corpus = build_corpus(DataRecipe(path=str(tmp_path), teacher=True), Bare(small_tokenizer()))
    assert corpus.target.lists(np.array([0, 1])) == [[7, 8], [5, 6, 1]]
    assert corpus.teacher is not None
    taught, probs = corpus.teacher.of(corpus.target, np.array([1, 0]))
    assert taught.tolist() == [[5, 4], [6, 5], [1, 0], [7, 1], [8, 2]]
    odds = (probs[:, 1] / probs[:, 0]).log()
    assert odds.tolist() == pytest.approx([1, 1, 1, 6, 6]), "softmax of the log-probabilities that were kept"
    assert probs.sum(-1).tolist() == pytest.approx([1] * 5)


def test_a_teacher_that_was_not_kept_is_asked_for(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", en=["ah"], de=["ah"])
    with pytest.raises(InputError, match=r"has no column token_top_ids.*telemetry.teacher_top_k"):
        build_corpus(DataRecipe(path=str(tmp_path), teacher=True), Bare(small_tokenizer()))
