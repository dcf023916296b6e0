"""Good files with some bytes changed, in every format: rows, row errors or a refusal, and never anything else."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.errors import InputError
from tests.unit.io.test_bad_input import jsonl, read, saved

TEXTS = ["The train leaves at seven.", None, "a\0b", "שלום", "\U0001f9d1\u200d\U0001f680", "x" * 300, ""] * 3
IDS = [f"r{i}" for i in range(len(TEXTS))]
JSON = jsonl(*[{"id": one, "text": text, "n": n} for n, (one, text) in enumerate(zip(IDS, TEXTS, strict=True))])
CSV = ("id,text,n\n" + "".join(f'{one},"{text or ""}",1\n' for one, text in zip(IDS, TEXTS, strict=True))).encode()
COLUMNS = {"id": IDS, "text": TEXTS, "n": list(range(len(TEXTS)))}


def parquet(compression: Literal["none", "zstd"], checksums: bool) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        table = pa.table(COLUMNS)
        pq.write_table(table, path, row_group_size=4, compression=compression, write_page_checksum=checksums)

    return write


FILES: dict[str, bytes | Callable[[Path], object]] = {
    "in.jsonl": JSON,
    "in.jsonl.gz": gzip.compress(JSON),
    "in.jsonl.bz2": bz2.compress(JSON),
    "in.jsonl.xz": lzma.compress(JSON),
    "in.jsonl.zst": bytes(pa.compress(JSON, "zstd", asbytes=True)),
    "in.csv": CSV,
    "in.txt": "\n".join(text or "" for text in TEXTS).encode(),
    "plain.parquet": parquet("none", checksums=False),
    "checked.parquet": parquet("zstd", checksums=True),
    "dataset": saved(**COLUMNS),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, bytes replaced, cut out, put in, copied from elsewhere, set to what numbers are largest at."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5, 20])):
        place = chance.randrange(max(1, len(changed)))
        elsewhere = chance.randrange(max(1, len(changed)))
        new, gone = chance.choice(
            [
                (bytes([changed[place] ^ 1 << chance.randrange(8)]) if changed else b"", 1),
                (chance.choice([b"\0", b"\xff", b"\x7f", b"\n", b'"']), 1),
                (b"", chance.choice([1, 4, 30, len(changed)])),
                (chance.randbytes(chance.choice([1, 4, 50])), 0),
                (changed[elsewhere : elsewhere + 16], 16),
                (chance.choice([b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8)]), 8),
            ]
        )
        changed[place : place + gone] = new
    return bytes(changed)


FEW, MANY = range(12), range(12, 600)


@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("name", FILES)
def test_nothing_else_happens(tmp_path: Path, name: str, seeds: range) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        path = tmp_path / str(seed) / name
        path.parent.mkdir()
        content = FILES[name]
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
        file = path / chance.choice(["data.arrow", "state.json"]) if path.is_dir() else path
        file.write_bytes(mutated(file.read_bytes(), chance))
        choices: list[dict[str, Any]] = [{}, {"id_column": "id"}, {"keep_columns": ["n"]}]
        columns = {} if name == "in.txt" else chance.choice(choices)
        try:
            rows = read(path, **columns)
        except InputError as error:
            rows, said = [], [str(error)]
        else:
            said = [row["error"] or "" for row in rows]
        assert all(map(str.isprintable, said)), said
        assert all((row["text"] is None) == (row["error"] is not None) for row in rows)
