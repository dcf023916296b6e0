"""`cmasd tune`: tables, a sentence, a configuration that loads, and one JSON line that says it all."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from cmasd.config import load
from jobs.main import main
from jobs.records import command
from jobs.tune import DEFAULTS, OPTIONS, elsewhere, register
from tests.unit.jobs.test_compare import folder, overrides

__all__ = ["folder"]


def test_a_configuration_is_found_measured_and_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed (extra `tune`)")
    record, written, trials = (tmp_path / name for name in ("record.json", "tuned.yaml", "trials.log"))
    files = ["--record", str(record), "--write", str(written), "--storage", str(trials)]
    limits = ["--seconds", "1.0", "--trials", "2", "--rows", "2", "--max-draft-tokens", "3"]
    arguments = ["tune", *limits, "--references", "german", *files, *overrides(folder)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    assert json.loads(record.read_text()) == read
    assert sorted(shlex.split(read["command"])) == sorted(["cmasd", *arguments])
    assert [row["engine"] for row in read["results"][:3]] == ["plain", "as configured", "tuned, exact"]
    exact = [row for row in read["results"] if row["lossless"] == "exact"]
    assert {(row["exact_match_to_plain"], row["mean_gap_nats_per_token"]) for row in exact} == {(1.0, 0.0)}
    assert read["results"][2]["tried"]["knobs"]["max_draft_tokens"] <= 3
    assert all(row["bleu_to_references"] is not None for row in read["results"])
    assert (read["search"]["rows"], read["search"]["decoded"], read["search"]["pruned"]) == (2, 1, 1)
    assert read["said"] in lines
    assert trials.exists()
    config, own = load([written]), load([], overrides(folder))
    chosen = {"plain": "plain", "as configured": own.policy.kind}.get(read["chosen"], "paper")
    assert (config.policy.kind, config.input, config.engine) == (chosen, own.input, own.engine)
    assert written.read_text().splitlines()[1] == f"# {read['said']}"
    assert (config.output.path, own.output.path) == (f"{folder / 'run'}-tuned", str(folder / "run"))
    assert not list(folder.glob("run*")), "tuning writes no run"


@pytest.mark.parametrize("path", ["runs/demo", "runs/demo/", "s3://bucket/runs/demo"])
def test_a_tuned_run_goes_elsewhere(path: str) -> None:
    config = load([], ["input.path=x", f"output.path={path}"])
    assert elsewhere(config).output.path == f"{path.rstrip('/')}-tuned"
    assert elsewhere(config).input == config.input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--write", "no/such/tuned.yaml"], "--write: no such folder, got no/such"),
        (["--storage", "no/such/trials.log"], "--storage: no such folder, got no/such"),
        (["--max-draft-tokens", "1", "drafter.min_draft_tokens=2"], "--max-draft-tokens: must be at least drafter.min"),
        (["drafter.kind=lookup"], "drafter.kind: must be model, parallel, self or quantised"),
    ],
)
def test_what_the_user_can_fix(options: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed (extra `tune`)")
    assert main(["tune", *overrides(folder), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seconds", "--trials", "--rows", "--max-draft-tokens"])
def test_numbers_are_checked(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", f"{option}=0", "input.path=x"])
    assert ended.value.code == 2
    assert "must be greater than 0, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "run.yaml",
        "run.yaml --quick --max-gap 0.05 --references de --threads 2 --plot a.png --record b.json engine.slots=3",
        "run.yaml --seconds 9.5 --trials 7 --rows 8 --max-draft-tokens 5 --seed 3 --storage t.log --write w.yaml",
    ],
)
def test_the_command_means_the_same(line: str) -> None:
    parser = argparse.ArgumentParser()
    register(parser)
    args = parser.parse_intermixed_args(line.split())
    again = command(args, "tune", OPTIONS, DEFAULTS).split()[2:]
    assert parser.parse_intermixed_args(again) == args
