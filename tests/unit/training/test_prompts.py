"""A drafter learns from prompts as the run made them, and from the tokens that it said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pds
import pytest
from omegaconf import OmegaConf

from cmasd.config import load
from cmasd.config.reading import load_tree
from cmasd.engine import load_pair
from cmasd.training.corpus import build_corpus
from cmasd.training.prompts import Prompts
from cmasd.training.recipe import DataRecipe, Recipe
from jobs.main import main
from tests.unit.engine.checkpoints import save_checkpoint
from tests.unit.training.small import write_rows

TEMPLATE = "{% for m in messages %}{{ '<s1> ' + m.content + ' ' }}{% endfor %}{{ '<s0>' }}"
TEXTS = [f"w{i % 9} w{i % 4} w{i % 6}" for i in range(24)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The configuration of a finished run of a model that chats."""
    model = save_checkpoint(tmp_path / "model", "llama", {"eos_token_id": 2, "max_new_tokens": 9})
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
    write_rows(tmp_path / "rows.parquet", id=[f"r{i}" for i in range(24)], text=TEXTS)
    config: dict[str, Any] = {
        "input": {"path": str(tmp_path / "rows.parquet"), "template": "w7 {text}", "chat": True, "system": "w8"},
        "output": {"path": str(tmp_path / "said")},
        "models": {"verifier": str(model), "drafter": None},
        "policy": {"kind": "plain"},
        "engine": {"slots": 4},
        "telemetry": {"level": "none", "teacher_top_k": 1},
        "baseline": {"rows": 0},
        "actors": {"local": "true"},
    }
    config["input"] |= {"id_column": "id", "keep_columns": ["text"]}
    OmegaConf.save(config, tmp_path / "run.yaml")
    assert main(["run", str(tmp_path / "run.yaml")]) == 0
    return tmp_path / "run.yaml"


def recipe_of(run: Path) -> Recipe:
    folder = run.parent
    data = {"path": f"{folder}/said/outputs", "source_column": "text", "target_column": "output", "teacher": True}
    made = {
        "kind": "parallel",
        "role": "drafter",
        "output": f"{folder}/drafter",
        "work": f"{folder}/work",
        "data": {**data, "config": str(run), "max_ratio": None},
        "parallel": {"verifier": f"{folder}/model", "queries": 3, "feed_forward": 16, "rank": 4, "shortlist": None},
        "schedule": {"steps": 150, "warmup_steps": 2, "batch_tokens": 256, "learning_rate": 1e-2},
        "card": {"title": "Tiny", "languages": ["en"], "licence": "cc0-1.0", "data": "Words."},
        "threads": 1,
    }
    OmegaConf.save(made, folder / "train.yaml")
    return load_tree(Recipe(), [folder / "train.yaml"])


def test_prompts_and_tokens_are_those_of_the_run(run: Path) -> None:
    config = load([run])
    pair, data = load_pair(config), recipe_of(run).data
    tokenizer: Any = pair.codec._tokenizer
    sides = Prompts.of(data, pair.verifier, tokenizer)
    assert sides is not None
    assert Prompts.of(DataRecipe(), pair.verifier, tokenizer) is None
    said = pds.dataset(data.path).to_table().to_pydict()
    corpus = build_corpus(data, sides)
    assert corpus.source.lists(np.arange(24)) == pair.codec.encode(said["text"])
    tokens = [[step[0] for step in row] for row in said["token_top_ids"]]
    assert corpus.target.lists(np.arange(24)) == tokens
    again = sides.targets(said["output"])
    assert again == [[*ids, 2] for ids in pair.codec.encode_outputs(said["output"])]
    assert any(row == [*ids, 2] for row, ids in zip(again, tokens, strict=True)), "where all is text"
    assert sides.sources(["w5", None]) == [*pair.codec.encode(["w5"]), []], "left out, like every row without text"  # type: ignore[list-item]


def test_what_is_learned_is_drafted_in_the_next_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows that it learned from, in the prompts in which it learned them."""
    recipe_of(run)
    assert main(["train", str(run.parent / "train.yaml")]) == 0
    folder = run.parent
    drafts = ["policy.kind=fixed", "drafter.kind=parallel", "drafter.max_draft_tokens=3", "telemetry.teacher_top_k=0"]
    paths = [f"models.drafter={folder}/drafter", f"output.path={folder}/again"]
    assert main(["run", str(run), *drafts, *paths]) == 0
    first, again = (pds.dataset(folder / name / "outputs").to_table().sort_by("id") for name in ("said", "again"))
    assert again["output"].equals(first["output"])
    summary = json.loads((folder / "again" / "summary.json").read_text())
    assert summary["tokens_per_iteration"] > 1.5, "it had heard them all"
    capsys.readouterr()


def test_it_is_of_texts_and_of_parallel_drafters(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_of(run)
    train = ["train", str(run.parent / "train.yaml")]
    assert main([*train, "kind=seq2seq"]) == 2
    assert "data.config: is for a parallel drafter that learns from texts" in capsys.readouterr().err
    assert main([*train, f"data.config={run.parent}/none.yaml"]) == 2
    assert "data.config: no such file or folder" in capsys.readouterr().err
