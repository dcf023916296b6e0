"""The recipes in `configs/` load, and fit together."""

from dataclasses import replace
from pathlib import Path

import pytest

from cmasd.config import load, load_tree
from cmasd.errors import ConfigError
from cmasd.training.recipe import Recipe

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(CONFIGS.glob("train_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_loads(path: Path) -> None:
    recipe = load_tree(Recipe(), [path])
    assert recipe.output
    assert recipe.work
    assert recipe.data.path
    assert recipe.schedule.warmup_steps < recipe.schedule.steps
    assert recipe.model.width % recipe.model.heads == 0
    assert recipe.card.title
    assert recipe.card.licence
    assert recipe.card.data


def test_both_roles_have_a_recipe_and_share_a_tokenizer() -> None:
    verifier, drafter = (load_tree(Recipe(), [CONFIGS / f"train_{role}.yaml"]) for role in ("verifier", "drafter"))
    parallel = load_tree(Recipe(), [CONFIGS / "train_parallel.yaml"])
    assert parallel.data.path == drafter.data.path
    assert verifier.output.endswith(parallel.parallel.verifier)
    assert drafter.tokenizer.path == verifier.output
    assert drafter.data.max_tokens <= verifier.data.max_tokens


def test_another_task_goes_from_step_to_step() -> None:
    recipes = [CONFIGS / f"train_{name}.yaml" for name in ("restorer", "restorer_drafter")]
    teacher, drafter = (load_tree(Recipe(), [path]) for path in recipes)
    labelling, pair = (load([CONFIGS / f"{name}.yaml"]) for name in ("label_restorer", "restore_en"))
    assert teacher.test == drafter.test
    assert labelling.models.verifier == pair.models.verifier
    assert teacher.output.endswith(f"pairs/{pair.models.verifier}")
    assert drafter.start.path == drafter.tokenizer.path == teacher.output
    assert drafter.start.decoder_layers == [teacher.model.decoder_layers - 1]
    layers, dropout = teacher.model.decoder_layers, teacher.model.dropout
    assert replace(drafter.model, decoder_layers=layers, dropout=dropout) == teacher.model
    assert drafter.output.endswith(f"pairs/{pair.models.drafter}")
    assert drafter.data.path == f"{labelling.output.path}/outputs"
    assert drafter.data.source_column in labelling.input.keep_columns
    assert labelling.input.path == teacher.data.path
    assert pair.input.path == "configs/demo/spoken.jsonl"


def test_overrides_and_typos() -> None:
    assert load_tree(Recipe(), FILES[:1], ["schedule.steps=7", "work=elsewhere"]).schedule.steps == 7
    with pytest.raises(ConfigError, match=r"schedule\.stepz: unknown key\. Did you mean schedule\.steps"):
        load_tree(Recipe(), FILES[:1], ["schedule.stepz=7"])
