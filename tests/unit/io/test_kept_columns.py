"""Kept columns over files that differ as data do: one type for all, null where missing, values that do not fit."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.errors import InputError
from cmasd.io.plan import make_plan
from tests.unit.io.test_bad_input import saved
from tests.unit.io.test_formats import config, read

WORDS = pa.array(["a", "b", None])


def write(folder: Path, **columns: Any) -> None:
    """A file for each column, by its name, with the column `n`; null: a file without that column."""
    for name, column in columns.items():
        rows = {"text": [name] * (3 if column is None else len(column))}
        folder.mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table(rows if column is None else {**rows, "n": column}), folder / f"{name}.parquet")


@pytest.mark.parametrize(
    ("first", "second", "kind", "values"),
    [
        (pa.nulls(2), pa.array([1, 2], pa.int8()), pa.int8(), [None, None, 1, 2]),
        (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64(), [1, 2**40]),
        (pa.array([2**40]), pa.array([1], pa.int32()), pa.int64(), [2**40, 1]),
        (pa.array([1.5]), pa.array([2]), pa.float64(), [1.5, 2.0]),
        (pa.array([2]), pa.array([1.5], pa.float32()), pa.float64(), [2.0, 1.5]),
        (WORDS, WORDS.cast(pa.large_string()), pa.large_string(), ["a", "b", None] * 2),
        (WORDS, WORDS.cast(pa.string_view()), pa.large_string(), ["a", "b", None] * 2),
        (WORDS, WORDS.dictionary_encode(), pa.string(), ["a", "b", None] * 2),
        (WORDS, WORDS.cast(pa.binary()), pa.binary(), [b"a", b"b", None] * 2),
        (pa.array([[1]], pa.list_(pa.int32())), pa.array([[2**40]]), pa.list_(pa.int64()), [[1], [2**40]]),
        (pa.array([{"a": 1}]), pa.array([{"b": 2}]), pa.struct([("a", pa.int64()), ("b", pa.int64())]),
         [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        (pa.array([True]), None, pa.bool_(), [True, None, None, None]),
        (None, pa.array(["x"]), pa.string(), [None, None, None, "x"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_type_that_can_hold_all(
    tmp_path: Path, first: Any, second: Any, kind: pa.DataType, values: list[Any]
) -> None:
    write(tmp_path, a=first, b=second)
    plan, rows = read(config(tmp_path, keep_columns=["n"]))
    assert plan.spec.keep.field("n").type == kind
    assert [row["keep.n"] for row in rows] == values
    assert {row["error"] for row in rows} == {None}


def test_a_column_that_some_files_lack_is_told(tmp_path: Path) -> None:
    write(tmp_path, a=None, b=pa.array([1]), c=None)
    asked = config(tmp_path, keep_columns=["n"])
    assert make_plan(asked).notices == ["a.parquet and 1 more file(s): no column 'n', which is null there."]
    assert [entry["missing"] for entry in make_plan(asked).to_dict()["files"]] == [["n"], [], ["n"]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": None, "b": None}, r"a\.parquet: no column 'n' \(has: text\)\. Set input\.keep_columns\."),
        ({"a": pa.array([1]), "b": WORDS}, r"'n' has several types \(int64 in a\.parquet, string in b\.parquet\)"),
    ],
)
def test_what_has_no_type_is_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(InputError, match=message):
        make_plan(config(tmp_path, keep_columns=["n"]))


def test_a_file_without_rows_decides_nothing(tmp_path: Path) -> None:
    write(tmp_path, a=pa.array([], pa.string()), b=pa.array([1, 2]))
    assert make_plan(config(tmp_path, keep_columns=["n"])).spec.keep.field("n").type == pa.int64()


def test_values_that_the_common_type_cannot_hold_are_row_errors(tmp_path: Path) -> None:
    write(tmp_path, a=pa.array([0.5]), b=pa.array([1, 2**53 + 1, 3]))
    _, rows = read(config(tmp_path, keep_columns=["n"]))
    assert [row["keep.n"] for row in rows] == [0.5, 1.0, None, 3.0]
    said = "column 'n' is 9007199254740993, expected a value that double can hold"
    assert [row["error"] for row in rows] == [None, None, said, None]


def test_files_of_saved_datasets_may_lack_a_column_too(tmp_path: Path) -> None:
    saved(text=["a", "b"])(tmp_path / "in")
    with pytest.raises(InputError, match=r"data\.arrow: no column 'n'"):
        make_plan(config(tmp_path / "in", keep_columns=["n"]))
    (tmp_path / "in" / "state.json").write_text(
        '{"_data_files": [{"filename": "data.arrow"}, {"filename": "b.arrow"}]}'
    )
    table = pa.table({"n": [7], "text": ["c"]})
    with pa.OSFile(str(tmp_path / "in" / "b.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert [row["keep.n"] for row in read(config(tmp_path / "in", keep_columns=["n"]))[1]] == [None, None, 7]


@pytest.mark.parametrize(
    ("first", "second", "kind", "values"),
    [
        ([1], [1.5], pa.float64(), [1.0, 1.5]),
        ([None], [1], pa.int64(), [None, 1]),
        ([None], [None], pa.string(), [None, None]),
        ([1], ["x"], pa.string(), ["1", "x"]),
        ([True], [1], pa.string(), ["true", "1"]),
        ([{"a": 1}], [2], pa.string(), ['{"a": 1}', "2"]),
    ],
    ids=str,
)
def test_json_files_share_a_type_as_rows_of_one_file_do(
    tmp_path: Path, first: list[Any], second: list[Any], kind: pa.DataType, values: list[Any]
) -> None:
    for name, column in (("a", first), ("b", second)):
        lines = "".join(json.dumps({"text": "t", "n": value}) + "\n" for value in column)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    plan, rows = read(config(tmp_path, keep_columns=["n"]))
    assert plan.spec.keep.field("n").type == kind
    assert [row["keep.n"] for row in rows] == values
    assert {row["error"] for row in rows} == {None}


def test_columns_that_csv_files_lack_are_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na,1\n")
    (tmp_path / "b.csv").write_text("n,x,text\n2,y,b\n")
    _, rows = read(config(tmp_path, keep_columns=["x", "n"]))
    assert [(row["text"], row["keep.x"], row["keep.n"]) for row in rows] == [("a", None, "1"), ("b", "y", "2")]


class TestFolders:
    """Columns that the names of folders give."""

    @pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "txt"])
    def test_their_values_are_kept(self, tmp_path: Path, ending: str) -> None:
        for folder in ("year=2024/lang=de", "year=2025/lang=pt%2Dbr", "year=2025/lang=__HIVE_DEFAULT_PARTITION__"):
            path = tmp_path / folder / f"in.{ending}"
            path.parent.mkdir(parents=True)
            if ending == "parquet":
                pq.write_table(pa.table({"text": ["t"]}), path)
            else:
                path.write_text({"jsonl": '{"text": "t"}\n', "csv": "text\nt\n", "txt": "t\n"}[ending])
        plan, rows = read(config(tmp_path, keep_columns=["year", "lang"]))
        assert [field.type for field in plan.spec.keep] == [pa.int64(), pa.string()]
        expected = [(2024, "de"), (2025, None), (2025, "pt-br")]
        assert [(row["keep.year"], row["keep.lang"]) for row in rows] == expected
        assert {row["error"] for row in rows} == {None}
        assert plan.notices == []
        plan, rows = read(config(tmp_path / "year=2024", keep_columns=["year"]))
        assert [row["keep.year"] for row in rows] == [2024], "the folder that is read may be one of them"

    def test_text_that_a_number_would_change_stays_text(self, tmp_path: Path) -> None:
        for month in ("09", "10"):
            write(tmp_path / f"month={month}", a=None)
        _, rows = read(config(tmp_path, keep_columns=["month"]))
        assert {row["keep.month"] for row in rows} == {"09", "10"}

    def test_the_files_own_column_goes_first(self, tmp_path: Path) -> None:
        write(tmp_path / "n=1", a=pa.array([5], pa.int32()))
        write(tmp_path / "n=2", a=None)
        plan, rows = read(config(tmp_path, keep_columns=["n"]))
        assert plan.spec.keep.field("n").type == pa.int64()
        assert [row["keep.n"] for row in rows] == [5, 2, 2, 2]

    def test_a_damaged_row_keeps_them(self, tmp_path: Path) -> None:
        (tmp_path / "n=3").mkdir()
        (tmp_path / "n=3" / "in.jsonl").write_text('{"text": "a"}\n{broken\n')
        assert [row["keep.n"] for row in read(config(tmp_path, keep_columns=["n"]))[1]] == [3, 3]
