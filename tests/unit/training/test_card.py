"""The model card says what the recipe and the scores say."""

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from cmasd.training.card import write_card
from cmasd.training.recipe import CardRecipe, Recipe
from tests.unit.training.small import small_recipe

SCORES = [
    {"name": "news", "rows": 10, "bleu": 12.345, "chrf": 40.06, "bleu_signature": "b|v1", "chrf_signature": "c|v2"},
    {"name": "web", "rows": 7, "bleu": 1.0, "chrf": 2.0, "bleu_signature": "b|v1", "chrf_signature": "c|v2"},
]


def card(folder: Path, scores: list[dict[str, object]], limits: str = "") -> str:
    recipe: Recipe = small_recipe(folder, folder)
    about = CardRecipe("Tiny", ["en", "de"], "cc-by-4.0", "Words.\n", limits)
    recipe = replace(recipe, role="drafter", card=about)
    (folder / "model").mkdir()
    write_card(recipe, scores, seconds=600.0, hardware="2 cores of Test", parameters=1_250_000, file="my.yaml")
    return (folder / "model" / "README.md").read_text()


def test_front_matter(tmp_path: Path) -> None:
    start, front, body = card(tmp_path, []).split("---\n", 2)
    assert start == ""
    assert OmegaConf.to_container(OmegaConf.create(front)) == {
        "license": "cc-by-4.0",
        "library_name": "transformers",
        "pipeline_tag": "translation",
        "language": ["en", "de"],
    }
    assert body.startswith("\n# Tiny\n")


def test_facts_and_scores(tmp_path: Path) -> None:
    text = card(tmp_path, list(SCORES), limits="Words only.")
    for fact in ("width 32", "280 pieces", "1.2 M parameters", "float16", "drafter", "10 minutes on 2 cores of Test"):
        assert fact in text
    table = "| test set | rows | BLEU | chrF |\n| --- | --- | --- | --- |\n"
    table += "| news | 10 | 12.3 | 40.1 |\n| web | 7 | 1.0 | 2.0 |\n"
    assert table in text
    assert "`b|v1`" in text
    assert "`c|v2`" in text
    assert text.endswith("## Limits\n\nWords only.\n")


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    text = card(tmp_path, [])
    assert "Scores" not in text
    assert "Limits" not in text
