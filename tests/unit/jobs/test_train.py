"""`cmasd train` from a recipe to a scored model with its card, and the ways in which it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from jobs.main import main
from tests.unit.training.small import copy_data, save_small_model, sentences, write_rows

ROOT = Path(__file__).resolve().parents[3]
RECIPE = """
role: verifier
output: {folder}/model
work: {folder}/work
data: {{path: {folder}/pairs.parquet}}
tokenizer: {{vocabulary_size: 280}}
model: {{encoder_layers: 1, decoder_layers: 1, width: 32, feed_forward: 64, heads: 4, max_positions: 64}}
schedule: {{steps: 8, warmup_steps: 2, batch_tokens: 256}}
test: {{path: {folder}/test.parquet}}
card: {{title: Tiny, languages: [en, de], licence: cc0-1.0, data: Words.}}
threads: 1
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its data; the test process keeps its allocator as it is."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    copy_data(tmp_path, count=60)
    texts = sentences(4, seed=9)
    write_rows(tmp_path / "test.parquet", en=texts, de=texts, set=["a", "b", "a", "b"])
    path = tmp_path / "train_verifier.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def last_json(text: str) -> dict[str, object]:
    read: dict[str, object] = json.loads(text.splitlines()[-1])
    return read


def test_from_recipe_to_card(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe)]) == 0
    out = capsys.readouterr().out
    summary = last_json(out)
    assert "60 pairs per epoch, 8 steps" in out
    assert "step 8/8  loss " in out
    folder = recipe.parent / "model"
    assert summary["output"] == str(folder)
    assert [(s["name"], s["rows"]) for s in summary["scores"]] == [("a", 2), ("b", 2)]  # type: ignore[attr-defined]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.d_model == 32
    assert len(tokenizer) == model.config.vocab_size == 280
    card = (folder / "README.md").read_text()
    assert "| a | 2 |" in card
    assert "# Tiny" in card
    assert " cores of " in card or "GPU" in card or "NVIDIA" in card
    assert json.loads((folder / "recipe.json").read_text())["schedule"]["steps"] == 8


def test_a_second_start_goes_on_and_a_drafter_shares_the_tokenizer(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent
    no_scores = "test.path=null"
    assert main(["train", str(recipe), no_scores]) == 0
    capsys.readouterr()
    assert main(["train", str(recipe), no_scores, "schedule.steps=9"]) == 0
    out = capsys.readouterr().out
    assert "step 9/9" in out
    assert "step 8/" not in out
    assert last_json(out)["scores"] == []
    places = [f"output={folder}/drafter", f"work={folder}/work-drafter", f"tokenizer.path={folder}/model"]
    assert main(["train", str(recipe), no_scores, "role=drafter", "model.width=16", *places]) == 0
    assert "training a tokenizer" not in capsys.readouterr().out
    vocabularies = [AutoTokenizer.from_pretrained(folder / name).get_vocab() for name in ("model", "drafter")]
    assert vocabularies[0] == vocabularies[1]
    assert "Role in its pair: drafter." in (folder / "drafter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.path=nowhere",
            "data.path: no such file or folder, got nowhere. Pass data.path=PATH: Parquet with the columns en, de.",
        ),
        ("test.path=nowhere", "test.path: no such file or folder, got nowhere. Pass test.path=PATH."),
        ("tokenizer.path=nowhere", "tokenizer.path: no such file or folder, got nowhere. Pass tokenizer.path=PATH."),
        ("dtype=int8", "dtype: must be one of float32, float16, bfloat16, got int8."),
        ("data.target_column=fr", "has no column fr, got en, de."),
        ("tokenizer.vocabulary_size=9999", "tokenizer.vocabulary_size: the texts give "),
    ],
)
def test_refusals(recipe: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (recipe.parent / "work").exists()


def test_where_data_can_be_had_is_said_where_they_are_missing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.path=nowhere", "data.group_column=corpus", "data.where=Tatoeba's pairs are at tatoeba.org."]
    assert main(["train", str(recipe), *overrides]) == 2
    said = "Pass data.path=PATH: Parquet with the columns en, de, corpus. Tatoeba's pairs are at tatoeba.org.\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("key", ["output", "work", "data.path"])
def test_paths_that_must_be_set(recipe: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = recipe.read_text().splitlines()
    recipe.write_text("\n".join(line for line in lines if not line.startswith(key.split(".")[0])))
    assert main(["train", str(recipe)]) == 2
    expected = f"error: {key}: is not set; expected a path. Add it to {recipe} or pass {key}=PATH.\n"
    assert capsys.readouterr().err == expected


def test_arguments_survive_in_a_process_of_its_own(recipe: Path) -> None:
    command = [sys.executable, "-m", "jobs", "train", "--debug", str(recipe), "data.path=nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: data.path: no such file or folder, got nowhere")


PARALLEL = """
kind: parallel
role: drafter
output: {folder}/drafter
work: {folder}/parallel-work
data: {{path: {folder}/pairs.parquet}}
parallel: {{verifier: {folder}/model, queries: 4, feed_forward: 16, rank: 4, shortlist: 100}}
schedule: {{steps: 8, warmup_steps: 2, batch_tokens: 256, accumulate: 2}}
test: {{path: {folder}/test.parquet}}
card: {{title: Tiny parallel, languages: [en, de], licence: cc0-1.0, data: Words.}}
threads: 1
"""


def test_a_parallel_drafter_from_recipe_to_card(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent
    save_small_model(folder)
    path = folder / "train_parallel.yaml"
    path.write_text(PARALLEL.format(folder=folder))
    assert main(["train", str(path)]) == 0
    out = capsys.readouterr().out
    assert "step 8/8  loss " in out
    assert "tokens per iteration" in out
    scores: Any = last_json(out)["scores"]
    assert [(s["name"], s["rows"], s["draft_tokens"]) for s in scores] == [
        (name, 2, k) for k in (1, 2, 3, 4) for name in ("a", "b")
    ]
    assert all(s["tokens_per_iteration"] >= 1 for s in scores)
    assert {file.name for file in (folder / "drafter").iterdir()} == {
        "config.json",
        "model.safetensors",
        "recipe.json",
        "shortlist.json",
        "README.md",
    }
    card = (folder / "drafter" / "README.md").read_text()
    assert "| a | 2 | 1." in card
    assert "Markov head of rank 4" in card


def test_a_parallel_drafter_needs_its_verifier(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "kind=parallel"]) == 2
    assert "parallel.verifier: is not set" in capsys.readouterr().err
    assert main(["train", str(recipe), "kind=serial"]) == 2
    assert "kind: must be seq2seq, parallel or router, got serial" in capsys.readouterr().err
