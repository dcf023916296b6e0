"""`cmasd compare`: tables, a sentence of advice, and one JSON line that says it all."""

import argparse
import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cmasd.evaluation.compare.comparison import Compared
from cmasd.evaluation.compare.recommend import Recommendation
from jobs.compare import OPTIONS, register, skipped
from jobs.compare_tables import SCORES, SPEED, WORTH, number, score_table, sentence, speed_table, worth_table
from jobs.main import main
from jobs.records import command
from tests.unit.training.small import save_small_model, sentences

NAMES = ["ar_greedy", "hf_generate", "adaptive_k", "paper_printed", "goodput_budget"]
ASKED = [f"compare.engines=[{','.join(NAMES)}]", "compare.max_seconds=0.01", "cost.accelerator_per_hour=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    save_small_model(folder / "verifier")
    save_small_model(folder / "drafter", seed=1)
    rows = [{"text": text, "german": text.upper()} for text in ["bee " * 100, *sentences(5)]]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def overrides(folder: Path, *more: str) -> list[str]:
    models = [f"models.{role}={folder}/{role}/model" for role in ("verifier", "drafter")]
    places = [f"input.path={folder}/rows.jsonl", f"output.path={folder}/run", "models.device=cpu", "engine.slots=2"]
    return [*models, *places, "engine.max_new_tokens=3", "engine.max_source_tokens=60", *more]


def test_last_line_is_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.json"
    arguments = ["compare", "--quick", "--references", "german", "--record", str(record), *overrides(folder, *ASKED)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    assert json.loads(record.read_text()) == read
    assert [row["name"] for row in read["results"]] == NAMES
    assert read["skipped"] == []
    assert read["corpus_rows"] == 5, "the sixth cannot be encoded"
    assert {row["dtype"] for row in read["results"]} == {"float32"}
    assert all(row["cost"] == pytest.approx(2 * row["accelerator_hours"]) for row in read["results"])
    assert all(row["bleu"] is not None and row["chrf"] is not None for row in read["results"])
    assert (read["threads"], read["recommendation"]) == (1, lines[-2])
    assert sorted(shlex.split(read["command"])) == sorted(["cmasd", *arguments])
    headers = [line.split()[:2] for line in lines if line.startswith("engine ")]
    assert headers == [["engine", "tokens/s"], ["engine", "lossless"], ["engine", "BLEU"]]
    assert not (folder / "run").exists(), "a comparison writes no run"


def test_answers_are_checked_beside_references(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare.engines=[small_alone,stitch,random_router]", "compare.taus=[0.5]", "compare.max_seconds=0.01"]
    asked += ["compare.answer=regex", "compare.answer_column=german", "compare.answer_pattern=[A-Za-z]"]
    options = ["--references", "text"]
    if find_spec("matplotlib") is not None:
        options += ["--plot", str(tmp_path / "plot.png")]
    assert main(["compare", *options, *overrides(folder, *asked)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["results"]
    assert [row["name"] for row in rows] == ["ar_greedy", "small_alone", "stitch 0.5", "random_router 0.5"]
    for row in rows:
        assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
        assert row["accuracy_gap_low"] <= row["accuracy_gap"] <= row["accuracy_gap_high"]
        assert row["accuracy_gap"] == pytest.approx(row["accuracy"] - rows[0]["accuracy"])
        assert row["bleu"] is not None
    assert "--plot" not in options or (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert any(line.split()[:2] == ["engine", "right"] for line in lines)


def test_without_a_drafter_plain_and_peers_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["policy.kind=plain", "models.drafter=null", "telemetry.level=none"]
    assert main(["compare", *overrides(folder, *ASKED, *alone)]) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    assert [row["name"] for row in read["results"]] == ["ar_greedy", "hf_generate"]
    assert {one["name"]: one["reason"] for one in read["skipped"]} == dict.fromkeys(
        NAMES[2:], "the pair has no drafter"
    )
    assert "adaptive_k: skipped, the pair has no drafter" in lines
    assert read["recommended"] == "ar_greedy"
    assert lines[-2].startswith("Use plain decoding (policy.kind=plain): no lossless way of drafting was measured")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--references", "french"], "no column 'french'"),
        (["--record", "no/such/record.json"], "--record: no such folder, got no/such"),
        (["compare.engines=[vllm]"], "compare.engines: must be some of ar_greedy, ar_beam"),
        (["compare.max_relative_ci=0"], "compare.max_relative_ci: must be greater than 0"),
        (["--plot", "plot.png"], "--plot: draws right answers, got compare.answer none"),
        (["compare.answer=exact"], "no column 'answer'"),
        (["compare.answer=regex"], "compare.answer_pattern: must be set for compare.answer regex, got ''"),
        (["compare.answer_pattern=("], "compare.answer_pattern: must be a regular expression, got ("),
        (["compare.taus=[2]"], "compare.taus: must be one number between 0 and 1, or more"),
    ],
)
def test_what_the_user_can_fix(options: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *overrides(folder), *options]) == 2
    assert said in capsys.readouterr().err


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--quick", "--references", "--threads", "--plot", "--record", "CONFIG"))


@pytest.mark.parametrize(
    "line", ["run.yaml", "run.yaml --quick --references de --threads 2 --plot a.svg --record b.json engine.slots=3"]
)
def test_the_command_means_the_same(line: str) -> None:
    parser = argparse.ArgumentParser()
    register(parser)
    args = parser.parse_intermixed_args(line.split())
    assert parser.parse_intermixed_args(command(args, "compare", OPTIONS).split()[2:]) == args


def way(name: str, speedup: float, **more: Any) -> Any:
    speed = {"speedup": speedup, "speedup_low": 0.9 * speedup, "speedup_high": 1.1 * speedup}
    hours = {"accelerator_hours": 10 / speedup, "cost": 30 / speedup, "relative_bleu": 93.21}
    hours |= {"exact_match": 1.0, "drafted_tokens": 9}
    one = SimpleNamespace(name=name, **{**speed, **hours, **more})
    one.to_dict = lambda: vars(one)
    return cast(Compared, one)


def test_advice_is_one_sentence() -> None:
    plain, goodput = way("ar_greedy", 1.0), way("goodput", 2.0)
    lossy, peer = way("fixed_relaxed", 3.0), way("ctranslate2", 4.0, exact_match=0.88799)
    assert sentence(Recommendation(plain, goodput, None, None), plain) == (
        "Use plain decoding (policy.kind=plain): no lossless way of drafting is faster beyond the noise, the best "
        "being goodput with 2.00 (1.80-2.20) times its speed."
    )
    assert sentence(Recommendation(goodput, goodput, lossy, peer), plain) == (
        "Use goodput (policy.kind=goodput verification.kind=exact): 2.00 (1.80-2.20) times plain decoding with the "
        "same output, which saves 5.00 of 10.0 accelerator-hours and 15.0 of 30.0 in money; fixed_relaxed, which is "
        "lossy, reaches 3.00 times at BLEU 93.2 to its output; ctranslate2 reaches 4.00 times with the same output in "
        "88.7% of the rows."
    )
    assert sentence(Recommendation(plain, None, None, None, ("goodput", "adaptive_k")), plain) == (
        "Use plain decoding (policy.kind=plain): goodput and adaptive_k drafted nothing, which is the same decoding."
    )
    free = way("goodput", 2.0, cost=None)
    assert "money" not in sentence(Recommendation(free, free, None, None), plain)


def test_tables_have_a_dash_for_what_was_not_measured() -> None:
    spread = {f"{name}_{end}": None for name in ("cost", "bleu", "chrf") for end in ("low", "high", "p_value")}
    counters = dict.fromkeys(
        ("tokens_per_iteration", "acceptance_rate", "rollback_rate", "wasted_tokens_per_output_token", "mean_gap_nats")
    )
    rouge = dict.fromkeys(("rouge1", "rouge2", "rougeLsum"))
    hours = {"accelerator_hours": 1234.5, "accelerator_hours_low": 12.34, "accelerator_hours_high": 0.01234}
    row = {"name": "ar_beam", "lossless": "beam search", "tokens_per_second": 1234.5, "speedup": 0.1}
    row |= {"speedup_low": 0.05, "speedup_high": 0.2, "exact_match": 0.5, "relative_bleu": 60.0, "cost": None}
    row |= {
        "bleu": 30.0,
        "bleu_ci": 1.0,
        "chrf": 60.0,
        "chrf_ci": 1.0,
        "acceptance_by_position": None,
        "drafted_tokens": None,
    }
    row = {**spread, **counters, **rouge, **hours, **row}
    lines = [show([row]).splitlines() for show in (speed_table, worth_table, score_table)]
    assert [line[0].split()[0] for line in lines] == [SPEED[0], WORTH[0], SCORES[0]]
    assert lines[0][2].split() == ["ar_beam", "1,234", "0.10", "(0.05-0.20)", "-", "-", "-", "-", "-"]
    assert lines[1][2].split()[3:] == ["50.0%", "60.00", "-", "1,234", "(12.3-0.0123)", "-"]
    idle = speed_table([{**row, "name": "goodput", "drafted_tokens": 0}]).splitlines()[2]
    assert idle.split()[:5] == ["goodput", "1,234", "same", "decoding", "-"]
    shares = {**row, "acceptance_by_position": [0.5, None, 0.25]}
    assert speed_table([shares]).splitlines()[2].endswith("50% - 25%")


@pytest.mark.parametrize(
    ("value", "said"), [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12,346"), (0.0, "0.0000")]
)
def test_numbers_have_three_digits_or_so(value: float, said: str) -> None:
    assert number(value) == said


def test_who_was_left_out_goes_by_name() -> None:
    assert skipped([{"engine": "ar_beam", "reason": "no memory"}]) == [{"name": "ar_beam", "reason": "no memory"}]
