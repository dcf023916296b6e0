"""Columns of messages in every format: JSON text in the common table, or a row error that names what is wrong."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.errors import ConfigError, InputError
from cmasd.io.formats import huggingface
from cmasd.messages import conversation
from tests.unit.io.test_any_value import ARRAYS, ROWS
from tests.unit.io.test_any_value import write as write_column
from tests.unit.io.test_bad_input import saved
from tests.unit.io.test_formats import config, read, write_jsonl
from tests.unit.io.test_mutated_input import mutated

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Und mal drei? ö"},
]
BAD = [{"role": "robot", "content": "x"}]
BATCH = [
    {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": value}}
    for n, value in enumerate([TURNS, BAD, None, "hi"])
]
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])


def conversations(rows: list[dict[str, Any]]) -> list[Any]:
    return [None if row["text"] is None else conversation(row["text"]) for row in rows]


def test_a_batch_file_of_openai(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [*BATCH, {"custom_id": "r4", "body": {}}, {"custom_id": "r5"}, 3])
    asked = config(file, messages_column="body.messages", id_column="custom_id", keep_columns=["url"])
    _, rows = read(asked)
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3", "r4", "r5", "in.jsonl:6"]
    assert conversations(rows) == [TURNS, *[None] * 6]
    assert [row["error"] for row in rows[1:]] == [
        "line 2: message 1 has the role 'robot', expected one of system, developer, user, assistant, tool",
        "line 3: messages are null",
        "line 4: messages are text but not JSON (Expecting value at character 0)",
        "line 5: no column 'body.messages' in this row",
        "line 6: no column 'body.messages' in this row",
        "line 7: is JSON but not an object: 3",
    ]
    assert [row["keep.url"] for row in rows[:4]] == ["/v1/chat/completions"] * 4


@pytest.mark.parametrize("kind", [pa.list_(MESSAGE), pa.large_list(MESSAGE), pa.list_(MESSAGE, 4)], ids=str)
@pytest.mark.parametrize("dataset", [False, True])
def test_a_typed_column(tmp_path: Path, kind: Any, dataset: bool) -> None:
    column = pa.array([TURNS, [*TURNS[:3], {"role": "user"}], None], kind)
    if dataset:
        saved(messages=column, key=[5, 6, 7])(tmp_path / "in")
    else:
        pq.write_table(pa.table({"messages": column, "key": [5, 6, 7]}), tmp_path / "in")
    format = "datasets" if dataset else "parquet"
    _, rows = read(config(tmp_path / "in", format=format, messages_column="messages", id_column="key"))
    assert [row["id"] for row in rows] == [5, 6, 7]
    assert conversations(rows) == [TURNS, None, None]
    assert [row["error"] for row in rows] == [None, "message 4 of role user has no content", "messages are null"]


@pytest.mark.parametrize("dataset", [False, True])
def test_a_column_inside_another(tmp_path: Path, dataset: bool) -> None:
    body = pa.array([{"messages": TURNS}, None, {"messages": TURNS[:2]}], pa.struct([("messages", pa.list_(MESSAGE))]))
    table = {"custom_id": ["a", "b", "c"], "body": body}
    saved(**table)(tmp_path / "in") if dataset else pq.write_table(pa.table(table), tmp_path / "in")
    keys: dict[str, Any] = {"format": "datasets" if dataset else "parquet", "id_column": "custom_id"}
    _, rows = read(config(tmp_path / "in", messages_column="body.messages", keep_columns=["body"], **keys))
    assert conversations(rows) == [TURNS, None, TURNS[:2]]
    assert rows[1]["error"] == "messages are null"
    assert rows[0]["keep.body"]["messages"][1]["content"] == "2 + 2?"
    with pytest.raises(InputError, match=r"column 'body' has no 'body.message' inside. Set input.messages_column"):
        read(config(tmp_path / "in", messages_column="body.message", **keys))
    with pytest.raises(InputError, match=r"no column 'mesages' \(has: custom_id, body\).* Set input.messages_column"):
        read(config(tmp_path / "in", messages_column="mesages", **keys))


def test_a_name_with_a_dot_comes_first(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"a.b": TURNS, "a": {"b": BAD}}, {"a": {"b": TURNS}}])
    assert conversations(read(config(tmp_path / "in.jsonl", messages_column="a.b"))[1]) == [TURNS, TURNS]


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    loaded = datasets.Dataset.from_dict({"messages": [TURNS, BAD], "n": [1, 2]})
    monkeypatch.setattr(huggingface, "load", lambda path: loaded)
    _, rows = read(config("owner/chats", format="datasets", messages_column="messages", keep_columns=["n"]))
    assert conversations(rows) == [TURNS, None]
    assert [row["keep.n"] for row in rows] == [1, 2]


def test_json_as_text_in_any_format(tmp_path: Path) -> None:
    text = json.dumps(TURNS)
    pq.write_table(pa.table({"m": [text, "no"]}), tmp_path / "in.parquet")
    (tmp_path / "in.txt").write_text(f"{text}\nno\n")
    (tmp_path / "in.csv").write_text('m\n"' + text.replace('"', '""') + '"\nno\n')
    for name in ("in.parquet", "in.txt", "in.csv"):
        _, rows = read(config(tmp_path / name, messages_column="m"))
        assert conversations(rows) == [TURNS, None]
        assert "messages are text but not JSON" in rows[1]["error"]


def test_long_conversations_are_row_errors(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"m": [{"role": "user", "content": "x" * 100}]}, {"m": TURNS[1:2]}])
    _, rows = read(config(tmp_path / "in.jsonl", messages_column="m", max_text_bytes=99))
    assert rows[0]["error"] == "line 1: text has 133 bytes; expected at most 99 (input.max_text_bytes)"
    assert rows[1]["error"] is None


def test_one_message_that_is_not_utf8_spares_other_rows(tmp_path: Path) -> None:
    contents = pa.array([b"one", b"\xff", b"three"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, contents.buffers())
    structs = pa.StructArray.from_arrays([pa.array(["user"] * 3), texts], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), structs)
    saved(m=column)(tmp_path / "in")
    pq.write_table(pa.table({"m": column}), tmp_path / "in.parquet")
    for name, format in (("in", "datasets"), ("in.parquet", "parquet")):
        _, rows = read(config(tmp_path / name, format=format, messages_column="m"))
        assert [row["text"] is not None for row in rows] == [True, False, True]
        assert rows[1]["error"] == "the content of message 1 is not UTF-8 (byte 0)"


@settings(max_examples=60, deadline=None)
@given(column=ARRAYS, dataset=st.booleans())
def test_any_column_gives_messages_or_row_errors_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, column: Any, dataset: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / ("in" if dataset else "in.parquet")
    if write_column(path, column, dataset) is None:
        return
    try:
        _, rows = read(config(path, messages_column="x", id_column="text"))
    except InputError as error:
        said = str(error)
        assert "expected lists of messages" in said or "extension type" in said
        return
    assert len(rows) == ROWS
    assert all((row["text"] is None) == (row["error"] is not None) for row in rows)
    assert all(row["error"].isprintable() for row in rows if row["error"])


def test_files_with_changed_bytes(tmp_path: Path) -> None:
    rows = [{"custom_id": f"r{n}", "body": {"messages": TURNS[: 2 + 2 * (n % 2)]}} for n in range(9)]
    content = write_jsonl(tmp_path / "good.jsonl", rows).read_bytes()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "good.parquet", compression="none", row_group_size=4)
    for seed in range(60):
        name = ("in.jsonl", "in.parquet")[seed % 2]
        data = content if name == "in.jsonl" else (tmp_path / "good.parquet").read_bytes()
        (tmp_path / name).write_bytes(mutated(data, random.Random(seed)))
        try:
            _, found = read(config(tmp_path / name, messages_column="body.messages", id_column="custom_id"))
        except InputError:
            continue
        assert all((row["text"] is None) == (row["error"] is not None) for row in found)
        assert all(row["error"].isprintable() for row in found if row["error"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"messages_column": "m", "template": "Say {text}"}, r"input\.template: is for texts, got 'Say \{text\}'"),
        ({"system": "Be kind."}, r"input\.system: is of conversations, got 'Be kind\.' with texts"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], message: str) -> None:
    from cmasd.config.rules import check

    with pytest.raises(ConfigError, match=message):
        check(config("in.jsonl", **keys))
