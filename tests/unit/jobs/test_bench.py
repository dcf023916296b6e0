"""`cmasd bench`: one table, its conclusions in words, and one JSON line that says it all."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cmasd.config import load
from cmasd.evaluation.speed.engines import ENGINES, drafts
from cmasd.evaluation.speed.machine_load import Load
from jobs.bench import OPTIONS, register
from jobs.bench_tables import BEFORE, conclusions, result_table, step_table
from jobs.main import main
from jobs.measuring import busy_lines, with_drafter
from jobs.pareto_tables import front, promises
from jobs.records import command
from tests.unit.training.small import save_small_model, sentences

OURS = ["plain", "paper", "fixed_2"]
ASKED = ["--engines", "plain,paper,hf_generate", "--fixed", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    save_small_model(folder / "verifier")
    save_small_model(folder / "drafter", seed=1)
    rows = [{"text": text, "german": text.upper()} for text in ["bee " * 100, *sentences(4)]]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def overrides(folder: Path, *more: str) -> list[str]:
    models = [f"models.{role}={folder}/{role}/model" for role in ("verifier", "drafter")]
    places = [f"input.path={folder}/rows.jsonl", f"output.path={folder}/run", "models.device=cpu"]
    return [*models, *places, "engine.max_new_tokens=3", "engine.max_source_tokens=60", *more]


def test_last_line_is_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--batch-sizes", "1,3", "--threads", "1", *ASKED, *overrides(folder)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    expected = [(size, engine) for size in (1, 3) for engine in [*OURS, "hf_generate"]]
    assert [(row["batch_size"], row["engine"]) for row in read["results"]] == expected
    assert {row["dtype"] for row in read["results"]} == {"float32"}
    said = {(row["engine"], row["lossless"], row["exact_match_to_plain"]) for row in read["results"]}
    assert said == {*((name, "exact", 1.0) for name in OURS), ("hf_generate", "same rows", 1.0)}
    assert (read["threads"], read["steps"], read["skipped"]) == (1, [], [])
    assert set(read["load"]) == {"others_share", "stolen_share", "load_average"}
    assert read["drafter_dtype"] in ("float32", "int8")
    assert {"torch", "transformers", "ctranslate2"} <= set(read["versions"])
    assert sorted(shlex.split(read["command"])) == sorted(["cmasd", *arguments])
    assert lines[0].startswith(f"4 texts; {read['machine']}, 1 threads; cmasd bench ")
    assert len([line for line in lines if line.startswith(BEFORE[0])]) == 1
    assert [line for line in lines if line.startswith(("batch 1: ", "batch 3: "))] == lines[-3:-1]
    assert not (folder / "run").exists(), "a bench writes no run"


def test_steps_plot_and_record(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    plot, record = tmp_path / "speed.svg", tmp_path / "record.json"
    files = ["--plot", str(plot), "--record", str(record), "--steps", "--engines", "plain,fixed"]
    assert main(["bench", "--quick", "--batch-sizes", "2", *files, *overrides(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    assert json.loads(record.read_text()) == read
    assert read["command"].startswith("cmasd bench ")
    assert read["date"][:2] == "20"
    assert {(step["model"], step["rows"]) for step in read["steps"]} == {("verifier", 2), ("drafter", 2)}
    assert any(line.startswith("verifier") for line in lines)
    assert "</svg>" in plot.read_text()


def test_speed_against_quality(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--record", str(tmp_path / "record.json")]
    arguments = ["bench", "--pareto", "--references", "german", *files, *overrides(folder, "engine.slots=2")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    assert json.loads((tmp_path / "record.json").read_text()) == read
    assert len(read["results"]) == 1 + 7 + 5 + 5
    assert {(row["batch_size"], row["scored_rows"]) for row in read["results"]} == {(2, 4)}
    assert all(row["bleu_to_references"] is not None for row in read["results"])
    assert read["signatures"]["bleu"].startswith("nrefs:1")
    assert sorted(shlex.split(read["command"])) == sorted(["cmasd", *arguments])
    [header] = [line for line in lines if line.startswith("setting")]
    assert header.split("  ")[-1].strip() == "front"
    kept = sum(bool(row["within_budget"]) for row in read["results"])
    assert lines[-2] == f"mean gap at most the budget, over all tokens of each engine: {kept} of 7 kept"


def test_a_broken_promise_is_named() -> None:
    kept = {"engine": "goodput, budget 0.1", "life_gap_nats_per_token": 0.09, "within_budget": True}
    broken = {"engine": "goodput, budget 0.05", "life_gap_nats_per_token": 0.06, "within_budget": False}
    assert promises([{"within_budget": None}, kept, broken]) == [
        "goodput, budget 0.05: mean gap 0.06000 nats per token is over the budget: BROKEN",
        "mean gap at most the budget, over all tokens of each engine: 1 of 2 kept",
    ]


def test_the_front_is_named_by_measure() -> None:
    cases = {(True, True): "gap+BLEU", (True, False): "gap", (False, True): "BLEU", (False, False): "-"}
    for (gap, bleu), said in cases.items():
        assert front({"on_gap_front": gap, "on_bleu_front": bleu}) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--references german", "--references: is an option of --pareto"),
        ("--pareto --batch-sizes 1,2", "--batch-sizes: --pareto takes one, got 2"),
        ("--pareto --engines plain", "--engines: does not go together with --pareto"),
        ("--pareto --fixed 2", "--fixed: does not go together with --pareto"),
        ("--quick --chunks 9", "--chunks: does not go together with --quick"),
        ("--pareto --chunks 9", "--chunks: does not go together with --pareto"),
        ("--pareto --steps", "--steps: does not go together with --pareto"),
        ("--pareto models.drafter=null policy.kind=plain", "models.drafter: must be set for --pareto"),
        ("--pareto --references french", "no column 'french'"),
    ],
)
def test_options_that_do_not_go_together(
    options: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *overrides(folder), *options.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_could_not_be_written_is_told_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--record", str(folder / "no" / "record.json"), *overrides(folder)]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert f"error: --record: no such folder, got {folder / 'no'}" in said.err
    assert said.out == ""


def test_no_row_that_can_be_encoded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", *overrides(folder, "engine.max_source_tokens=1")]) == 2
    assert "error: input.path: none of the first 5 rows can be encoded" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch-sizes", "--fixed"])
@pytest.mark.parametrize("numbers", ["0", "1,-2", "a", "", "1,,2"])
def test_numbers_are_checked(option: str, numbers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", f"{option}={numbers}", "input.path=x"])
    assert ended.value.code == 2
    assert "must be whole numbers of at least 1" in capsys.readouterr().err


def test_engines_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--engines=plain,vllm", "input.path=x"])
    assert ended.value.code == 2
    assert "no engine 'vllm'; expected some of plain, fixed, paper, goodput" in capsys.readouterr().err


def test_the_default_engines_are_those_of_the_comparison() -> None:
    parser = argparse.ArgumentParser()
    register(parser)
    args = parser.parse_args(["run.yaml"])
    assert args.engines == ENGINES == ("plain", "fixed", "paper", "goodput", "hf_generate", "ctranslate2")


@pytest.mark.parametrize(
    "line",
    [
        "run.yaml",
        "run.yaml --quick --steps --batch-sizes 1,2 engine.slots=3",
        "run.yaml --pareto --references de --batch-sizes 8",
        "run.yaml --chunks 30 --batch-sizes 1,128",
        "run.yaml --engines plain,goodput --fixed 1,5 --threads 2 --plot a.png --record b.json",
    ],
)
def test_the_command_means_the_same(line: str) -> None:
    parser = argparse.ArgumentParser()
    register(parser)
    args = parser.parse_intermixed_args(line.split())
    assert parser.parse_intermixed_args(command(args, "bench", OPTIONS, {"engines": ENGINES}).split()[2:]) == args


def test_a_plain_configuration_still_loads_its_drafter(folder: Path) -> None:
    plain = load([], overrides(folder, "policy.kind=plain"))
    assert with_drafter(plain).policy.kind == "fixed"
    alone = load([], [*overrides(folder, "policy.kind=plain"), "models.drafter=null"])
    assert with_drafter(alone) == alone
    drafting = load([], overrides(folder))
    assert with_drafter(drafting) == drafting


def test_a_busy_machine_is_told() -> None:
    assert busy_lines(Load(0.01, 0.0, 9.0)) == [], "a load average of this process's own threads"
    assert busy_lines(Load(0.384, 0.021, 4.12)) == [
        "The machine was busy: other processes took 38% of its processors' time, its hypervisor 2% (load average 4.1). "
        "Speeds are lower than on a free machine, and intervals wide."
    ]
    [stolen] = busy_lines(Load(0.0, 0.3, 1.0))
    assert "its hypervisor 30%" in stolen


def row(engine: str, batch_size: int, ratio: float, low: float, high: float, dtype: str = "float32") -> dict[str, Any]:
    speed = {"tokens_per_second": 100 * ratio, "chunk_low": 99 * ratio, "chunk_high": 101 * ratio}
    ratios = {"ratio_to_plain": ratio, "ratio_low": low, "ratio_high": high}
    others = {f"ratio_to_{name}": None for name in ("hf_generate", "ctranslate2", "best_fixed")}
    counters = {"tokens_per_iteration": None, "acceptance_rate": None, "exact_match_to_plain": 1.0, "lossless": "exact"}
    counters["drafted_tokens"] = 0 if engine == "plain" else 9 if drafts(engine) else None
    return {"engine": engine, "batch_size": batch_size, "dtype": dtype, **speed, **ratios, **others, **counters}


RESULTS = [
    row("plain", 1, 1.0, 1.0, 1.0),
    row("goodput", 1, 1.5, 1.4, 1.6),
    row("paper", 1, 1.02, 0.9, 1.1),
    row("plain", 32, 1.0, 1.0, 1.0),
    row("fixed", 32, 0.6, 0.5, 0.7),
    row("hf_generate", 32, 0.5, 0.4, 0.6),
    {**row("ctranslate2", 32, 1.8, 1.7, 1.9, "int8"), "exact_match_to_plain": 0.79999},
]


def test_exact_output_of_a_rounded_model_is_exact_to_that_model() -> None:
    rows = [{**row("plain", 1, 1.0, 1.0, 1.0, dtype), "lossless": said} for dtype, said in CLAIMS]
    shown = [line.split("100.0%")[1].strip() for line in result_table(rows).splitlines() if "100.0%" in line]
    assert shown == ["exact", "exact to int8", "exact to bfloat16", "in distribution to int8", "lossy"]


CLAIMS = [
    ("float32", "exact"),
    ("int8", "exact"),
    ("bfloat16", "exact"),
    ("int8", "in distribution"),
    ("int8", "lossy"),
]


def test_conclusions_name_the_winner_and_the_losers() -> None:
    assert conclusions(RESULTS) == [
        "batch 1: fastest is goodput, 1.50 x plain; speculation beats plain: goodput 1.50; "
        "not told apart from plain: paper 1.02",
        "batch 32: fastest is ctranslate2 int8, 1.80 x plain with 79.9% of the rows equal to its, and nothing with all "
        "of them is faster than plain beyond the noise; speculation LOSES to plain: fixed 0.60",
    ]


def test_what_is_not_faster_beyond_the_noise_is_not_called_fastest() -> None:
    """The median rate may be the highest, and the ratio within chunks below 1 all the same."""
    lucky = {**row("ctranslate2", 8, 0.98, 0.9, 1.04, "int8"), "tokens_per_second": 500.0}
    assert conclusions([row("plain", 8, 1, 1, 1), lucky]) == ["batch 8: nothing is faster than plain beyond the noise"]
    other = {**row("ctranslate2", 8, 2.0, 1.9, 2.1), "exact_match_to_plain": 0.887}
    assert conclusions([row("plain", 8, 1, 1, 1), row("fixed", 8, 1.5, 1.4, 1.6), other]) == [
        "batch 8: fastest is ctranslate2, 2.00 x plain with 88.7% of the rows equal to its, and with all of them "
        "fixed, 1.50; speculation beats plain: fixed 1.50"
    ]


def test_an_engine_that_drafted_nothing_has_no_ratio() -> None:
    idle = {**row("goodput", 8, 1.03, 1.01, 1.05), "drafted_tokens": 0}
    assert conclusions([row("plain", 8, 1, 1, 1), idle]) == [
        "batch 8: nothing is faster than plain beyond the noise; drafted nothing, the same decoding as plain: goodput"
    ]
    plain, drafted_nothing = result_table([row("plain", 8, 1, 1, 1), idle]).splitlines()[-2:]
    assert "1.00 (1.00-1.00)" in plain
    assert "same decoding" in drafted_nothing
    assert "1.03" not in drafted_nothing


def test_table_is_grouped_by_batch_size() -> None:
    groups = [group.splitlines() for group in result_table(RESULTS).split("\n\n")]
    assert [len(group) for group in groups] == [2, 3, 4]
    assert [line.split()[0] for line in groups[2]] == ["plain", "fixed", "hf_generate", "ctranslate2"]
    assert groups[2][1].split()[1:6] == ["32", "60", "59-61", "0.60", "(0.50-0.70)"]


def test_step_table_has_a_column_per_window() -> None:
    steps = [
        {"model": model, "rows": 8, "query_tokens": window, "milliseconds": 2.0 * window, "ratio_to_one": 1.0 * window}
        for model, window in (("verifier", 1), ("verifier", 4), ("drafter", 1))
    ]
    lines = step_table(steps).splitlines()
    assert lines[0].split("  ")[-2:] == ["1 tokens/row", "4 tokens/row"]
    assert lines[2].split() == ["verifier", "8", "2.00", "(1.00)", "8.00", "(4.00)"]
    assert lines[3].split() == ["drafter", "8", "2.00", "(1.00)", "-"]
