"""What looks odd and is fine: texts, ids and types of many kinds come out as they went in, from every format."""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.core import RowError
from cmasd.io.outputs import encode
from cmasd.io.plan import make_plan, source_of
from cmasd.io.shards import kept_columns, pack, read_shards, unpack
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.totals import Totals
from tests.unit.io.test_bad_input import jsonl, saved
from tests.unit.io.test_formats import config, read, texts

ODD_TEXTS = {
    "empty": "",
    "a space": " ",
    "spaces around": "  a  ",
    "a tab": "a\tb",
    "line ends": "a\nb\r\nc\rd",
    "only a line end": "\n",
    "a quote": 'a "quoted" word',
    "only a quote": '"',
    "apostrophes": "it's 'fine'",
    "commas and semicolons": "a,b;c,,d",
    "backslashes": "C:\\new\\table \\u0041 \\",
    "NUL": "a\0b",
    "control characters": "".join(map(chr, [*range(1, 9), *range(14, 32), 127])),
    "form feed and vertical tab": "a\x0bb\x0cc",
    "next line and line separators": "a\x85b\u2028c\u2029d",
    "a byte order mark inside": "a\ufeffb",
    "a byte order mark at the start": "\ufeffa",
    "no-break and zero-width spaces": "a\u00a0b\u200bc\u2060d",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd\u202c",
    "combining accents": "e\u0301" * 50,
    "emoji with joiners": "\U0001f9d1\u200d\U0001f680\U0001f3f3\ufe0f\u200d\U0001f308",
    "flags and skin tones": "\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd",
    "beyond the first plane": "\U00020000\U0010ffff",
    "not a character": "\ufffe\uffff",
    "the replacement character": "\ufffd",
    "markup": "<script>alert(1)</script>&amp;",
    "a template": "{text} ${oc.env:HOME} {{x}} %s {0}",
    "looks like other types": "null",
}


def as_csv(values: list[str]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["n", "text"])
    writer.writerows([[n, value] for n, value in enumerate(values)])
    return stream.getvalue().encode()


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "jsonl": lambda path, values: path.write_bytes(jsonl(*[{"text": value} for value in values])),
    "csv": lambda path, values: path.write_bytes(as_csv(values)),
    "parquet": lambda path, values: pq.write_table(pa.table({"text": values}), path),
    "arrow": lambda path, values: saved(text=values)(path),
}


@pytest.mark.parametrize("format", WRITERS)
def test_odd_texts(tmp_path: Path, format: str) -> None:
    assert len(ODD_TEXTS) == 28
    path = tmp_path / ("in" if format == "arrow" else f"in.{format}")
    WRITERS[format](path, list(ODD_TEXTS.values()))
    _, rows = read(config(path, rows_per_shard=5))
    assert dict(zip(ODD_TEXTS, texts(rows), strict=True)) == ODD_TEXTS
    assert {row["error"] for row in rows} == {None}


def test_odd_texts_that_are_lines(tmp_path: Path) -> None:
    """All but those with line ends, a byte order mark at the very start aside."""
    lines = ["first", *(text for text in ODD_TEXTS.values() if not set(text) & {"\n", "\r"})]
    (tmp_path / "in.txt").write_bytes("\n".join(lines).encode())
    assert texts(read(config(tmp_path / "in.txt"))[1]) == lines


KINDS: dict[str, Any] = {
    "bool": pa.array([True, None]),
    "int8": pa.array([-128, None], pa.int8()),
    "int64": pa.array([-(2**63), None], pa.int64()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float16": pa.array([1.5, None], pa.float16()),
    "float32": pa.array([0.1, None], pa.float32()),
    "float64": pa.array([float("inf"), None]),
    "string": pa.array(["a", None]),
    "large_string": pa.array(["a", None], pa.large_string()),
    "string_view": pa.array(["a", None], pa.string_view()),
    "binary": pa.array([b"\xff\0", None]),
    "fixed binary": pa.array([b"abc", None], pa.binary(3)),
    "decimal": pa.array([decimal.Decimal("-12345678901234567890.12"), None], pa.decimal128(30, 2)),
    "date": pa.array([datetime.date(1, 1, 1), None]),
    "time": pa.array([datetime.time(23, 59, 59, 999_999), None]),
    "timestamp": pa.array([datetime.datetime(1900, 2, 28, 1, 2, 3), None], pa.timestamp("us")),
    "timestamp with a zone": pa.array([2**40, None], pa.int64()).view(pa.timestamp("ns", "Europe/Berlin")),
    "duration": pa.array([datetime.timedelta(days=-3, microseconds=1), None]),
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "list": pa.array([[1, None], None], pa.list_(pa.int32())),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
}


def test_kept_types_are_in_the_output_as_they_were(tmp_path: Path) -> None:
    assert len(KINDS) == 22
    pq.write_table(pa.table({"text": ["t", "t"], **KINDS}), tmp_path / "in.parquet")
    asked = config(tmp_path / "in.parquet", keep_columns=list(KINDS))
    plan = make_plan(asked)
    ((_, rows),) = read_shards(plan.part(0), source_of(asked, plan.files[0].file), {0})
    done = [Row(str(n), RowError("read", "x"), None) for n in range(2)]
    table = record(done, "token", kept_columns(unpack(pack(rows))))
    output = pq.read_table(io.BytesIO(encode([table], Totals.of(table))))
    assert rows["error"].null_count == 2
    for name, column in KINDS.items():
        assert output[name].type == column.type, name
        assert output[name].to_pylist() == column.to_pylist(), name


U = uuid.UUID("12345678-1234-5678-1234-567812345678")
IDS: dict[str, tuple[Any, list[str]]] = {
    "null": (pa.array(["a", None, "c"]), ["a", "in.parquet:1", "c"]),
    "nulls only": (pa.nulls(3), [f"in.parquet:{n}" for n in range(3)]),
    "the same": (pa.array(["a", "a", "a"]), ["a", "a", "a"]),
    "empty and blank": (pa.array(["", " ", "\n"]), ["", " ", "\n"]),
    "huge": (pa.array(["x" * 100_000, "y", "z"]), ["x" * 100_000, "y", "z"]),
    "a dictionary": (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    "uuid": (pa.array([U.bytes] * 3, pa.uuid()), [str(U)] * 3),
    "decimal": (pa.array([decimal.Decimal("1.50"), decimal.Decimal("-0.25"), None]), ["1.50", "-0.25", "in.parquet:2"]),
    "float": (pa.array([0.5, float("nan"), 1e300]), ["0.5", "nan", "1e+300"]),
    "bool": (pa.array([True, False, None]), ["True", "False", "in.parquet:2"]),
    "date": (pa.array([datetime.date(2024, 2, 29)] * 3), ["2024-02-29"] * 3),
    "struct": (pa.array([{"a": 1, "b": "x"}] * 3), ["{'a': 1, 'b': 'x'}"] * 3),
    "list": (pa.array([[1, 2], [], None]), ["[1, 2]", "[]", "in.parquet:2"]),
    "binary": (pa.array([b"abc", b"\xff\0", b""]), ["abc", "\\xff\0", ""]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_kind(tmp_path: Path, kind: str) -> None:
    column, expected = IDS[kind]
    pq.write_table(pa.table({"text": ["t"] * 3, "key": column}), tmp_path / "in.parquet")
    _, rows = read(config(tmp_path / "in.parquet", id_column="key", rows_per_shard=2))
    assert [row["id"] for row in rows] == expected
    assert {row["error"] for row in rows} == {None}


def test_json_ids_of_every_kind(tmp_path: Path) -> None:
    values = ["a", "a", "", 1.5, True, None, {"a": [1]}, ["\u00e9"], "\ud800", 10**400]
    (tmp_path / "in.jsonl").write_bytes(jsonl(*[{"text": "t", "key": value} for value in values]))
    ids = [row["id"] for row in read(config(tmp_path / "in.jsonl", id_column="key"))[1]]
    expected = ["a", "a", "", "1.5", "true", "in.jsonl:5", '{"a": [1]}', '["\u00e9"]', "\\ud800", "1" + "0" * 400]
    assert ids == expected


def zst(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


@pytest.mark.parametrize(
    ("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zst)]
)
@pytest.mark.parametrize("cut", [0, 7, 14])
def test_archives_of_several_members(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], cut: int) -> None:
    """As `cat a.gz b.gz` makes them, also where a line goes on in the next member."""
    data = jsonl(*[{"text": f"row {n}"} for n in range(3000)])
    (tmp_path / f"in.jsonl.{ending}").write_bytes(compress(data[: 32_000 + cut]) + compress(data[32_000 + cut :]))
    assert texts(read(config(tmp_path / f"in.jsonl.{ending}"))[1]) == [f"row {n}" for n in range(3000)]


MESSY = {
    "a byte order mark and CRLF": (b'\xef\xbb\xbfid,text\r\n1,"a\r\nb"\r\n2,c\r\n', ["a\r\nb", "c"]),
    "a byte order mark before a quote": (b'\xef\xbb\xbf"text","n"\n"a",1\n', ["a"]),
    "blank lines": (b"text\n\na\n\n\nb\n\n", ["a", "b"]),
    "no line end at the end": (b"text,n\na,1", ["a"]),
    "spaces around fields": (b"text,n\n a ,1\n", [" a "]),
    "a doubled quote": (b'text\n"a ""b"" c"\n""""\n', ['a "b" c', '"']),
    "ragged": (b"n,text\n1,a\n2\n3,b,\n4,c,x\n", ["a", None, "b", None]),
    "no rows": (b"text,n\n", []),
}


@pytest.mark.parametrize("name", MESSY)
def test_messy_csv(tmp_path: Path, name: str) -> None:
    data, expected = MESSY[name]
    (tmp_path / "in.csv").write_bytes(data)
    assert texts(read(config(tmp_path / "in.csv"))[1]) == expected


def test_messy_jsonl(tmp_path: Path) -> None:
    data = (
        b'\xef\xbb\xbf {"text": "a"}\t\r\n\r\n{"text": "b", "text": "c"}\r\n{"n": 1,"text":"\\u00e9\\/"}\n{"text": "d"}'
    )
    (tmp_path / "in.ndjson").write_bytes(data)
    _, rows = read(config(tmp_path / "in.ndjson"))
    assert texts(rows) == ["a", "c", "\u00e9/", "d"]


@pytest.mark.parametrize("shards", [1, 3])
def test_shuffled_filtered_and_selected_datasets(tmp_path: Path, shards: int) -> None:
    import datasets

    whole = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(40)], "n": list(range(40))})
    made = {
        "shuffled": whole.shuffle(seed=1),
        "filtered": whole.filter(lambda row: row["n"] % 3 == 0),
        "both": whole.shuffle(seed=2).filter(lambda row: row["n"] > 10).select(range(5, 20)),
    }
    for name, dataset in made.items():
        dataset.save_to_disk(tmp_path / name, num_shards=shards)
        _, rows = read(config(tmp_path / name, keep_columns=["n"]))
        assert texts(rows) == list(dataset["text"])
        assert [row["keep.n"] for row in rows] == list(dataset["n"])
        assert json.loads((tmp_path / name / "state.json").read_text())["_data_files"]
