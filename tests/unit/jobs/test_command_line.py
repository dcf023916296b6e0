"""Verbs, exit codes and messages; help and plan stay light."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.main import VERBS, available, main, parse, parser
from jobs.progress import clock, progress_line
from jobs.tables import baseline_table, rows_table, summary_table, table

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
    heavy = {"torch", "ray", "transformers", "datasets", "scipy", "sklearn"}
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


def test_no_verb_is_help_and_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: cmasd")
    assert all(verb in said.err for verb in available())


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_no_help_loads_arrays_or_shows_python(verb: str | None) -> None:
    """Help that loads Arrow or numpy takes half a second, and needs neither to say what options there are."""
    code = f"from jobs.main import parser\ntext = parser({verb!r}).format_help()"
    if verb is not None:
        code = f"from jobs.main import main\ntry:\n    main([{verb!r}, '--help'])\nexcept SystemExit:\n    pass"
    program = f"{code}\nimport sys\nprint('MODULES', *sys.modules)"
    said, modules = output(["-c", program]).split("MODULES")
    assert not {"torch", "ray", "transformers", "datasets", "omegaconf", "pyarrow", "numpy", "rich"} & {
        *modules.split()
    }
    assert not any(sign in said for sign in ("('", "['", "{'", "<class", "None"))


def test_on_a_terminal_the_json_line_comes_when_asked_for(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (config_file.parent / "in.jsonl").write_text("")
    shown = {}
    for terminal, option in ((True, []), (True, ["--json"]), (True, ["--quiet"]), (False, [])):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        assert main(["run", str(config_file), *option]) == 0
        said = capsys.readouterr()
        shown[terminal, *option] = [line for line in said.out.splitlines() if line.startswith("{")]
        assert ("0 rows in 1 file(s)" in said.err) == (option != ["--quiet"]), "progress is on stderr"
        assert "0 rows in 1 file(s)" not in said.out
    assert {key: len(lines) for key, lines in shown.items()} == {
        (True,): 0,
        (True, "--json"): 1,
        (True, "--quiet"): 1,
        (False,): 1,
    }
    kept = json.loads((config_file.parent / "run" / "summary.json").read_text())
    assert json.loads(shown[True, "--json"][0]) == kept


def test_an_output_that_lacks_letters_shows_them_otherwise(tmp_path: Path) -> None:
    """Latin-1 has no Japanese; what is printed stays JSON all the same."""
    (tmp_path / "in.jsonl").write_text("")
    command = [
        sys.executable,
        "-m",
        "jobs",
        "run",
        f"input.path={tmp_path}/in.jsonl",
        f"output.path={tmp_path}/größe日本",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("latin-1").splitlines()[-1])["output"] == f"{tmp_path}/größe日本"
    assert f"{tmp_path}/größe\\u65e5\\u672c/outputs" in done.stdout.decode("latin-1")


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
    baseline = {
        "rows": 9,
        "ar_tokens_per_second": 100.0,
        "tokens_per_second": 150.0,
        "speedup": 1.5,
        "speedup_low": 1.4,
        "speedup_high": 1.6,
        "drafted_tokens": 8,
        "tokens_per_iteration": 2.0,
        "acceptance_rate": 0.5,
        "exact_match": 1.0,
        "near_ties": 2,
        "algorithmic": 0,
    }
    idle = baseline_table({**baseline, "drafted_tokens": 0, "acceptance_rate": None, "exact_match": 0.9999})
    assert idle.splitlines()[-2].split() == ["-", "CM-ASD", "150", "same", "decoding", "2.00", "-", "99.9%"]
    beside = {"tokens_per_second": 40.0, "speedup": 0.4, "speedup_low": 0.38, "speedup_high": 0.43, "exact_match": 1.0}
    first = baseline_table({**baseline, "hf_generate": beside}).splitlines()[3]
    assert first.split() == ["-", "HF", "generate", "40", "0.40", "(0.38-0.43)", "1.00", "-", "100.0%"]
    assert rows_table([("a b", "c\nd"), ("x" * 200, "y")]).splitlines()[:3] == ["", "a b", "  c d"]
    assert len(rows_table([("x" * 200, "y")]).splitlines()[1]) == 110
    earlier = baseline_table({key: value for key, value in baseline.items() if key != "drafted_tokens"})
    text = baseline_table(baseline)
    assert earlier == text
    one = {**baseline, "rows": 4, "batch_size": 1, "tokens_per_second": 90.0}
    again = {**baseline, "batch_size": 16, "dtype": "int8", "changed": 0.14}
    longer = baseline_table({**baseline, "batch_size": 16, "others": [one], "rerun": again})
    assert [line.split()[:2] for line in longer.splitlines()[3:9]] == [
        *(["16", "AR"], ["16", "CM-ASD"], ["1", "AR"], ["1", "CM-ASD"], ["16", "AR"], ["16", "again,"])
    ]
    assert "In int8 the model says something else in 14% of the rows." in longer
    for part in (
        "9 rows, 0 algorithmic differences, 2 near-ties",
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


def test_the_summary_begins_with_plain_words_and_has_dashes_for_shares_of_nothing() -> None:
    from cmasd.config import from_dict
    from cmasd.pipeline.summary import summarise
    from cmasd.telemetry.stats import EngineStats
    from cmasd.telemetry.totals import Totals

    config = from_dict({"input": {"path": "i"}, "output": {"path": "o"}, "cost": {"accelerator_per_hour": 36.0}})
    stats = EngineStats(iterations=5, row_iterations=40, slot_iterations=160)
    attempt = {"seconds": 2.0, "start_up_seconds": 10.0, "actors": 1, "stats": stats.to_dict()}
    totals = Totals(rows=8, stopped=8, output_tokens=1000, iterations=1000)
    summary = summarise(config, totals, [attempt], 3, {"speedup": 1.0, "speedup_high": 1.1, "seconds": 4.0}, [])
    assert (
        summary_table(summary)
        == """
rows                   8 (8 stopped, 0 cut, 0 failed; 3 done before)
output tokens          1,000
seconds                16.0 (10.0 start-up, 2.0 decoding, 4.0 comparing)
tokens/s               500.0 while decoding
cost of decoding       0.0200 (20.00 per million output tokens)
cost of the whole job  0.1600 (160.00 per million output tokens)
tokens per iteration   1.00
acceptance rate        -
rollback rate          -
slot occupancy         25.0%
lossless               exact
output                 o/outputs
"""
    )


def test_a_summary_of_recordings_says_how_long_they_are() -> None:
    from cmasd.config import from_dict
    from cmasd.pipeline.summary import summarise
    from cmasd.telemetry.totals import Totals

    config = from_dict({"input": {"path": "i"}, "output": {"path": "o"}})
    summary = summarise(config, Totals(), [{"seconds": 60.0, "actors": 1, "stats": {}}], 0, None, [])
    assert "audio" not in summary_table(summary)
    assert "1.5 hours, 90.0 seconds of it per second of decoding" in summary_table({**summary, "audio_seconds": 5400.0})
    assert "2.0 minutes, 2.0 seconds of it" in summary_table({**summary, "audio_seconds": 120.0})


def test_words_of_the_summary_are_explained_in_the_readme() -> None:
    words = (ROOT / "README.md").read_text(encoding="utf-8").split("## Words")[1]
    explained = [line.split("|")[1].strip() for line in words.splitlines() if line.startswith("|")]
    named = ["start-up, decoding, comparing", "tokens per iteration", "acceptance rate", "rollback rate"]
    assert set(named) | {"slot occupancy"} <= set(explained)


def test_progress_lines() -> None:
    from cmasd.pipeline.tally import Progress

    assert "acceptance -, " in progress_line(Progress(200, 50, 1, 65.0, 1234.5, 1.0, None, 195.0))
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
