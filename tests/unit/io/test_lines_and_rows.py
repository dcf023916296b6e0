"""Lines against rows: which lines are rows of their own, who is told when some are not, and which line is named."""

from pathlib import Path

import pytest

from cmasd.io.runs import look_at
from jobs.tables import plan_table
from tests.unit.io.test_formats import config, read, texts

QUOTES = b'text\tn\n"one\t1\ntwo\t2\nthree"\t3\nfour\t4\nfive\t5\n'


@pytest.mark.parametrize(
    ("name", "quote", "expected", "joined", "in_quotes"),
    [
        ("in.tsv", "auto", ['"one', "two", 'three"', "four", "five"], 0, 0),
        ("in.tsv", "none", ['"one', "two", 'three"', "four", "five"], 0, 0),
        ("in.tsv", "double", ["one\t1\ntwo\t2\nthree", "four", "five"], 2, 0),
        ("in.csv", "auto", ["one,1\ntwo,2\nthree", "four", "five"], 2, 0),
        ("in.csv", "double", ["one,1\ntwo,2\nthree", "four", "five"], 2, 0),
        ("in.csv", "none", ['"one', "two", 'three"', "four", "five"], 0, 0),
    ],
)
def test_a_quote_joins_lines_only_where_quotes_quote(
    tmp_path: Path, name: str, quote: str, expected: list[str], joined: int, in_quotes: int
) -> None:
    data = QUOTES if name.endswith("tsv") else QUOTES.replace(b"\t", b",")
    (tmp_path / name).write_bytes(data)
    plan, rows = read(config(tmp_path / name, quote=quote, keep_columns=["n"]))
    assert texts(rows) == expected
    assert [row["keep.n"] for row in rows] == ["1", "2", "3", "4", "5"][-len(expected) :]
    assert (plan.files[0].count.joined, plan.files[0].count.in_quotes) == (joined, in_quotes)
    said = f"{name}: 2 line(s) were joined to the line before by quoted fields, which leaves 3 row(s). If quotes are "
    assert plan.notices == ([said + "plain characters, set input.quote=none."] if joined else [])


def test_every_line_is_a_row_or_was_joined_to_one(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'text,n\r\n"a\r\nb\nc",1\r\n\r\nd,2\r"e\n\n",3\n"""f""\n""",4')
    plan, rows = read(config(tmp_path / "in.csv"))
    assert texts(rows) == ["a\r\nb\nc", "d", "e\n\n", '"f"\n"']
    header, blank, joined = 1, 1, 2 + 2 + 1
    assert plan.files[0].count.joined == joined
    assert len((tmp_path / "in.csv").read_bytes().splitlines()) == header + blank + joined + plan.rows


def test_quotes_that_enclose_fields_of_tabs_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text('text\tn\n"one"\t1\ntwo\t"2"\nthree\t3\n')
    asked = config(tmp_path / "in.tsv")
    plan, rows = read(asked)
    assert texts(rows) == ['"one"', "two", "three"]
    (notice,) = plan.notices
    assert notice.startswith("in.tsv: 2 row(s) have fields between quotes, which were read as plain characters.")
    assert texts(read(config(tmp_path / "in.tsv", quote="double"))[1]) == ["one", "two", "three"]


def test_blank_lines_that_may_be_empty_values_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('text\na\n\n""\n\nb\n\n\n')
    plan, rows = read(config(tmp_path / "in.csv"))
    assert texts(rows) == ["a", "", "b"]
    assert plan.notices == ['in.csv: 2 blank line(s) of one column are no rows. Write an empty value as "".']
    (tmp_path / "in.csv").write_text("text,n\na,1\n\n")
    assert read(config(tmp_path / "in.csv"))[0].notices == []


def test_carriage_returns_that_may_be_line_ends_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"a\rb\r\nc\r\nd\r")
    plan, rows = read(config(tmp_path / "in.txt"))
    assert texts(rows) == ["a\rb", "c", "d"]
    (notice,) = plan.notices
    assert notice.startswith("in.txt: 1 carriage return(s) inside lines end no line, which leaves 3 row(s). ")
    assert notice.endswith("replace them: tr '\\r' '\\n'.")


def test_the_plan_shows_and_the_manifest_keeps_what_was_joined(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("text\nd\n" if name == "b.csv" else 'text\n"a\nb"\n')
    asked = config(f"{tmp_path}/*.csv")
    run = look_at(asked)
    (notice,) = run.plan.notices
    assert notice.startswith("a.csv and 1 more file(s): 2 line(s) were joined to the line before")
    assert f"\nnotice: {notice}" in plan_table(asked, run)
    assert [entry["joined"] for entry in run.plan.to_dict()["files"]] == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "data", "lines"),
    [
        (
            "in.jsonl",
            b'{"text": "a"}\n\n{"text": null}\n \r\n{broken\n{"n": 1}',
            {1: "line 3: ", 2: "line 5: ", 3: "line 6: "},
        ),
        ("in.jsonl", b'\xef\xbb\xbf{"text": 1}\r\n{"text": "a"}\r\n[]\r\n', {0: "line 1: ", 2: "line 3: "}),
        ("in.csv", b'text,n\n"a\nb",1\n\nc\nd,2\ne\n', {1: "line 5: ", 3: "line 7: "}),
        ("in.txt", b"a\n\n\xff\nb\n\xff", {2: "line 3: ", 4: "line 5: "}),
    ],
)
def test_errors_name_the_line_that_an_editor_shows(
    tmp_path: Path, name: str, data: bytes, lines: dict[int, str]
) -> None:
    (tmp_path / name).write_bytes(data)
    _, rows = read(config(tmp_path / name))
    assert {number: row["error"][:8] for number, row in enumerate(rows) if row["error"]} == lines


def test_what_is_wrong_with_json_is_told_by_its_column(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b" "n": 1}\n{"text": "c"} {}\n')
    _, rows = read(config(tmp_path / "in.jsonl"))
    assert [row["error"] for row in rows[1:]] == [
        "line 2: is not JSON (Expecting ',' delimiter at column 14)",
        "line 3: is not JSON (Extra data at column 15)",
    ]
