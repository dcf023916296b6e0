"""The recipes in `configs/` load, and fit together."""

from pathlib import Path

import pytest

from cmasd.config import load_tree
from cmasd.errors import ConfigError
from cmasd.training.recipe import Recipe

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(CONFIGS.glob("train_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_loads(path: Path) -> None:
    recipe = load_tree(Recipe(), [path])
    assert path.stem == f"train_{recipe.kind if recipe.kind == 'parallel' else recipe.role}", "as the card names it"
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
    assert len(FILES) == 3
    assert parallel.data.path == drafter.data.path
    assert verifier.output.endswith(parallel.parallel.verifier)
    assert drafter.tokenizer.path == verifier.output
    assert drafter.data.max_tokens <= verifier.data.max_tokens


def test_overrides_and_typos() -> None:
    assert load_tree(Recipe(), FILES[:1], ["schedule.steps=7", "work=elsewhere"]).schedule.steps == 7
    with pytest.raises(ConfigError, match=r"schedule\.stepz: unknown key\. Did you mean schedule\.steps"):
        load_tree(Recipe(), FILES[:1], ["schedule.stepz=7"])
