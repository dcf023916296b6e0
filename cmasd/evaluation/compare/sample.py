"""A sample of a corpus that stands for the whole: read from all over it, and cut into chunks of like lengths.

Rows are sorted by source length and divided into as many strata as a chunk has rows; every chunk takes one row of each
stratum. So chunks differ little from each other and from the corpus, and few of them give a narrow interval.
"""

from dataclasses import dataclass

import numpy as np

from cmasd.codecs.text import TextCodec
from cmasd.config.tree import Config
from cmasd.core import RowError
from cmasd.errors import InputError
from cmasd.evaluation.quality.references import reference_texts, with_kept
from cmasd.io.plan import make_plan
from cmasd.io.samples import spread_tables

ROWS = 4096
"""Read at most, about."""


@dataclass(frozen=True)
class Sample:
    """Rows of a corpus that can be decoded."""

    sources: list[list[int]]
    """Token ids."""
    references: list[str] | None
    """One per source, empty where it has none; None without a column of them."""
    corpus_rows: float
    """Rows of the whole corpus that can be decoded, from the share in the sample."""
    ids: list[str | int | None] | None = None
    """Of the rows; None where nobody knows them."""
    answers: list[str] | None = None
    """As `references`, of the column of right answers."""

    def chunks(self, rows: int, most: int, seed: int = 0) -> list[list[int]]:
        """Up to `most` chunks of `rows` places in `sources`; places come again where there are too few."""
        order = np.argsort([len(source) for source in self.sources], kind="stable")
        order = np.repeat(order, -(-rows // len(order)))
        random = np.random.default_rng(seed)
        strata = [random.permutation(stratum).tolist() for stratum in np.array_split(order, rows)]
        return [[stratum[i % len(stratum)] for stratum in strata] for i in range(most)]


def read_sample(config: Config, codec: TextCodec, column: str | None = None, rows: int = ROWS) -> Sample:
    """About so many rows, with their references where a column of them is named, and with the answers that
    `compare.answer` asks for; raises `InputError`.
    """
    answer_column = None if config.compare.answer == "none" else config.compare.answer_column
    config = with_kept(config, *{one for one in (column, answer_column) if one is not None})
    plan = make_plan(config)
    texts, references, answers, ids, read = [], [], [], [], 0
    for table in spread_tables(config, plan, rows):
        read += table.num_rows
        kept = (
            [""] * table.num_rows if one is None else reference_texts(table, one) for one in (column, answer_column)
        )
        columns = table["text"].to_pylist(), *kept, table["id"].to_pylist()
        good = [(text, ref or "", answer or "", one) for text, ref, answer, one in zip(*columns, strict=True) if text]
        texts += [text for text, *_ in good]
        references += [reference for _, reference, *_ in good]
        answers += [answer for _, _, answer, _ in good]
        ids += [one for *_, one in good]
    encodings = codec.encode(texts)
    places = [i for i, ids in enumerate(encodings) if not isinstance(ids, RowError)]
    if not places:
        raise InputError(f"input.path: none of {read} rows can be encoded, got {config.input.path}.")
    sources = [ids for ids in encodings if not isinstance(ids, RowError)]
    kept_references = None if column is None else [references[i] for i in places]
    kept_answers = None if answer_column is None else [answers[i] for i in places]
    corpus_rows = plan.rows * len(places) / read
    return Sample(sources, kept_references, corpus_rows, [ids[i] for i in places], kept_answers)
