"""A sample stands for its corpus, and its chunks for the sample."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from cmasd.codecs.text import TextCodec
from cmasd.config import from_dict
from cmasd.core import RowError
from cmasd.errors import InputError
from cmasd.evaluation.compare.sample import Sample, read_sample
from tests.unit.engine.pairs import ragged_requests

SOURCES = [request.source for request in ragged_requests(11, seed=3)]


class Words:
    """Turns ids into text as they are, and texts of one word or more into as many ids."""

    def decode(self, rows: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def encode(self, texts: list[str]) -> list[list[int] | RowError]:
        return [list(range(len(text.split()))) if text != "bad" else RowError("encode", "bad") for text in texts]


def a_sample(count: int = 11) -> Sample:
    return Sample(SOURCES[:count], [f"{i} 5 7 9 {i}" for i in range(count)], corpus_rows=1000.0)


@pytest.mark.parametrize(("count", "rows"), [(100, 8), (100, 7), (3, 8), (1, 4)])
def test_chunks_are_stratified_by_length(count: int, rows: int) -> None:
    sources = [[0] * int(length) for length in np.random.default_rng(0).permutation(count)]
    chunks = Sample(sources, None, count).chunks(rows, most=count // rows or 2)
    assert {len(chunk) for chunk in chunks} == {rows}
    flat = [place for chunk in chunks for place in chunk]
    if count >= rows:
        assert len(set(flat)) == len(flat), "no row twice as long as there are others"
    ranked = np.sort([[len(sources[place]) for place in chunk] for chunk in chunks], axis=1)
    assert (np.ptp(ranked, axis=0) <= count / rows + 1).all(), "chunks have like lengths"


def test_a_sample_is_read_from_all_over_the_corpus(tmp_path: Path) -> None:
    rows = [{"text": f"{'word ' * (i % 9)}end", "de": f"ref {i}" if i % 2 else None} for i in range(3000)]
    rows[0]["text"] = rows[300]["text"] = "bad"
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = from_dict({"input": {"path": f"{tmp_path}/in.jsonl"}, "output": {"path": "out", "rows_per_shard": 30}})
    codec = cast(TextCodec, Words())
    sample = read_sample(config, codec, "de", rows=64)
    assert 60 <= len(sample.sources) <= 64
    assert sample.references is not None
    places = [int(reference.split()[1]) for reference in sample.references if reference]
    assert max(places) - min(places) > 2500
    assert all(len(sample.sources[i]) == int(ref.split()[1]) % 9 + 1 for i, ref in enumerate(sample.references) if ref)
    assert sample.corpus_rows == pytest.approx(3000 * len(sample.sources) / 64)
    assert sample.ids is not None
    assert [int(str(one).rpartition(":")[2]) % 9 + 1 for one in sample.ids] == [len(one) for one in sample.sources]
    whole = read_sample(config, codec, rows=10**6)
    assert (whole.references, len(whole.sources)) == (None, 960 - 1), "of 32 shards, all rows that can be encoded"


def test_a_corpus_without_a_good_row(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("bad\nbad\n")
    config = from_dict({"input": {"path": f"{tmp_path}/in.txt"}, "output": {"path": "out"}})
    with pytest.raises(InputError, match="none of 2 rows can be encoded"):
        read_sample(config, cast(TextCodec, Words()))
