"""A report on a real run, and the README's queries on its outputs."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmasd.config import from_dict
from cmasd.pipeline.cluster import start_local
from cmasd.pipeline.run import run
from cmasd.reports.evidence import gather
from cmasd.reports.shown import shown_rows
from jobs.main import main
from tests.integration.conftest import SENTENCES

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Path:
    """A run of 60 rows, two of them bad, whose random models draft for each other."""
    import ray

    folder = tmp_path_factory.mktemp("reported")
    rows: list[dict[str, Any]] = [{"text": SENTENCES[i % 6], "n": i} for i in range(58)] + [{"text": None, "n": -1}] * 2
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = from_dict(
        {
            "input": {"path": str(folder / "in.jsonl"), "keep_columns": ["n"]},
            "output": {"path": str(folder / "runs" / "my_corpus"), "rows_per_shard": 10},
            "models": {"verifier": str(pair / "verifier"), "drafter": str(pair / "drafter"), "dtype": "float64"},
            "engine": {"slots": 8, "max_new_tokens": 8},
            "policy": {"kind": "fixed"},
            "limits": {"max_failed_fraction": 0.1},
            "actors": {"count": 2},
            "cost": {"accelerator_per_hour": 3.0},
        }
    )
    start_local(logging.CRITICAL, num_cpus=2)
    try:
        run(config)
    finally:
        ray.shutdown()
    return folder


def test_the_audit_of_a_real_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows are plain decoding's; a row that was changed afterwards is found."""
    address = finished / "runs" / "my_corpus"
    assert main(["audit", str(address), "--rows", "29", "--json"]) == 0
    *_, line, said = capsys.readouterr().out.splitlines()
    assert line.startswith("29 rows, 0 algorithmic differences, 0 near-ties; compared by t")
    assert json.loads(said)["found"] == []
    spoilt = shutil.copytree(address, tmp_path / "spoilt")
    [first, *_] = sorted((spoilt / "outputs").glob("*.parquet"))
    table = pq.read_table(first)
    column = table.schema.get_field_index("token_id")
    tokens: list[Any] = table.column(column).to_pylist()
    tokens[0] = tokens[0][::-1] + tokens[0]
    pq.write_table(table.set_column(column, table.field(column), pa.array(tokens, table.field(column).type)), first)
    assert main(["audit", str(spoilt), "--json"]) == 1
    *_, said = capsys.readouterr().out.splitlines()
    assert [one["cause"] for one in json.loads(said)["found"]] == ["algorithmic"]


def test_rows_are_shown_with_their_sources(finished: Path) -> None:
    manifest = json.loads((finished / "runs" / "my_corpus" / "manifest.json").read_text())
    config = from_dict(manifest["config"])
    assert shown_rows(config, 60) == [], "unless asked for"
    rows = shown_rows(replace(config, output=replace(config.output, show_rows=5)), 60)
    assert len(rows) == 5
    assert {source for source, _ in rows} <= set(SENTENCES)


def test_the_report_of_a_real_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = finished / "runs" / "my_corpus"
    assert main(["report", str(address)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "failed-rows" in said["signatures"]
    root = ElementTree.fromstring((address / "report.html").read_text())
    shown = " ".join(" ".join(root.itertext()).split())
    for text in ("Complete. 60 of 60 rows, 6 of 6 shards.", "2 failed", "price of an actor-hour 3", "read: "):
        assert text in shown
    charts = {figure.attrib["id"] for figure in root.iter("figure")}
    assert {"chart-by-position", "chart-reliability", "chart-actors"} <= charts
    outputs = {"".join(p.itertext()).strip() for p in root.iter("p") if p.get("class") == "tokens"}
    assert len(outputs) > 1, "rows are split by the run's own tokenizer"


def test_each_shard_says_who_wrote_it_and_in_what_time(finished: Path) -> None:
    evidence = gather(str(finished / "runs" / "my_corpus"))
    timings = [shard.timing for shard in evidence.shards]
    assert len(timings) == 6
    assert all(timing and timing.seconds > 0 and timing.started_at > 1.7e9 for timing in timings)
    assert 1 <= len({timing.actor for timing in timings if timing}) <= 2


def queries() -> list[str]:
    """Statements of the README's SQL."""
    blocks = re.findall(r"^```sql\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [statement for block in blocks for statement in block.split(";") if statement.strip()]


def test_acceptance_in_the_summary_is_what_the_report_says(finished: Path) -> None:
    folder = finished / "runs" / "my_corpus"
    evidence, summary = gather(str(folder)), json.loads((folder / "summary.json").read_text())
    by_position, by_confidence = (summary["acceptance"][of] for of in ("position", "confidence"))
    _, judged, accepted = evidence.iterations.by_position()
    assert [one["judged"] for one in by_position] == judged[judged > 0].tolist()
    assert [one["accepted"] for one in by_position] == accepted[judged > 0].tolist()
    sample = evidence.sample(evidence.score_in_force)
    assert sample is not None
    assert sum(one["judged"] for one in by_confidence) == sample.size > 100
    assert sum(one["accepted"] for one in by_confidence) == sample.accepted_J.sum()
    assert all(one["share"] == round(one["accepted"] / one["judged"], 4) for one in by_confidence)


def test_the_queries_of_the_readme(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They answer: rows by what was drafted in vain, most first."""
    import duckdb

    monkeypatch.chdir(finished)
    with duckdb.connect() as database:
        answers = [database.execute(statement).fetchall() for statement in queries()]
    [worst] = answers[1:]
    losses = [row[1] for row in worst]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0
