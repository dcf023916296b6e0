"""Bad input of every kind in every format, and what it gets: a text, a row error, or a refusal with exit code 2.

A row's expected outcome is its text, or `Bad` with a part of its error; a whole input's is `Refused` with a part of the
message. Nothing else may happen: no other exception, no missing row, no row twice.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.config import from_dict
from cmasd.errors import InputError
from cmasd.io.formats import records
from cmasd.io.formats.base import PIECE_BYTES
from cmasd.io.plan import make_plan, source_of
from cmasd.io.shards import read_shards


@dataclass(frozen=True)
class Bad:
    """A row error."""

    said: str


@dataclass(frozen=True)
class Refused:
    """Exit code 2."""

    said: str


Outcome = list[str | Bad] | Refused
Case = tuple[str, bytes | Callable[[Path], object], Outcome]
BIG = b"x" * 10_000_000
TOO_BIG = Bad("has 10000000 bytes; expected at most 1000000 (input.max_text_bytes)")
CONTROLS = "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028"
ODD = ["", " ", "a\0b", "\u202eabc\u202c", "\U0001f9d1\u200d\U0001f680", "e\u0301" * 50, "שלום"]
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"\xff", None], pa.binary()).buffers())


def jsonl(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def table(**columns: Any) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.table(columns), path)


def saved(**columns: Any) -> Callable[[Path], object]:
    """A `save_to_disk` folder, written by hand, so that what no writer allows can be in it."""

    def write(path: Path) -> None:
        path.mkdir()
        (path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        content = pa.table(columns)
        with pa.OSFile(str(path / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content)

    return write


def damaged(
    write: Callable[[Path], object], change: Callable[[bytes], bytes], name: str = ""
) -> Callable[[Path], object]:
    def write_damaged(path: Path) -> None:
        write(path)
        file = path / name if name else path
        file.write_bytes(change(file.read_bytes()))

    return write_damaged


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def groups(path: Path) -> None:
    """Four row groups of two rows; the texts are not compressed."""
    rows = {"id": [f"i{n}" for n in range(8)], "text": [f"text{n}" * 5 for n in range(8)]}
    pq.write_table(
        pa.table(rows), path, row_group_size=2, compression="none", use_dictionary=False, write_page_checksum=True
    )


def lying_offsets() -> "pa.Array[Any]":
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 10_000, 2_000_000_000, 5))
    return pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"hello")])


def extension(name: bytes) -> Callable[[Path], object]:
    field = pa.field("text", pa.binary(), metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": b""})
    return lambda path: pq.write_table(pa.table([pa.array([b"x"])], schema=pa.schema([field])), path)


def splits(path: Path) -> None:
    path.mkdir()
    (path / "dataset_dict.json").write_text("[]")


def long_text(n: int) -> str:
    return f"text{n}" * 5


def folder(**files: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("_", ".")).write_bytes(content)

    return write


GZ = gzip.compress(jsonl(*[{"text": str(n)} for n in range(1000)]))
UNREADABLE_GZ = Refused("cannot be read as jsonl: ")

CASES: dict[str, list[Case]] = {
    "jsonl": [
        ("odd texts", jsonl(*[{"text": text} for text in [*ODD, CONTROLS]]), [*ODD, CONTROLS]),
        ("null, missing, of other types", jsonl({"text": None}, {"text": 5}, {"n": 1}, {"text": ["a"]}, [1], "a", None),
         [Bad("null"), Bad("text is int"), Bad("no column 'text'"), Bad("text is list"), *[Bad("not an object")] * 3]),
        ("NaN and infinity", b'{"text": NaN}\n{"text": -Infinity}\n{"text": "a", "n": NaN}\n',
         [Bad("text is float"), Bad("text is float"), "a"]),
        ("not UTF-8", b'{"text": "a"}\n{"text": "\xff\xfe"}\n', ["a", Bad("not UTF-8")]),
        ("lone surrogates", b'{"text": "\\ud800"}\n{"text": "\\ud83e\\uddd1"}\n',
         [Bad("not valid Unicode"), "\U0001f9d1"]),
        ("10 MB lines", b'{"text": "' + BIG + b'"}\n{"text": "a"}\n', [TOO_BIG, "a"]),
        ("broken, cut off, NUL, blank lines", b'{"text": "a"\n\0\n\n  \r\n{"text": "b"}\r\n{"te', [
            Bad("not JSON"), Bad("not JSON"), "b", Bad("not JSON")]),
        ("a number of 5,000 digits, nested 100,000 deep",
         b'{"text": ' + b"9" * 5000 + b"}\n" + b"[" * 100_000 + b'\n{"text": "a"}',
         [Bad("not JSON"), Bad("not JSON"), "a"]),
        ("a byte order mark", b"\xef\xbb\xbf" + jsonl({"text": "a"}), ["a"]),
        ("an array", b'[{"text": "a"}]', Refused("starts with a JSON array")),
        ("UTF-16", '{"text": "a"}\n'.encode("utf-16"), Refused("in.jsonl: is UTF-16 or UTF-32, expected UTF-8.")),
        ("UTF-16 without a mark", '{"text": "a"}\n'.encode("utf-16-be"), Refused("is UTF-16 or UTF-32")),
        ("an object over lines", json.dumps({"text": "a", "n": 1}, indent=2).encode(),
         Refused("starts with a JSON object over several lines, expected one object per line. Convert it")),
        ("an object over lines, begun late", b'\n{"text": "a",\n "n": 1}\n{"text": "b"}\n',
         Refused("starts with a JSON object over several lines")),
        ("an object whose end is lost", b'{"text": "a",\n{"text": "b"}\n', [Bad("line 1: is not JSON"), "b"]),
        ("no rows", b"\n\n", []),
    ],
    "jsonl.gz": [
        ("whole", GZ, [str(n) for n in range(1000)]),
        ("cut off", half(GZ), UNREADABLE_GZ),
        ("not gzip", jsonl({"text": "a"}), UNREADABLE_GZ),
        ("broken inside", GZ[:12] + b"\xff" * 8 + GZ[20:], UNREADABLE_GZ),
        ("wrong checksum", GZ[:-8] + bytes(8), UNREADABLE_GZ),
        ("more behind it", GZ + b"junk", UNREADABLE_GZ),
    ],
    "jsonl.bz2": [("whole", bz2.compress(jsonl({"text": "a"})), ["a"]), ("not bzip2", b"{}", UNREADABLE_GZ)],
    "jsonl.xz": [("whole", lzma.compress(jsonl({"text": "a"})), ["a"]), ("not xz", b"{}" * 9, UNREADABLE_GZ)],
    "jsonl.zst": [
        ("whole", bytes(pa.compress(jsonl({"text": "a"}), "zstd", asbytes=True)), ["a"]),
        ("cut off", half(pa.compress(jsonl(*[{"text": str(n)} for n in range(99)]), "zstd", asbytes=True)),
         UNREADABLE_GZ),
        ("not zstd", jsonl({"text": "a"}), UNREADABLE_GZ),
    ],
    "csv": [
        ("odd texts", b"text\n" + "".join(f'"{text}"\n' for text in ODD).encode(), list(ODD)),
        ("not UTF-8", b"text,n\na,1\n\xff,2\n", ["a", Bad("not valid Unicode")]),
        ("too few and too many fields", b"text,n\na\nb,1,2\nc,1\n", [Bad("1 fields"), Bad("3 fields"), "c"]),
        ("10 MB fields", b"text\n" + BIG + b"\na\n", [TOO_BIG, "a"]),
        ("a quote inside", b'text\na"b\n"c"d\n', ['a"b', "cd"]),
        ("an open quote", b'text\na\n"b\nc\n', Refused("a quote opened at line 3 or after is never closed")),
        ("line ends of all kinds", b"text\r\na\rb\nc\r\n", ["a", "b", "c"]),
        ("a column twice", b"text,text\na,b\n", Refused("has 2 columns named 'text', expected one")),
        ("no such column", b"words\na\n", Refused("no column 'text' (has: words). Set input.text_column.")),
        ("a space before a name", b"id, text\n1,a\n",
         Refused("no column 'text' (has: id,  text). Did you mean ' text'? Set input.text_column.")),
        ("another case", b"id,TEXT\n1,a\n", Refused("Did you mean 'TEXT'? Set input.text_column.")),
        ("a typing error", b"id,txet\n1,a\n", Refused("Did you mean 'txet'?")),
        ("a header that is not UTF-8", b"t\xff\na\n", Refused(r"no column 'text' (has: t\udcff)")),
        ("a header that a terminal would obey", b'"a\n\x1b[2J","' + b"b" * 99 + b'"\n1,2\n',
         Refused(r"no column 'text' (has: a\n\x1b[2J, " + "b" * 37 + "...)")),
        ("UTF-16", "text\na\n".encode("utf-16"), Refused("is UTF-16 or UTF-32, expected UTF-8")),
        ("UTF-16 without a mark", "text,n\na,1\n".encode("utf-16-le"), Refused("is UTF-16 or UTF-32")),
        ("a comma at the end of all lines", b"text,n,\na,1,\nb,2,\n", ["a", "b"]),
        ("a comma at the end of the header", b"text,n,,\na,1\nb,2,,\n", ["a", "b"]),
        ("a comma at the end of lines", b"text,n\na,1,\nb,2,,\nc,3,x\nd\n",
         ["a", "b", Bad("line 4: record has 3 fields, the header 2"), Bad("line 5: record has 1 fields")]),
        ("columns without a name", b",text,,n\n0,a,x,1\n1,b,,2\n", ["a", "b"]),
        ("no column with a name", b",,\n1,2,3\n", Refused("no column 'text' (has: none)")),
        ("a column twice that nobody asked for", b"n,text,n\n1,a,2\n", ["a"]),
        ("Latin-1", "text\ncaf\u00e9\nb\n".encode("latin-1"), [Bad("line 2: text is not valid Unicode"), "b"]),
        ("a quote that joins lines", b'text,n\n"a,1\nb,2\nc",3\nd,4\n', ["a,1\nb,2\nc", "d"]),
        ("nothing at all", b"", []),
    ],
    "csv.gz": [("whole", gzip.compress(b"text\na\n"), ["a"]), ("cut off", half(GZ), Refused("cannot be read as csv"))],
    "txt": [
        ("odd texts", "\n".join(ODD).encode(), list(ODD)),
        ("control characters", CONTROLS.replace("\n", "").replace("\r", "").encode(),
         [CONTROLS.replace("\n", "").replace("\r", "")]),
        ("not UTF-8, a lone surrogate", b"a\n\xff\n\xed\xa0\x80\n", ["a", Bad("not UTF-8"), Bad("not UTF-8")]),
        ("10 MB lines", BIG + b"\na\n", [TOO_BIG, "a"]),
        ("a byte order mark", b"\xef\xbb\xbfa\nb", ["a", "b"]),
        ("UTF-16", "a\n".encode("utf-16"), Refused("is UTF-16 or UTF-32, expected UTF-8")),
        ("Latin-1", "caf\u00e9\nb\n".encode("latin-1"), [Bad("line 1: is not UTF-8"), "b"]),
        ("nothing at all", b"", []),
    ],
    "tsv": [
        ("fields that begin with a quote", b'n\ttext\n1\t"a\n2\tb\n3\t"c"\n4\td "e" f\n5\t""\n',
         ['"a', "b", '"c"', 'd "e" f', '""']),
        ("names in quotes", b'"id"\t"text"\n1\ta\n',
         Refused("Did you mean '\"text\"'? If quotes enclose the fields, set input.quote=double. Set ")),
        ("commas and backslashes", b"text\tn\na,b\\n\t1\n", ["a,b\\n"]),
    ],
    "txt.gz": [
        ("whole", gzip.compress(b"a\nb"), ["a", "b"]),
        ("wrong checksum", GZ[:-8] + bytes(8), Refused("cannot be read as text")),
    ],
    "parquet": [
        ("odd texts", table(text=[*ODD, CONTROLS]), [*ODD, CONTROLS]),
        ("null and not UTF-8", table(text=NOT_UTF8), ["good", Bad("not UTF-8"), Bad("null")]),
        ("bytes", table(text=pa.array([b"a", b"\xff"])), ["a", Bad("not UTF-8")]),
        ("a dictionary", table(text=pa.array(["a", None, "a"]).dictionary_encode()), ["a", Bad("null"), "a"]),
        ("nulls only", table(text=pa.nulls(2)), [Bad("null")] * 2),
        ("10 MB rows", table(text=[BIG.decode(), "a"]), [TOO_BIG, "a"]),
        ("numbers", table(text=[1.5, float("nan")]), Refused("column 'text' is double, expected strings")),
        ("no such column", table(words=["a"]), Refused("no column 'text' (has: words)")),
        ("a column twice", lambda path: pq.write_table(pa.Table.from_arrays([NOT_UTF8] * 2, ["text"] * 2), path),
         Refused("has 2 columns named 'text'")),
        ("a column twice that nobody asked for",
         lambda path: pq.write_table(pa.Table.from_arrays([NOT_UTF8, *[pa.nulls(3)] * 2], ["text", "n", "n"]), path),
         ["good", Bad("not UTF-8"), Bad("null")]),
        ("damaged pages", damaged(groups, lambda data: data.replace(b"text3text3", b"text3xxxx3")),
         [*map(long_text, range(2)), *[Bad("row group 1 cannot be read: ")] * 2, *map(long_text, range(4, 8))]),
        ("a damaged footer", damaged(groups, lambda data: data[:-60] + bytes(40) + data[-20:]),
         Refused("cannot be read as parquet: ")),
        ("cut off", damaged(groups, half), Refused("cannot be read as parquet: Parquet magic bytes not found")),
        ("nothing at all", b"", Refused("cannot be read as parquet")),
        ("no rows", table(text=pa.array([], pa.string())), []),
        ("Ray's pickled objects", extension(b"ray.data.arrow_pickled_object"),
         Refused("has the extension type ray.data.arrow_pickled_object, expected a plain type")),
    ],
    "dataset": [
        ("odd texts", saved(text=ODD), list(ODD)),
        ("null and not UTF-8", saved(text=NOT_UTF8), ["good", Bad("not UTF-8"), Bad("null")]),
        ("10 MB rows", saved(text=[BIG.decode(), "a"]), [TOO_BIG, "a"]),
        ("offsets that lie", saved(text=lying_offsets()), [Bad("column 'text' is damaged: ")] * 3),
        ("cut off", damaged(saved(text=ODD), half, "data.arrow"), Refused("data.arrow: cannot be read as arrow")),
        ("junk", damaged(saved(text=ODD), lambda data: b"junk" * 20, "data.arrow"), Refused("cannot be read as arrow")),
        ("numbers", saved(text=[1]), Refused("column 'text' is int64")),
        ("a state that is not JSON", damaged(saved(text=ODD), half, "state.json"), Refused("state.json: is damaged")),
        ("a state without names", damaged(saved(text=ODD), lambda data: b"{}", "state.json"), Refused("is damaged")),
        ("a file elsewhere", damaged(saved(text=ODD), lambda data: data.replace(b"data.arrow", b"../data.arrow"),
                                     "state.json"), Refused("names a file that is not beside it, got '../data.arrow'")),
        ("splits that are none", splits, Refused("dataset_dict.json: is damaged")),
    ],
    "folder": [
        ("no files", folder(), Refused("no input files at")),
        ("files of no known kind", folder(a_md=b"text"), Refused("expected names ending in .parquet, ")),
        ("several formats", folder(a_txt=b"a", b_csv=b"text\n"), Refused("several formats (1 csv, 1 text)")),
        ("one file without the column", folder(a_csv=b"text\na\n", b_csv=b"words\nb\n"),
         Refused("b.csv: no column 'text'")),
        ("an empty file beside others", folder(a_jsonl=b"", b_jsonl=jsonl({"text": "b"})), ["b"]),
        ("mixed rows", folder(a_jsonl=jsonl({"n": 1}, {"text": "a"}, {"text": {"a": 1}})),
         [Bad("no column 'text'"), "a", Bad("text is dict")]),
    ],
}  # fmt: skip
ALL = [(ending, *case) for ending, cases in CASES.items() for case in cases]


def read(path: Path, **keys: Any) -> list[dict[str, Any]]:
    config = from_dict({"input": {"path": str(path), **keys}, "output": {"path": "unused", "rows_per_shard": 3}})
    plan = make_plan(config)
    rows: list[dict[str, Any]] = []
    for number, planned in enumerate(plan.files):
        part = plan.part(number)
        for _, shard in read_shards(part, source_of(config, planned.file), {s.index for s in part.shards()}):
            rows += shard.to_pylist()
    assert len(rows) == plan.rows
    return rows


@pytest.mark.parametrize(("ending", "name", "content", "outcome"), ALL, ids=[f"{c[0]}: {c[1]}" for c in ALL])
def test_what_bad_input_gets(
    tmp_path: Path, ending: str, name: str, content: bytes | Callable[[Path], object], outcome: Outcome
) -> None:
    path = tmp_path / ("in" if ending in ("dataset", "folder") else f"in.{ending}")
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    if isinstance(outcome, Refused):
        with pytest.raises(InputError, match=re.escape(outcome.said)) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        return
    rows = read(path)
    assert len({row["id"] for row in rows}) == len(rows) == len(outcome)
    for row, expected in zip(rows, outcome, strict=True):
        if isinstance(expected, Bad):
            assert row["text"] is None
            assert expected.said in row["error"]
        else:
            assert (row["text"], row["error"]) == (expected, None)


def test_a_damaged_row_group_keeps_its_ids(tmp_path: Path) -> None:
    damaged(groups, lambda data: data.replace(b"text3text3", b"text3xxxx3"))(tmp_path / "in.parquet")
    rows = read(tmp_path / "in.parquet", id_column="id")
    assert [row["id"] for row in rows] == [f"i{n}" for n in range(8)]
    damaged(groups, lambda data: data.replace(b"i3", b"xx"))(tmp_path / "in.parquet")
    rows = read(tmp_path / "in.parquet", id_column="id")
    assert [row["id"] for row in rows] == ["i0", "i1", "in.parquet:2", "in.parquet:3", "i4", "i5", "i6", "i7"]


def test_duplicated_and_hostile_ids_come_out_as_they_are(tmp_path: Path) -> None:
    ids = ["a", "a", "../../etc/passwd", "a\0b", "", "\u202e", "x" * 10_000]
    (tmp_path / "in.jsonl").write_bytes(jsonl(*[{"text": "t", "id": one} for one in ids]))
    assert [row["id"] for row in read(tmp_path / "in.jsonl", id_column="id")] == ids
    (tmp_path / "in.jsonl").write_bytes(jsonl({"text": "t", "id": "\ud800"}, {"text": "t", "id": "\ud801"}))
    assert [row["id"] for row in read(tmp_path / "in.jsonl", id_column="id")] == [r"\ud800", r"\ud801"]


def test_kept_columns_are_legible_or_their_rows_are_errors(tmp_path: Path) -> None:
    inside = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), NOT_UTF8)
    table(text=["a", "b", "c"], kept=NOT_UTF8)(tmp_path / "in.parquet")
    rows = read(tmp_path / "in.parquet", keep_columns=["kept"])
    assert [row["keep.kept"] for row in rows] == ["good", r"\xff", None]
    assert [row["error"] for row in rows] == [None, "column 'kept' is not UTF-8", None]
    table(text=["a", "b", "c"], kept=inside)(tmp_path / "in.parquet")
    rows = read(tmp_path / "in.parquet", keep_columns=["kept"])
    assert [row["error"] for row in rows] == [None, "column 'kept' is not UTF-8", None]
    assert [row["keep.kept"] for row in rows] == [["good"], None, [None]]


def test_names_of_files_that_are_not_unicode(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\udcff.jsonl").write_bytes(jsonl({"text": "a"}))
    assert [row["id"] for row in read(tmp_path / "in")] == [r"\udcff.jsonl:0"]


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_endless_lines_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(records, "LONGEST_LINE_BYTES", 100)
    whole = b'{"text": "a"}\n'
    (tmp_path / f"in.{ending}").write_bytes(whole + b"x" * 250 + b"\n" + whole + b"y" * 101)
    rows = read(tmp_path / f"in.{ending}")
    assert [row["error"] for row in rows] == [
        None,
        "line 2: has 251 bytes; expected at most 100",
        None,
        "line 4: has 101 bytes; expected at most 100",
    ]


def test_long_rows_are_parsed_a_few_at_a_time() -> None:
    half_piece = PIECE_BYTES // 2
    groups = records.grouped([half_piece, half_piece, 1, 1], lambda item: int(item))
    assert list(groups) == [[half_piece, half_piece], [1, 1]]


def test_a_crafted_parquet_runs_nothing(tmp_path: Path) -> None:
    """With Ray Data's types registered, a column of pickled objects is unpickled by whoever asks for its values."""
    import pickle

    import ray.data  # noqa: F401  (registers)
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType as Objects

    kind: Any = Objects()

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    with contextlib.suppress(pa.ArrowKeyError):
        pa.register_extension_type(kind)
    storage: Any = pa.array([pickle.dumps(Payload())], pa.large_binary())
    objects: Any = pa.ExtensionArray.from_storage(kind, storage)
    texts = pa.array(["a"])
    for columns, keys in (
        ({"text": objects}, {}),
        ({"text": texts, "id": objects}, {"id_column": "id"}),
        ({"text": texts, "kept": objects}, {"keep_columns": ["kept"]}),
    ):
        for path, write in ((tmp_path / "in.parquet", table(**columns)), (tmp_path / "in", saved(**columns))):
            write(path)
            with pytest.raises(InputError, match="extension type"):
                read(path, **keys)
            if path.is_dir():
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
    table(text=texts, other=objects)(tmp_path / "in.parquet")
    assert [row["text"] for row in read(tmp_path / "in.parquet")] == ["a"], "a column that nobody asked for"
    assert not (tmp_path / "ran").exists()
    objects.to_pylist()
    assert (tmp_path / "ran").exists(), "the payload is real"
