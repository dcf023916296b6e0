"""Integer ids stay integers, where every row of every file has one; else all ids are text."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.core import RowError
from cmasd.io.outputs import encode
from cmasd.io.plan import make_plan
from cmasd.io.runs import look_at
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.schema import output_schema
from cmasd.telemetry.totals import Totals
from tests.unit.io.test_bad_input import jsonl, saved
from tests.unit.io.test_formats import config, read
from tests.unit.io.test_runs import finish


def files(folder: Path, *columns: Any, **options: Any) -> Path:
    for number, column in enumerate(columns):
        pq.write_table(pa.table({"text": ["t"] * len(column), "key": column}), folder / f"{number}.parquet", **options)
    return folder


def ids(path: Path) -> tuple[pa.DataType, list[Any]]:
    plan, rows = read(config(path, id_column="key"))
    assert {row["error"] for row in rows} == {None}
    return plan.spec.id_type, [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        ([pa.array([3, 3, -(2**63)])], pa.int64(), [3, 3, -(2**63)]),
        ([pa.array([2**64 - 1], pa.uint64())], pa.uint64(), [2**64 - 1]),
        ([pa.array([1], pa.int8())], pa.int8(), [1]),
        ([pa.array([1], pa.int32()), pa.array([2**40])], pa.int64(), [1, 2**40]),
        ([pa.array([1]), pa.array([], pa.string())], pa.int64(), [1]),
        ([pa.array([1]), pa.array([2**64 - 1], pa.uint64())], pa.string(), ["1", str(2**64 - 1)]),
        ([pa.array([1, None])], pa.string(), ["1", "0.parquet:1"]),
        ([pa.array([1]), pa.array([2, None])], pa.string(), ["1", "2", "1.parquet:1"]),
        ([pa.array([1]), pa.array(["b"])], pa.string(), ["1", "b"]),
        ([pa.array([1.0])], pa.string(), ["1.0"]),
        ([pa.array([True])], pa.string(), ["True"]),
    ],
    ids=lambda value: "".join(str(value).split())[-12:] if isinstance(value, pa.DataType) else f"{len(value)}",
)
def test_of_parquet(tmp_path: Path, columns: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    assert ids(files(tmp_path, *columns)) == (kind, expected)


def test_of_parquet_without_statistics_it_is_not_known(tmp_path: Path) -> None:
    assert ids(files(tmp_path, pa.array([1, 2]), write_statistics=False)) == (pa.string(), ["1", "2"])


def test_the_statistics_of_a_nested_column_of_that_name_say_nothing(tmp_path: Path) -> None:
    rows = {"s": [{"key": None}, {"key": 1}], "text": ["t", "t"], "key": [5, 6]}
    pq.write_table(pa.table(rows), tmp_path / "in.parquet")
    assert ids(tmp_path) == (pa.int64(), [5, 6])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 2], pa.int64(), [1, 2]),
        ([1, 2**63], pa.string(), ["1", str(2**63)]),
        ([1, None], pa.string(), ["1", "in.jsonl:1"]),
        ([1] * 1500 + ["x"], pa.string(), ["1"] * 1500 + ["x"]),
        ([1, True], pa.string(), ["1", "true"]),
        ([1, 2.0], pa.string(), ["1", "2.0"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_of_jsonl(tmp_path: Path, values: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(*[{"text": "t", "key": value} for value in values]))
    assert ids(tmp_path / "in.jsonl") == (kind, expected)


def test_of_jsonl_with_a_line_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "t", "key": 1}\n{broken\n')
    assert [row["id"] for row in read(config(tmp_path / "in.jsonl", id_column="key"))[1]] == ["1", "in.jsonl:1"]


def test_of_csv_they_are_text_as_all_is(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,key\nt,007\n")
    assert ids(tmp_path / "in.csv") == (pa.string(), ["007"])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([4, 5], pa.int32()), (pa.int32(), [4, 5])),
        (pa.array([4, None]), (pa.string(), ["4", "data.arrow:1"])),
    ],
    ids=["integers", "with a null"],
)
def test_of_datasets(tmp_path: Path, column: Any, expected: Any) -> None:
    saved(text=["t", "t"], key=column)(tmp_path / "in")
    assert ids(tmp_path / "in") == expected


def test_a_damaged_row_group_keeps_them_or_names_the_row(tmp_path: Path) -> None:
    texts, keys = pa.array([f"text{n}" * 5 for n in range(4)]), pa.array([7, 8, 9, 10])

    def write(path: Path) -> None:
        options: Any = {"row_group_size": 2, "compression": "none", "use_dictionary": False}
        pq.write_table(pa.table({"key": keys, "text": texts}), path, write_page_checksum=True, **options)

    for lost, found in ((b"text3text3", [7, 8, 9, 10]), ((9).to_bytes(8, "little"), [7, 8, None, None])):
        write(tmp_path / "in.parquet")
        data = (tmp_path / "in.parquet").read_bytes()
        (tmp_path / "in.parquet").write_bytes(data.replace(lost, b"x" * len(lost)))
        plan, rows = read(config(tmp_path / "in.parquet", id_column="key"))
        assert (plan.spec.id_type, [row["id"] for row in rows]) == (pa.int64(), found)
        place = "" if found[2] else "in.parquet:2: "
        assert rows[2]["error"].startswith(f"{place}row group 1 cannot be read: ")
        assert [row["error"] for row in rows[:2]] == [None, None]


def test_they_are_integers_in_the_output(tmp_path: Path) -> None:
    done = [Row(2**40, RowError("read", "x"), None), Row(None, RowError("read", "y"), None)]
    table = record(done, "token", id_type=pa.int64())
    assert table.schema.equals(output_schema("token", id_type=pa.int64()), check_metadata=True)
    output = pq.read_table(io.BytesIO(encode([table], Totals.of(table))))
    assert output["id"].type == pa.int64()
    assert output["id"].to_pylist() == [2**40, None]


def test_a_later_start_keeps_the_type(tmp_path: Path) -> None:
    files(tmp_path, pa.array(range(9), pa.int32()))
    asked = config(tmp_path / "0.parquet", id_column="key", rows_per_shard=4)
    asked = type(asked)(input=asked.input, output=type(asked.output)(f"{tmp_path}/run", 4))
    run = look_at(asked)
    run.folder.start(asked, run.plan, {})
    finish(run.folder, next(run.plan.shards()))
    again = look_at(asked)
    assert not again.is_new
    assert again.plan == run.plan == make_plan(asked)
    assert again.plan.spec.id_type == pa.int32()
