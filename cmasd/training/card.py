"""The model card: Markdown with the front matter that model hubs read."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmasd.training.recipe import Recipe

NAMES = {"marian": "MarianMT", "bart": "BART", "t5": "T5"}


def write_card(
    recipe: Recipe,
    scores: list[dict[str, Any]],
    seconds: float,
    hardware: str,
    parameters: int,
    file: str,
    curve: Sequence[dict[str, Any]] = (),
) -> None:
    """Write `README.md` beside the weights; `file` is the recipe's, `curve` a router's log.

    `scores` are rows of name, rows, bleu, chrf and signatures; of a parallel drafter name, rows, draft_tokens,
    tokens_per_iteration and acceptance_rate; of a router those of `RouterScore`, with accuracy and its interval.
    """
    card = recipe.card
    library = "transformers" if recipe.kind == "seq2seq" else "cmasd"
    front = ["---", f"license: {card.licence}", f"library_name: {library}", f"pipeline_tag: {card.task}"]
    front += ["language:", *(f"- {code}" for code in card.languages), "---"]
    body = ["", f"# {card.title}", "", _facts(recipe, parameters), "", "## Data", "", card.data.strip()]
    body += ["", "## Recipe", "", f"`cmasd train {file}`", ""]
    body += _training(recipe, seconds, hardware)
    if scores:
        table = {"parallel": _drafts, "router": _ways}.get(recipe.kind, _table)
        body += ["", "## Scores", "", *table(scores)]
    if curve:
        body += ["", "## Curves", "", *_curves(curve)]
    if card.limits:
        body += ["", "## Limits", "", card.limits.strip()]
    (Path(recipe.output) / "README.md").write_text("\n".join([*front, *body]) + "\n")


def _facts(recipe: Recipe, parameters: int) -> str:
    if recipe.kind == "parallel":
        own = recipe.parallel
        return (
            f"A drafter of one pass for `{own.verifier}`: {own.queries} queries, {own.layers} layer(s) over that "
            f"verifier's hidden states and {'an encoder of its own' if own.own_encoder else 'what it read'}, "
            f"feed-forward {own.feed_forward}, Markov head of rank {own.rank}, "
            f"{'a' if own.has_confidence else 'no'} confidence head, trained to draft from "
            f"{own.shortlist or 'all'} tokens; {parameters / 1e6:.2f} M parameters, stored in {recipe.dtype}."
        )
    if recipe.kind == "router":
        return (
            f"A router of R-Stitch+ for `{recipe.router.config}`: it says, token by token, whether the small or the "
            f"large model speaks next, where the speaker's entropy is above {recipe.router.tau:g} of its most; "
            f"{recipe.router.hidden} hidden units over signals of the logits, {parameters:,} parameters. Lossy."
        )
    model = recipe.model
    return (
        f"{NAMES[model.architecture]} architecture, {model.encoder_layers} encoder and {model.decoder_layers} decoder "
        f"layers, width {model.width}, feed-forward {model.feed_forward}, {model.heads} heads, joint byte-level BPE of "
        f"{recipe.tokenizer.vocabulary_size} pieces, {parameters / 1e6:.1f} M parameters, stored in {recipe.dtype}. "
        f"Role in its pair: {recipe.role}."
    )


def _training(recipe: Recipe, seconds: float, hardware: str) -> list[str]:
    schedule = json.dumps(asdict(recipe.schedule))
    mix = json.dumps(recipe.data.mix) if recipe.data.mix else "all rows"
    if recipe.kind == "parallel":
        return [
            f"- Task: `{json.dumps(asdict(recipe.parallel))}`",
            f"- Schedule: `{schedule}`",
            f"- Pairs up to {recipe.data.max_tokens} tokens.",
            f"- Took {seconds / 60:.0f} minutes on {hardware}, checkpoints included.",
        ]
    if recipe.kind == "router":
        return [
            f"- Task: `{json.dumps(asdict(recipe.router))}`",
            f"- Schedule: `{schedule}`",
            f"- Took {seconds / 60:.0f} minutes on {hardware}, since the latest start, checkpoints included.",
        ]
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


def _ways(scores: list[dict[str, Any]]) -> list[str]:
    """Who decides who speaks, and what that is worth."""
    lines = [
        "Latency is of the fitted linear model, over that of the large model alone; no clock was read.",
        "",
        "| who speaks | rows | right (95 %) | reward | latency | said by the small model | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for s in scores:
        right = f"{s['accuracy']:.1%} ({s['accuracy_low']:.1%}-{s['accuracy_high']:.1%})"
        shares = f"{s['latency']:.2f} | {s['small_share']:.1%} | {s['tokens']:.0f}"
        lines.append(f"| {s['name']} | {s['rows']} | {right} | {s['reward']:.3f} | {shares} |")
    return lines


def _curves(curve: Sequence[dict[str, Any]]) -> list[str]:
    """Of each tenth of the training the mean; `curve.json` has every step."""
    lines = [
        "Rollouts in training, with decisions drawn; means of the steps up to each.",
        "",
        "| step | reward | right | latency | said by the small model | groups |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    size = -(-len(curve) // 10)
    for first in range(0, len(curve), size):
        part = curve[first : first + size]
        mean = {key: sum(line[key] for line in part) / len(part) for key in part[0]}
        lines.append(
            f"| {part[-1]['step']} | {mean['reward']:.3f} | {mean['accuracy']:.1%} | {mean['latency']:.2f} | "
            f"{mean['small_share']:.1%} | {mean['groups']:.1f} |"
        )
    return lines


def _drafts(scores: list[dict[str, Any]]) -> list[str]:
    """Tokens per iteration and acceptance rate, a row for each set and a column for each draft length."""
    lengths = sorted({score["draft_tokens"] for score in scores})
    lines = [
        "Tokens per iteration (acceptance rate) with k tokens drafted in every iteration, exact verification.",
        "",
        f"| test set | rows | {' | '.join(f'k = {length}' for length in lengths)} |",
        f"| --- | --- |{' --- |' * len(lengths)}",
    ]
    for name in dict.fromkeys(score["name"] for score in scores):
        of_set = {score["draft_tokens"]: score for score in scores if score["name"] == name}
        rows = next(iter(of_set.values()))["rows"]
        cells = [
            f"{of_set[k]['tokens_per_iteration']:.2f} ({100 * of_set[k]['acceptance_rate']:.0f} %)" for k in lengths
        ]
        lines.append(f"| {name} | {rows} | {' | '.join(cells)} |")
    return lines
