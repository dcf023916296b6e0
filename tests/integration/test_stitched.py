"""A whole run of policy `stitch`: who said what, from the columns to the summary, the closing table and the report."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cmasd.reports.evidence import gather
from cmasd.reports.page import content
from cmasd.reports.signatures import signatures
from cmasd.signals import FROM_DRAFT, FROM_SMALL, FROM_VERIFIER
from jobs.main import main
from tests.integration.conftest import SENTENCES


def stitched(folder: Path, pair: Path, *overrides: str) -> Path:
    """A run's folder."""
    rows: list[dict[str, Any]] = [{"text": SENTENCES[i % 6], "n": i} for i in range(24)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "input": {"path": str(folder / "in.jsonl"), "keep_columns": ["n"]},
        "output": {"path": str(folder / "run"), "rows_per_shard": 8},
        "models": {"verifier": str(pair / "verifier"), "drafter": str(pair / "drafter"), "dtype": "float64"},
        "engine": {"slots": 4, "max_new_tokens": 12},
        "policy": {"kind": "stitch"},
        "stitch": {"tau": 0.5},
        "actors": {"local": True},
    }
    (folder / "run.json").write_text(json.dumps(config))
    assert main(["run", str(folder / "run.json"), *overrides]) == 0
    return folder / "run"


def entropies(folder: Path, pair: Path) -> list[float]:
    """Over ln V, of the large model alone."""
    alone = stitched(folder, pair, "stitch.tau=0")
    rows = [row for path in (alone / "outputs").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert json.loads((alone / "summary.json").read_text())["lossless"] == "exact"
    assert {source for row in rows for source in row["token_source"]} == {FROM_VERIFIER}
    return sorted(1 - value for row in rows for value in row["token_entropy"])


@pytest.mark.parametrize("speculate", [False, True])
def test_who_said_what_is_told_everywhere(
    tmp_path: Path, pair: Path, capsys: pytest.CaptureFixture[str], speculate: bool
) -> None:
    (tmp_path / "alone").mkdir()
    alone = entropies(tmp_path / "alone", pair)
    capsys.readouterr()
    tau = f"stitch.tau={alone[len(alone) // 2]:.6f}"
    folder = stitched(tmp_path, pair, tau, f"stitch.speculate={str(speculate).lower()}", "baseline.rows=8")
    rows = [row for path in (folder / "outputs").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    sources = [source for row in rows for source in row["token_source"]]
    small = sources.count(FROM_SMALL)
    assert 0 < small < len(sources)
    assert (FROM_DRAFT in sources) == speculate
    for row in rows:
        assert row["num_small_tokens"] == row["token_source"].count(FROM_SMALL)
        assert (row["mean_gap_nats"] is None) == (row["num_small_tokens"] > 0)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["small_tokens"], summary["lossless"]) == (small, "lossy")
    assert summary["switches"] == sum(row["num_switches"] for row in rows) > 0
    assert any("policy.kind=stitch with stitch.tau=" in notice for notice in summary["notices"])
    said = capsys.readouterr().out
    assert f"small model           {small / len(sources):.1%} of the tokens" in said
    assert "lossless              lossy" in said
    evidence = gather(str(folder))
    shown = content(evidence, signatures(evidence))
    assert ("Said by the small model", f"{small / len(sources):.1%}") in [card[:2] for card in shown["cards"]]
    speakers = {token.speaker for row in shown["samples"] for token in row.tokens}
    assert {"small model", "verifier"} <= speakers <= {"small model", "verifier", "draft"}
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert 'class="small"' in page
    assert "the small model's own" in page
    assert "nan" not in page.split('<h2 id="samples">')[1].split("</section>")[0]


def test_a_report_of_one_model_names_no_other(tmp_path: Path, pair: Path) -> None:
    folder = stitched(tmp_path, pair, "stitch.tau=0")
    assert main(["report", str(folder)]) == 0
    assert "small model" not in (folder / "report.html").read_text()
