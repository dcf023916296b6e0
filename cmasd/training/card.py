"""The model card: Markdown with the front matter that model hubs read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmasd.training.recipe import Recipe


def write_card(recipe: Recipe, scores: list[dict[str, Any]], seconds: float, hardware: str, parameters: int) -> None:
    """Write `README.md` beside the weights; `scores` are rows of name, rows, bleu, chrf and signatures."""
    card = recipe.card
    front = ["---", f"license: {card.licence}", "library_name: transformers", "pipeline_tag: translation"]
    front += ["language:", *(f"- {code}" for code in card.languages), "---"]
    body = ["", f"# {card.title}", "", _facts(recipe, parameters), "", "## Data", "", card.data.strip()]
    body += ["", "## Recipe", "", f"`cmasd train configs/train_{recipe.role}.yaml`", ""]
    body += _training(recipe, seconds, hardware)
    if scores:
        body += ["", "## Scores", "", *_table(scores)]
    if card.limits:
        body += ["", "## Limits", "", card.limits.strip()]
    (Path(recipe.output) / "README.md").write_text("\n".join([*front, *body]) + "\n")


def _facts(recipe: Recipe, parameters: int) -> str:
    model = recipe.model
    return (
        f"MarianMT architecture, {model.encoder_layers} encoder and {model.decoder_layers} decoder layers, "
        f"width {model.width}, feed-forward {model.feed_forward}, {model.heads} heads, joint byte-level BPE of "
        f"{recipe.tokenizer.vocabulary_size} pieces, {parameters / 1e6:.1f} M parameters, stored in {recipe.dtype}. "
        f"Role in its pair: {recipe.role}."
    )


def _training(recipe: Recipe, seconds: float, hardware: str) -> list[str]:
    schedule = json.dumps(asdict(recipe.schedule))
    mix = json.dumps(recipe.data.mix) if recipe.data.mix else "all rows"
    start = recipe.start
    trained = "all weights" if start.train_encoder else "decoder layers alone"
    begun = (
        f"from `{start.path}`, decoder layers {start.decoder_layers}, training {trained}" if start.path else "at random"
    )
    return [
        f"- Begins {begun}.",
        f"- Schedule: `{schedule}`",
        f"- Share of each corpus per epoch: `{mix}`; pairs up to {recipe.data.max_tokens} tokens.",
        f"- Took {seconds / 60:.0f} minutes on {hardware}, checkpoints included.",
    ]


def _table(scores: list[dict[str, Any]]) -> list[str]:
    lines = ["Greedy decoding, sacreBLEU.", "", "| test set | rows | BLEU | chrF |", "| --- | --- | --- | --- |"]
    lines += [f"| {s['name']} | {s['rows']} | {s['bleu']:.1f} | {s['chrf']:.1f} |" for s in scores]
    return [*lines, "", f"`{scores[0]['bleu_signature']}`", "", f"`{scores[0]['chrf_signature']}`"]
