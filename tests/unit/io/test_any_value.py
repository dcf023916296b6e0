"""Any value that Arrow or JSON can hold, as id and as kept column, from a file to an output: right, or a row error."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.core import RowError
from cmasd.errors import InputError
from cmasd.io.formats.base import UNREADABLE
from cmasd.io.outputs import encode
from cmasd.io.plan import make_plan, source_of
from cmasd.io.shards import kept_columns, pack, read_shards, unpack
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.totals import Totals
from tests.unit.io.test_bad_input import saved
from tests.unit.io.test_formats import config

ROWS = 5
LARGEST = 2**63 - 1
UNITS: tuple[Literal["s", "ms", "us", "ns"], ...] = ("s", "ms", "us", "ns")
FIXED: list[pa.DataType] = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms")),
    *(pa.time64("us"), pa.time64("ns"), pa.binary(3), pa.month_day_nano_interval()),
    *(pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin", "+07:00", "Moon/Crater")),
    *(pa.duration(unit) for unit in UNITS),
    *(pa.decimal32(5, 2), pa.decimal64(9, -3), pa.decimal128(38, 10), pa.decimal128(3, 1), pa.decimal256(76, 5)),
]
TEXTS: list[pa.DataType] = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]


def chance(draw: Any) -> int:
    """Small numbers, the largest, and any."""
    numbers = st.integers(-9, 9), st.sampled_from([LARGEST, -LARGEST - 1]), st.integers(-LARGEST, LARGEST)
    return int(draw(st.one_of(numbers)))


def validity(draw: Any, rows: int) -> Any:
    return draw(st.sampled_from([None, pa.py_buffer(bytes([0b10110] * (1 + rows // 8)))]))


@st.composite
def fixed(draw: Any, rows: int = ROWS) -> Any:
    """Any bits at all in a type of fixed width."""
    kind = draw(st.sampled_from(FIXED))
    width = kind.bit_width // 8
    data = b"".join((chance(draw) % 2 ** (8 * width)).to_bytes(width, "little") for _ in range(rows))
    return pa.Array.from_buffers(kind, rows, [validity(draw, rows), pa.py_buffer(data)])


@st.composite
def texts(draw: Any, rows: int = ROWS) -> Any:
    """Any bytes, also where they should be UTF-8."""
    kind = draw(st.sampled_from(TEXTS))
    value = st.one_of(st.none(), st.binary(max_size=20), st.text(max_size=9).map(str.encode))
    values = draw(st.lists(value, min_size=rows, max_size=rows))
    if pa.types.is_string_view(kind):
        return pa.array(values, pa.binary_view()).view(kind)
    large = kind in (pa.large_string(), pa.large_binary())
    return pa.array(values, pa.large_binary() if large else pa.binary()).view(kind)


@st.composite
def nested(draw: Any, leaves: Any) -> Any:
    """Lists, structs, maps, dictionaries and unions of the leaves."""
    shape = draw(st.sampled_from(["list", "large", "fixed", "struct", "map", "dictionary", "union", "runs", "deep"]))
    offsets: Any = pa.array([0, 2, 2, 3, 3, 5], pa.int32())
    keys: Any = pa.array(list("abcde"))
    one = draw(leaves)
    if shape in ("list", "deep"):
        lists = pa.ListArray.from_arrays(offsets, one)
        return pa.StructArray.from_arrays([lists, draw(leaves)], ["a", "b"]) if shape == "deep" else lists
    if shape == "large":
        return pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), one)
    if shape == "fixed":
        return pa.FixedSizeListArray.from_arrays(one, 1)
    if shape == "struct":
        return pa.StructArray.from_arrays([one, draw(leaves)], ["a", "b"])
    if shape == "map":
        return pa.MapArray.from_arrays(offsets, keys, one)
    if shape == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array([4, None, 0, 0, 2], pa.int8()), one)
    if shape == "union":
        return pa.UnionArray.from_sparse(pa.array([0, 1, 0, 1, 0], pa.int8()), [one, draw(leaves)])
    return pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4, 5], pa.int32()), pa.array(range(ROWS)))


SPECIAL = st.sampled_from(
    [
        pa.nulls(ROWS),
        pa.array([True, None, False, True, True]),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes([n] * 16) for n in range(ROWS)], pa.binary(16))),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "[", None, "1", '"a"'])),
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None, 1, 7], pa.int8())),
        pa.array([{}] * ROWS, pa.struct([])),
    ]
)
LEAVES = st.one_of(fixed(), texts())
ARRAYS = st.one_of(LEAVES, nested(LEAVES), SPECIAL)


def write(path: Path, column: Any, dataset: bool) -> Any:
    """The column as it is in the file; null where such a file cannot be written, or not be read by Arrow."""
    content = {"text": ["t"] * len(column), "x": column}
    if dataset:
        saved(**content)(path)
        return column
    try:
        pq.write_table(pa.table(content), path)
        return pq.read_table(path)["x"].combine_chunks()
    except UNREADABLE:
        return None


def through(path: Path, **keys: Any) -> tuple[pa.Table, pa.Table]:
    """(the rows as read, the output file read back)."""
    asked = config(path, **keys)
    plan = make_plan(asked)
    ((_, rows),) = read_shards(plan.part(0), source_of(asked, plan.files[0].file), {0})
    done = [Row(str(one), RowError("read", ""), None) for one in rows["id"].to_pylist()]
    table = record(done, "none", kept_columns(unpack(pack(rows))))
    return rows, pq.read_table(io.BytesIO(encode([table], Totals.of(table))))


def printed(column: Any, row: int) -> str:
    """One value as Arrow prints it, dictionaries aside."""
    return str(
        column.slice(row, 1).dictionary_decode() if pa.types.is_dictionary(column.type) else column.slice(row, 1)
    )


def check(column: Any, dataset: bool, keys: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("in" if dataset else "in.parquet")
        column = write(path, column, dataset)
        if column is None:
            return
        try:
            rows, output = through(path, **keys)
        except InputError as error:
            said = str(error)
            assert "which Parquet cannot hold" in said
            return
    assert output.num_rows == ROWS
    assert rows["id"].null_count == 0
    errors = rows["error"].to_pylist()
    assert rows["text"].to_pylist() == [None if error else "t" for error in errors]
    if "keep_columns" in keys:
        for row in range(ROWS):
            if errors[row] is None:
                assert printed(rows["keep.x"].combine_chunks(), row) == printed(column, row)


KEYS = st.sampled_from([{"id_column": "x"}, {"keep_columns": ["x"]}])


@settings(max_examples=60)
@given(column=ARRAYS, dataset=st.booleans(), keys=KEYS)
def test_comes_out_right_or_is_a_row_error(column: Any, dataset: bool, keys: dict[str, Any]) -> None:
    check(column, dataset, keys)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=1500)
@given(column=ARRAYS, dataset=st.booleans(), keys=KEYS)
def test_comes_out_right_or_is_a_row_error_in_many(column: Any, dataset: bool, keys: dict[str, Any]) -> None:
    check(column, dataset, keys)


TIMES = [
    (pa.timestamp("us"), 253402300800 * 10**6, "253402300800000000"),
    (pa.timestamp("s"), LARGEST, str(LARGEST)),
    (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
    (pa.timestamp("us", "UTC"), -LARGEST, str(-LARGEST)),
    (pa.timestamp("us"), 0, "1970-01-01 00:00:00"),
    (pa.date32(), 2**31 - 1, str(2**31 - 1)),
    (pa.duration("s"), LARGEST, str(LARGEST)),
]


@pytest.mark.parametrize(("kind", "value", "text"), TIMES, ids=str)
def test_ids_that_are_times_beyond_python(tmp_path: Path, kind: Any, value: int, text: str) -> None:
    data = b"".join(one.to_bytes(kind.bit_width // 8, "little", signed=True) for one in (0, value))
    saved(text=["t", "t"], x=pa.Array.from_buffers(kind, 2, [None, pa.py_buffer(data)]))(tmp_path / "in")
    rows, _ = through(tmp_path / "in", id_column="x")
    first, second = rows["id"].to_pylist()
    assert second == text
    assert first in ("1970-01-01 00:00:00", "1970-01-01 00:00:00+00:00", "1970-01-01", "0:00:00")
    assert rows["error"].null_count == 2


def test_a_kept_time_that_parquet_cannot_hold_is_the_error_of_its_row_alone(tmp_path: Path) -> None:
    column = pa.array([1, LARGEST, None], pa.int64()).view(pa.timestamp("s"))
    saved(text=["t"] * 3, x=column)(tmp_path / "in")
    rows, output = through(tmp_path / "in", keep_columns=["x"])
    errors = rows["error"].to_pylist()
    assert (errors[0], errors[2]) == (None, None)
    assert str(errors[1]).startswith(
        "column 'x' cannot be kept: Integer overflow when casting timestamp value 9223372036"
    )
    assert output["x"].cast(pa.int64()).to_pylist() == [1000, None, None]


def test_a_type_that_parquet_has_not_is_refused_before_anything_starts(tmp_path: Path) -> None:
    saved(text=["t"], x=pa.array([(1, 2, 3)], pa.month_day_nano_interval()))(tmp_path / "in")
    with pytest.raises(InputError, match=r"'x' is month_day_nano_interval, which Parquet cannot hold\. Leave it out"):
        make_plan(config(tmp_path / "in", keep_columns=["x"]))
    assert make_plan(config(tmp_path / "in", id_column="x")).rows == 1, "as an id it has a text"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=60)
@given(values=st.lists(JSON, min_size=1, max_size=6))
def test_any_json_value(values: list[Any]) -> None:
    """Of a column whose type may be that of the first row, or of all."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_text("".join(json.dumps({"text": "t", "x": value}) + "\n" for value in values))
        for keys in ({"id_column": "x"}, {"keep_columns": ["x"]}):
            rows, output = through(path, **keys)
            assert output.num_rows == len(values)
            assert rows["id"].null_count == 0
            assert rows["text"].to_pylist() == [None if error else "t" for error in rows["error"].to_pylist()]


def test_a_json_number_that_no_float_can_hold_is_a_row_error(tmp_path: Path) -> None:
    numbers = [0.5, 10**400, 3, -(10**400)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": "t", "x": one}) + "\n" for one in numbers))
    rows, _ = through(tmp_path / "in.jsonl", keep_columns=["x"])
    assert rows["keep.x"].to_pylist() == [0.5, None, 3.0, None]
    errors = [error for error in rows["error"].to_pylist() if error]
    assert len(errors) == 2
    assert errors[0].startswith("line 2: column 'x' is 1000000")
    assert errors[0].endswith("..., expected a 64-bit floating-point number")
