"""`cmasd train configs/train_router_qwen.yaml` on tiny models: from the shipped recipe to a router that a run takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from cmasd.config import from_dict
from cmasd.core import Request
from cmasd.engine import Engine, load_pair
from jobs.main import main
from tests.unit.engine.checkpoints import save_checkpoint, words
from tests.unit.training.small import write_rows

RECIPE = str(Path(__file__).resolve().parents[3] / "configs" / "train_router_qwen.yaml")
RUN = """
input: {{path: {folder}/questions.parquet, text_column: question}}
output: {{path: {folder}/run}}
models: {{verifier: {folder}/large, drafter: {folder}/small, dtype: float64}}
policy: {{kind: stitch}}
engine: {{slots: 4, max_new_tokens: 8}}
compare: {{answer: regex, answer_pattern: "(w)"}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both models, questions whose answer is any word, and the configuration of runs."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("large", "small")):
        save_checkpoint(tmp_path / name, "llama", {"eos_token_id": 2, "pad_token_id": 0}, seed=seed)
    texts = [words(5 + i, 9, 20 + i) for i in range(6)]
    write_rows(tmp_path / "questions.parquet", question=texts, answer=["w"] * 6)
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path))
    return tmp_path


def overrides(folder: Path, *more: str) -> list[str]:
    paths = [f"{key}={folder}/questions.parquet" for key in ("data.path", "test.path")]
    paths += [f"output={folder}/router", f"work={folder}/work", f"router.config={folder}/run.yaml"]
    sizes = ["router.prompts=3", "router.rollouts=2", "router.tau=0", "router.hidden=4", "router.warm_steps=5"]
    run = ["router.overrides=[engine.slots=6]", "schedule.steps=3", "test.rows=3", "threads=1"]
    return [*paths, *sizes, *run, *more]


def test_the_shipped_recipe_gives_a_router_that_a_run_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", RECIPE, *overrides(folder)]) == 0
    out = capsys.readouterr().out
    assert "6 questions, 3 steps" in out
    assert "lessons 6/6" in out
    assert "step 3/3  loss " in out
    assert "reward" in out
    made: dict[str, Any] = json.loads(out.splitlines()[-1])
    scores = {one["name"]: one for one in made["scores"]}
    assert list(scores) == [
        *("large alone", "small alone", "entropy, tau 0", "warm start", "router", "random router"),
    ]
    assert all(one["rows"] == 3 and one["accuracy_low"] <= one["accuracy"] for one in scores.values())
    assert scores["large alone"]["small_share"] == 0
    assert scores["small alone"]["small_share"] == 1
    card = (folder / "router" / "README.md").read_text()
    assert "| router | 3 |" in card
    assert "| 3 | " in card.split("## Curves")[1]
    assert len(json.loads((folder / "router" / "curve.json").read_text())) == 3
    sections = {
        "models": {"verifier": f"{folder}/large", "drafter": f"{folder}/small", "dtype": "float64"},
        "policy": {"kind": "stitch"},
        "stitch": {"router": f"{folder}/router"},
        "engine": {"slots": 2, "max_new_tokens": 8},
    }
    config = from_dict({"input": {"path": "in"}, "output": {"path": "out"}, **sections})
    rows = list(Engine(load_pair(config), config).decode([Request(0, [5, 9, 20], 8)]))
    assert len(rows) == 1


def test_a_second_start_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = overrides(folder, "test.path=null")
    assert main(["train", RECIPE, *quick]) == 0
    capsys.readouterr()
    assert main(["train", RECIPE, *quick, "schedule.steps=4"]) == 0
    out = capsys.readouterr().out
    assert "step 4/4" in out
    assert "step 3/" not in out
    assert "lessons" not in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("router.config=nowhere.yaml", "router.config: no such file, got nowhere.yaml."),
        ("router.overrides=[compare.answer=none]", "compare.answer: must be gsm8k, regex or exact in "),
        ("router.rollouts=1", "router.rollouts: must be at least 2, got 1."),
        ("router.latency_rows=0", "router.latency_rows: must be at least 1, got 0."),
        ("router.latency_rows=7", "router.latency_rows: must be at most engine.slots, 6, got 7."),
        ("router.tau=2", "router.tau: must be between 0 and 1, got 2"),
        ("data.source_column=ask", "ask"),
        ("workers=2", "workers: must be 1 for kind router, got 2."),
    ],
)
def test_refusals(folder: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", RECIPE, *overrides(folder), override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (folder / "work").exists()


def test_a_router_needs_the_runs_that_it_is_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path(RECIPE).read_text().splitlines()
    recipe = folder / "recipe.yaml"
    recipe.write_text("\n".join(line for line in lines if not line.startswith("  config:")))
    given = [one for one in overrides(folder) if not one.startswith("router.config=")]
    assert main(["train", str(recipe), *given]) == 2
    expected = f"error: router.config: is not set; expected a path. Add it to {recipe} or pass router.config=PATH.\n"
    assert capsys.readouterr().err == expected
