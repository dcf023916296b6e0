"""Every input format: rows, ids, kept columns, and what is wrong with bad rows."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.config import Config, from_dict
from cmasd.errors import InputError
from cmasd.io.plan import Plan, make_plan, source_of
from cmasd.io.shards import read_shards


def config(path: Path | str, **input_keys: Any) -> Config:
    output = {"path": "unused", "rows_per_shard": input_keys.pop("rows_per_shard", None)}
    return from_dict({"input": {"path": str(path), **input_keys}, "output": output})


def read(config: Config) -> tuple[Plan, list[dict[str, Any]]]:
    plan = make_plan(config)
    rows: list[dict[str, Any]] = []
    for number, planned in enumerate(plan.files):
        part = plan.part(number)
        for shard, table in read_shards(part, source_of(config, planned.file), {s.index for s in part.shards()}):
            assert table.num_rows == shard.rows
            rows += table.to_pylist()
    assert len(rows) == plan.rows
    return plan, rows


def texts(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["text"] for row in rows]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_with_bad_rows(tmp_path: Path) -> None:
    lines = [
        b'{"text": "one"}',
        b"",
        b"{not json",
        b'{"text": null}',
        b'{"text": 5}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"other": 1}',
        b'{"text": "\\ud800"}',
        b'{"text": "last"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    plan, rows = read(config(tmp_path / "in.jsonl"))
    assert plan.rows == 9
    assert texts(rows) == ["one", None, None, None, None, None, None, None, "last"]
    errors = [row["error"] for row in rows]
    assert errors[0] is errors[8] is None
    said = [
        "not JSON",
        "text is null",
        "text is int, expected a string: 5",
        "not an object",
        "not UTF-8",
        "no column 'text'",
        "not valid Unicode",
    ]
    for error, part in zip(errors[1:8], said, strict=True):
        assert part in error
    assert [row["id"] for row in rows] == [f"in.jsonl:{row}" for row in range(9)]


def test_jsonl_kept_columns_have_one_type_and_misfits_are_row_errors(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "n": 1, "x": 1, "t": "s", "d": {"k": 1}, "b": True},
        {"text": "b", "n": 2, "x": 0.5, "t": 3, "b": None},
    ]
    rows += [{"text": "filler", "n": 0}] * 1000 + [{"text": "c", "n": "three", "x": 2, "b": 1}]
    _, read_rows = read(config(write_jsonl(tmp_path / "in.jsonl", rows), keep_columns=["n", "x", "t", "d", "b"]))
    first, second, last = read_rows[0], read_rows[1], read_rows[-1]
    assert (first["keep.n"], first["keep.x"], first["keep.t"], first["keep.d"], first["keep.b"]) == (
        1,
        1.0,
        "s",
        '{"k": 1}',
        True,
    )
    assert (second["keep.x"], second["keep.t"], second["keep.d"]) == (0.5, "3", None)
    assert last["error"] == "line 1003: column 'n' is 'three', expected int64 as in the first rows"
    assert last["keep.x"] == 2.0


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "ndjson"])
def test_jsonl_endings(tmp_path: Path, ending: str) -> None:
    data = b'{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / f"in.{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert texts(read(config(tmp_path / f"in.{ending}"))[1]) == ["one", "two"]


def test_ids_from_a_column_with_a_default_for_null(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "in.jsonl", [{"text": "a", "key": 7}, {"text": "b", "key": None}, {"text": "c", "key": "k"}]
    )
    assert [row["id"] for row in read(config(path, id_column="key"))[1]] == ["7", "in.jsonl:1", "k"]


def test_parquet_types_survive_and_strings_that_are_not_utf8_are_row_errors(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"\xff", None], pa.binary()).buffers())
    when = pa.array([1, 2, 3], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": ["x", "y", "z"], "src": text, "when": when}), tmp_path / "in.parquet")
    plan, rows = read(config(tmp_path, text_column="src", id_column="id", keep_columns=["when"]))
    assert texts(rows) == ["good", None, None]
    assert [row["id"] for row in rows] == ["x", "y", "z"]
    assert "not UTF-8" in rows[1]["error"]
    assert plan.spec.keep.field("when").type == pa.timestamp("ns")


def test_parquet_skips_row_groups_without_unfinished_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [str(i) for i in range(100)]}), tmp_path / "in.parquet", row_group_size=17)
    asked = config(tmp_path / "in.parquet", rows_per_shard=10)
    plan = make_plan(asked)
    shards = dict(read_shards(plan.part(0), source_of(asked, plan.files[0].file), {2, 9}))
    assert [(shard.start, shard.stop) for shard in shards] == [(20, 30), (90, 100)]
    assert [table["text"].to_pylist() for table in shards.values()] == [
        [str(i) for i in range(20, 30)],
        [str(i) for i in range(90, 100)],
    ]


def test_csv_with_quotes_newlines_and_bad_records(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbfid,text\n1,"a, ""b""\nc"\n2,caf\xc3\xa9\n3\n4,\xff\n5,\n')
    _, rows = read(config(tmp_path / "in.csv", id_column="id"))
    assert texts(rows) == ['a, "b"\nc', "caf\u00e9", None, None, ""]
    assert rows[2]["error"] == "line 5: record has 1 fields, the header 2"
    assert "not valid Unicode" in rows[3]["error"]
    assert [row["id"] for row in rows] == ["1", "2", "in.csv:2", "4", "5"]


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("text\tn\na,b\t1\n")
    assert texts(read(config(tmp_path / "in.tsv"))[1]) == ["a,b"]


def test_text_keeps_blank_lines_so_that_lines_and_rows_agree(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"one\r\n\ntwo \xff\nthree")
    _, rows = read(config(tmp_path / "in.txt", text_column="whatever"))
    assert texts(rows) == ["one", "", None, "three"]


def test_save_to_disk_folder_and_split(tmp_path: Path) -> None:
    import datasets

    rows = {"text": [f"row {i}" for i in range(7)], "n": list(range(7))}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "plain", num_shards=2)
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "splits")
    plan, read_rows = read(config(tmp_path / "plain", keep_columns=["n"], rows_per_shard=3))
    assert texts(read_rows) == rows["text"]
    assert [row["keep.n"] for row in read_rows] == rows["n"]
    assert len(plan.files) == 2
    assert texts(read(config(tmp_path / "splits", split="test"))[1]) == rows["text"]
    with pytest.raises(InputError, match=r"no split 'train' \(has: test\)"):
        make_plan(config(tmp_path / "splits"))


def test_dataset_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "named").mkdir()
    write_jsonl(tmp_path / "named" / "train.jsonl", [{"text": f"row {i}", "n": i} for i in range(5)])
    asked = config(tmp_path / "named", format="datasets", keep_columns=["n"], rows_per_shard=2)
    plan, rows = read(asked)
    assert plan.format == "hub"
    assert texts(rows) == [f"row {i}" for i in range(5)]
    assert [row["keep.n"] for row in rows] == list(range(5))


def test_a_named_dataset_is_known_by_more_than_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    from cmasd.io.formats.huggingface import load, stamp

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "named").mkdir()
    rows = [{"text": f"row {i}"} for i in range(50)]
    path = write_jsonl(tmp_path / "named" / "train.jsonl", rows)
    first = stamp(f"{tmp_path}/named@train")
    load.cache_clear()
    assert stamp(f"{tmp_path}/named@train") == first
    load.cache_clear()
    write_jsonl(path, [*rows[:25], {"text": "new 25"}, *rows[26:]])
    os.utime(path, (7, 7))
    assert stamp(f"{tmp_path}/named@train") != first
    load.cache_clear()


def test_folders_are_searched_and_files_named_by_their_path(tmp_path: Path) -> None:
    for folder in ("a", "b", "_hidden", ".tmp"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "in.jsonl", [{"text": folder}])
    (tmp_path / "notes.md").write_text("not input")
    _, rows = read(config(tmp_path))
    assert [(row["id"], row["text"]) for row in rows] == [("a/in.jsonl:0", "a"), ("b/in.jsonl:0", "b")]
    assert texts(read(config(f"{tmp_path}/?/*.jsonl"))[1]) == ["a", "b"]


def test_ids_do_not_depend_on_shard_size(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": str(i)} for i in range(50)])
    by_size = [read(config(path, rows_per_shard=size))[1] for size in (1, 7, 50, 99)]
    assert all(rows == by_size[0] for rows in by_size)


@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        ({}, {}, "no input files"),
        (
            {"in.jsonl": '{"src": "a", "n": 1}\n'},
            {},
            r"in.jsonl: no column 'text' \(has: src, n\). Set input.text_column.",
        ),
        ({"in.jsonl": '{"text": "a"}\n'}, {"id_column": "key"}, r"no column 'key' \(has: text\). Set input.id_column."),
        ({"in.jsonl": '{"text": "a"}\n'}, {"keep_columns": ["k"]}, "Set input.keep_columns."),
        ({"in.jsonl": '{"text": "a", "output": 1}\n'}, {"keep_columns": ["output"]}, "has a column 'output' already"),
        ({"in.json": '[{"text": "a"}]'}, {}, "starts with a JSON array"),
        ({"a.jsonl": "{}", "b.csv": "text\n"}, {}, r"several formats \(1 csv, 1 jsonl\)"),
        ({"in.parquet": "no parquet"}, {}, "in.parquet: cannot be read as parquet"),
        ({"in.jsonl.gz": "no gzip"}, {}, "in.jsonl.gz: cannot be read as jsonl"),
    ],
)
def test_what_cannot_be_planned(tmp_path: Path, files: dict[str, str], keys: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        make_plan(config(tmp_path, **keys))


def test_a_column_of_another_type_cannot_be_planned(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet: column 'text' is int64, expected strings"):
        make_plan(config(tmp_path))


def test_an_unknown_ending_needs_a_format(tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="ending does not tell its format"):
        make_plan(config(tmp_path / "in.dat"))
    assert texts(read(config(tmp_path / "in.dat", format="jsonl"))[1]) == ["a"]


def test_an_empty_input_is_an_empty_plan(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    assert make_plan(config(tmp_path / "in.jsonl")).rows == 0
