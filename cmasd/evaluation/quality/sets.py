"""SetScores against references: corpus BLEU and chrF by sacrebleu, with the signatures to quote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow.dataset as pds
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from cmasd.config.tree import Config
from cmasd.core import Request, RowError
from cmasd.engine import Pair
from cmasd.evaluation.speed.request_decoder import EngineDecoder
from cmasd.evaluation.speed.timing import Measured, RequestDecoder


@dataclass(frozen=True)
class SetScores:
    """Scores of one test set."""

    name: str
    rows: int
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


@dataclass(frozen=True)
class TestSets:
    """A Parquet file of references."""

    path: str
    source_column: str = "en"
    target_column: str = "de"
    set_column: str | None = "set"
    """None: all rows are one set, `test`."""
    rows: int | None = None
    """So many of each set, spread evenly over it, since sets are often sorted; None: all."""


def read_sets(sets: TestSets) -> dict[str, list[tuple[str, str]]]:
    """(source, reference) of every set, in the order of their names; rows without text on a side are left out."""
    sides = [sets.source_column, sets.target_column]
    columns = [*sides, *([sets.set_column] if sets.set_column else [])]
    table = pds.dataset(sets.path, format="parquet").to_table(columns=columns).to_pydict()
    names = table[sets.set_column] if sets.set_column else ["test"] * len(table[sides[0]])
    found: dict[str, list[tuple[str, str]]] = {}
    for name, source, target in zip(names, *(table[column] for column in sides), strict=True):
        if source and target:
            found.setdefault(str(name), []).append((source, target))
    return {name: evenly(found[name], sets.rows) for name in sorted(found)}


def evenly(rows: list[tuple[str, str]], count: int | None) -> list[tuple[str, str]]:
    """`count` of the rows, evenly over all of them; all, if there are no more."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i * len(rows) // count] for i in range(count)]


def score(name: str, outputs: list[str], references: list[str]) -> SetScores:
    """Corpus-level scores; outputs and references in the same order."""
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(outputs, [references])
    chrf_score = chrf.corpus_score(outputs, [references])
    return SetScores(
        name, len(outputs), bleu_score.score, chrf_score.score, str(bleu.get_signature()), str(chrf.get_signature())
    )


def translate(decoder: RequestDecoder, pair: Pair, texts: list[str]) -> list[str]:
    """Outputs in the order of the texts; a row that cannot be encoded gives an empty output."""
    encoded = pair.codec.encode(list(texts))
    requests = [Request(i, ids, pair.max_new_tokens) for i, ids in enumerate(encoded) if not isinstance(ids, RowError)]
    rows = decoder.decode(requests)
    decoded = dict(zip(rows, pair.codec.decode(list(rows.values())), strict=True))
    return [text if isinstance(text := decoded.get(i), str) else "" for i in range(len(texts))]


def output_texts(pair: Pair, measured: Measured, keys: Sequence[int]) -> list[str]:
    """Output texts of those rows; empty where a row cannot be turned into text."""
    decoded = pair.codec.decode([measured.outputs[key] for key in keys])
    return [text if isinstance(text, str) else "" for text in decoded]


def score_sets(
    pair: Pair, config: Config, sets: TestSets, on_set: Callable[[SetScores], None] = lambda quality: None
) -> list[SetScores]:
    """Decode and score every set of a file, in the order of their names."""
    decoder, qualities = EngineDecoder(pair, config), []
    for name, rows in read_sets(sets).items():
        outputs = translate(decoder, pair, [source for source, _ in rows])
        quality = score(name, outputs, [reference for _, reference in rows])
        qualities.append(quality)
        on_set(quality)
    return qualities
