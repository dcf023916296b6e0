"""`cmasd report`: where the page goes, and what is printed."""

import json
from pathlib import Path

import pytest

from cmasd.io.run_folder import RunFolder
from jobs.main import main
from tests.unit.reports.synthetic import make_run


@pytest.fixture
def address(tmp_path: Path) -> str:
    return make_run(tmp_path, telemetry={"level": "iteration"})


def test_the_page_goes_into_the_run(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = json.loads(lines[-1])
    assert said["signatures"] == ["rollback", "failed-rows"]
    assert said["report"] == f"{address}/report.html"
    assert lines[0].startswith("problem: Many drafts are rolled back.")
    assert Path(said["report"]).read_text().startswith("<!DOCTYPE html>")
    assert main(["status", address]) == 0, "the page is not taken for something else"
    assert main(["report", address]) == 0, "a page is replaced"


def test_or_to_a_file(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert main(["report", address, "--output", str(target)]) == 0
    assert f"report  {target}" in capsys.readouterr().out
    assert not (Path(address) / "report.html").exists()
    assert main(["report", address, "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "--output: no such folder" in capsys.readouterr().err


def test_remote_runs_have_it_beside_their_outputs(tmp_path: Path) -> None:
    address = make_run(tmp_path, "memory://reports/run", rows=40, telemetry={"level": "none"})
    assert main(["report", address]) == 0
    folder = RunFolder(address)
    assert b"40 of 40 rows" in folder.storage.read(f"{folder.storage.root}/report.html")


def test_no_run_is_the_users_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
