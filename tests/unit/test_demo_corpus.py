"""The demo corpus is what its README says: distinct sentences of bounded length in two registers."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "demo"
ROWS = [json.loads(line) for line in (FOLDER / "sentences.jsonl").read_text(encoding="utf-8").splitlines()]


def test_rows_have_an_id_and_a_text() -> None:
    assert {tuple(row) for row in ROWS} == {("id", "text")}
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_sentences_are_distinct_and_clean() -> None:
    texts = [row["text"] for row in ROWS]
    assert len({text.casefold() for text in texts}) == len(texts)
    assert [text for text in texts if text != " ".join(text.split()) or text[-1] not in ".?!"] == []
    assert [text for text in texts if not 3 <= len(text.split()) <= 35] == []


def test_counts_are_those_of_the_readme() -> None:
    registers = [row["id"].split("-")[0] for row in ROWS]
    everyday, technical = registers.count("everyday"), registers.count("technical")
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    for claim in (f"{len(ROWS)} distinct", f"{everyday} of everyday", f"{technical} of plain"):
        assert claim in said
    assert len(ROWS) >= 600
