"""Verbs, exit codes and messages; help and plan stay light."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.main import VERBS, available, main, parse, parser
from jobs.progress import clock, progress_line
from jobs.tables import baseline_table, summary_table, table

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    file = tmp_path / "run.yaml"
    file.write_text(f"input:\n  path: {tmp_path}/in.jsonl\noutput:\n  path: {tmp_path}/run\n")
    return file


def output(arguments: list[str]) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def imported(code: str) -> set[str]:
    """Modules in memory after `code`, in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint('MODULES', *sys.modules)"
    return set(output(["-c", program]).split("MODULES")[1].split())


def test_help_and_plan_import_neither_torch_nor_ray(config_file: Path) -> None:
    heavy = {"torch", "ray", "transformers", "datasets"}
    plan = f"from jobs.main import main\nassert main(['plan', {str(config_file)!r}]) == 0"
    assert not heavy & imported(plan)
    modules = imported("from jobs.main import parser\nparser(None).format_help()")
    assert not (heavy | {"omegaconf", "pyarrow", "numpy"}) & modules
    assert not heavy & imported("from jobs.main import parser\nparser('run').format_help()")


def test_help_is_quick() -> None:
    """Of its own time: what the interpreter and its site packages take to start is not ours."""
    clock = "time.process_time()"
    program = f"import time; t = {clock}\nfrom jobs.main import parser\nparser(None).format_help()\nprint({clock} - t)"
    assert min(float(output(["-c", program])) for _ in range(3)) < 0.3


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in available())
    assert {"run", "plan", "status"} <= set(available()) <= set(VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("cmasd 0.")


def test_python_m_jobs() -> None:
    assert "VERB" in output(["-m", "jobs", "--help"])


def test_print_config_reads_back(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(config_file), "engine.slots=7", "--print-config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(first)
    assert main(["run", str(tmp_path / "printed.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == first
    assert "slots: 7" in first


def test_plan_says_what_is_to_do_and_writes_nothing(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config_file), "output.rows_per_shard=1"]) == 0
    text = capsys.readouterr().out
    assert "2 total, 0 done, 2 to do" in text
    assert "in.jsonl" in text
    assert not (config_file.parent / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan", "CONFIG", "engine.slot=3"], "error: engine.slot: unknown key. Did you mean engine.slots?"),
        (["plan", "nothing.yaml"], "error: nothing.yaml: no such configuration file."),
        (
            ["run", "CONFIG", "input.text_column=src"],
            "error: in.jsonl: no column 'src' (has: text). Set input.text_column.",
        ),
        (["run", "CONFIG", "input.path=/nowhere/*.jsonl"], "error: input.path: no input files at /nowhere/*.jsonl"),
        (["status", "/nowhere"], "error: /nowhere: is not a run folder"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    config_file: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("CONFIG", str(config_file)) for word in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_debug_shows_the_traceback(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config_file), "engine.slot=3", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "nothing was kept. Start again with: cmasd plan"),
        (ValueError("odd\nmore"), 1, "error: ValueError: odd (--debug shows where)"),
    ],
)
def test_signals_and_surprises(
    config_file: Path,
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("cmasd.io.runs.look_at", fail)
    assert main(["plan", str(config_file)]) == code
    assert message in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_resume(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cmasd.pipeline.run.look_at", fail)
    assert main(["run", str(config_file), "engine.slots=2"]) == 130
    said = capsys.readouterr().err
    assert said == f"interrupted; finished shards are kept. Resume with: cmasd run {config_file} engine.slots=2\n"


def test_an_empty_input_is_a_run_without_rows_or_ray(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config_file.parent / "in.jsonl").write_text("")
    started = time.monotonic()
    assert main(["run", str(config_file)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["rows"] == 0
    assert "notice: The input has no rows: 1 file(s), all without any.\n" in out
    assert time.monotonic() - started < 30
    assert main(["status", str(config_file.parent / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "no rows"
    assert main(["status", str(config_file.parent / "run")]) == 0
    assert "no rows" in capsys.readouterr().out
    assert main(["plan", str(config_file)]) == 0
    assert "would run        nothing: there are no rows\n" in capsys.readouterr().out
    assert main(["report", str(config_file.parent / "run")]) == 0
    capsys.readouterr()
    assert main(["compact", str(config_file.parent / "run")]) == 0
    assert capsys.readouterr().out == "0 files -> 0; 0 rows in new merged files\n"


def test_a_sample_that_takes_nothing_says_so(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config_file.parent / "in.jsonl").write_text('{"text": "a"}\n' * 70)
    said = (
        "notice: input.sample=1e-06 takes none of 3 shard(s), hence none of 70 rows. "
        "Raise it, or lower output.rows_per_shard.\n"
    )
    for verb in ("plan", "run"):
        assert main([verb, str(config_file), "input.sample=0.000001"]) == 0
        assert said in capsys.readouterr().out
    assert main(["status", str(config_file.parent / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "no rows"


def test_tables_align() -> None:
    assert table([["a", "1"], ["bbb", "22"]], ["", "n"]) == "      n\n---  --\na     1\nbbb  22"
    text = baseline_table(
        {
            "rows": 9,
            "ar_tokens_per_second": 100.0,
            "tokens_per_second": 150.0,
            "speedup": 1.5,
            "speedup_low": 1.4,
            "speedup_high": 1.6,
            "tokens_per_iteration": 2.0,
            "acceptance_rate": 0.5,
            "exact_match": 1.0,
        }
    )
    for part in (
        "tokens/s",
        "speed-up",
        "tokens per iteration",
        "acceptance rate",
        "exact-match to AR",
        "1.50 (1.40-1.60)",
        "100.0%",
    ):
        assert part in text


def test_the_summary_table_shows_cost_only_when_priced() -> None:
    from cmasd.config import from_dict
    from cmasd.pipeline.summary import summarise
    from cmasd.telemetry.totals import Totals

    for price in (None, 2.0):
        config = from_dict({"input": {"path": "i"}, "output": {"path": "o"}, "cost": {"accelerator_per_hour": price}})
        assert ("cost" in summary_table(summarise(config, Totals(), [], 0, None, []))) == (price is not None)


def test_progress_lines() -> None:
    from cmasd.pipeline.tally import Progress

    line = progress_line(Progress(200, 50, 1, 65.0, 1234.5, 2.5, 0.75, 195.0))
    assert line.startswith("50/200 rows (25%), 1,234 tokens/s, acceptance 75.0%, 2.50 tokens/iteration, 1 errors, ")
    assert line.endswith("1:05 elapsed, ETA 3:15")
    assert clock(3725) == "1:02:05"


def test_overrides_may_follow_options() -> None:
    top = parser("plan")
    args = parse(top, ["plan", "a.yaml", "input.path=in", "--debug", "output.path=out"])
    assert args.overrides == ["input.path=in", "output.path=out"]
    with pytest.raises(SystemExit):
        parse(top, ["plan", "a.yaml", "--debgu", "output.path=out"])
