"""The end of a run is told, whatever it was, and stays what it was."""

import json
from pathlib import Path

import pytest

from jobs.main import Terminated, main

SECRET = "hunter2"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text("")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"input: {{path: {tmp_path}/in.jsonl}}\noutput: {{path: {tmp_path}/run}}\n"
        f"notify: {{command: 'cat > {tmp_path}/end.json # {SECRET}'}}\n"
    )
    return file


def ending(config_file: Path) -> tuple[str, int]:
    told = json.loads((config_file.parent / "end.json").read_text())
    return told["state"], told["exit_code"]


def test_a_run_without_rows_is_told_and_its_manifest_keeps_no_secret(config_file: Path) -> None:
    assert main(["run", str(config_file)]) == 0
    assert ending(config_file) == ("no rows", 0)
    told = json.loads((config_file.parent / "end.json").read_text())
    assert told["summary"] == json.loads((config_file.parent / "run" / "summary.json").read_text())
    manifest = (config_file.parent / "run" / "manifest.json").read_text()
    assert SECRET not in manifest
    assert json.loads(manifest)["config"]["notify"]["command"] == "set"
    assert json.loads(manifest)["config"]["notify"]["webhook"] is None


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (Terminated(), "interrupted", 143),
        (ValueError("odd"), "failed", 1),
    ],
)
def test_other_ends_are_told_with_the_exit_code_that_follows(
    config_file: Path, error: BaseException, state: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("cmasd.pipeline.run.look_at", fail)
    assert main(["run", str(config_file)]) == code
    assert ending(config_file) == (state, code)


def test_what_the_user_can_mend_is_told(config_file: Path) -> None:
    assert main(["run", str(config_file), "input.path=/nowhere"]) == 2
    assert ending(config_file) == ("failed", 2)


def test_failing_to_tell_changes_no_exit_code(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(config_file), "--quiet", f"notify.command=exit 9 # {SECRET}"]) == 0
    said = capsys.readouterr()
    assert said.err == "warning: notify.command: ended with 9; the run itself is not affected.\n"
    assert main(["run", str(config_file), "input.path=/nowhere", "notify.command=exit 9"]) == 2
    assert SECRET not in said.out


def test_a_malformed_webhook_is_refused_without_showing_it(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(config_file), f"notify.webhook=hooks/{SECRET}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: notify.webhook: must begin with https://")
    assert SECRET not in said


def test_an_address_may_come_from_the_environment(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmasd.config import load

    monkeypatch.setenv("HOOK", f"https://example.com/{SECRET}")
    for given in (load([config_file], ["notify.webhook=${oc.env:HOOK}"]), load([with_webhook(config_file)])):
        assert given.notify.webhook == f"https://example.com/{SECRET}"


def with_webhook(file: Path) -> Path:
    other = file.with_name("webhook.yaml")
    other.write_text(file.read_text().replace("notify: {", "notify: {webhook: '${oc.env:HOOK}', "))
    return other


def test_json_logs_leave_stdout_to_the_summary(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(config_file), "logging.format=json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == 0
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert [line["message"] for line in lines] == ["planned", "run no rows"]
    assert {line["run"] for line in lines} == {f"{config_file.parent}/run"}
    assert {(line["actor"], line["shard"]) for line in lines} == {("driver", None)}
    assert lines[-1]["exit_code"] == 0
