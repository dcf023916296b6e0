"""Quality against references: corpus BLEU and chrF by sacrebleu, with the signatures to quote."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow.dataset as pds
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from cmasd.config.tree import Config
from cmasd.core import Request, RowError
from cmasd.engine import Pair
from cmasd.evaluation.baseline import EngineDecoder
from cmasd.evaluation.speed import Decoder


@dataclass(frozen=True)
class Quality:
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
    set_column: str = "set"


def score(name: str, outputs: list[str], references: list[str]) -> Quality:
    """Corpus-level scores; outputs and references in the same order."""
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(outputs, [references])
    chrf_score = chrf.corpus_score(outputs, [references])
    return Quality(
        name, len(outputs), bleu_score.score, chrf_score.score, str(bleu.get_signature()), str(chrf.get_signature())
    )


def translate(decoder: Decoder, pair: Pair, texts: list[str]) -> list[str]:
    """Outputs in the order of the texts; a row that cannot be encoded gives an empty output."""
    encoded = pair.codec.encode(list(texts))
    requests = [Request(i, ids, pair.max_new_tokens) for i, ids in enumerate(encoded) if not isinstance(ids, RowError)]
    rows = decoder.decode(requests)
    decoded = dict(zip(rows, pair.codec.decode(list(rows.values())), strict=True))
    return [text if isinstance(text := decoded.get(i), str) else "" for i in range(len(texts))]


def evaluate(
    pair: Pair, config: Config, sets: TestSets, on_set: Callable[[Quality], None] = lambda quality: None
) -> list[Quality]:
    """Decode and score every set of a file, in the order of their names; rows without text on a side are left out."""
    columns = [sets.set_column, sets.source_column, sets.target_column]
    table = pds.dataset(sets.path, format="parquet").to_table(columns=columns).to_pydict()
    filled = (row for row in zip(*(table[column] for column in columns), strict=True) if row[1] and row[2])
    rows = sorted(filled, key=lambda row: str(row[0]))
    decoder, qualities = EngineDecoder(pair, config), []
    for name in dict.fromkeys(row[0] for row in rows):
        of_set = [row for row in rows if row[0] == name]
        outputs = translate(decoder, pair, [row[1] for row in of_set])
        quality = score(name, outputs, [row[2] for row in of_set])
        qualities.append(quality)
        on_set(quality)
    return qualities
