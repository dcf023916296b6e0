"""`cmasd train` for `kind: router`: who of two models speaks, learned from questions with checkable answers."""

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.machine import machine

if TYPE_CHECKING:
    from cmasd.codecs.text import TextCodec
    from cmasd.config import Config
    from cmasd.training.recipe import Recipe
    from cmasd.training.router_rollouts import CheckedQuestion
    from cmasd.training.router_scores import RouterScore


def train_router(recipe: "Recipe", file: str) -> dict[str, Any]:
    """Lessons, warm start, DAPO, export, scores, card; returns what came of it."""
    import torch

    from cmasd.engine import load_pair
    from cmasd.training.router_rollouts import Rollouts, rollout_config
    from cmasd.training.router_training import RouterTraining, curve, export_router
    from jobs.train import show

    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    run = run_config(recipe, file)
    config = rollout_config(run)
    pair = load_pair(config)
    data = recipe.data
    questions = read_questions(data.path, data.source_column, data.target_column, recipe.router.questions, pair.codec)
    rollouts = Rollouts(pair, config, partial(grade, run, pair.codec))
    training = RouterTraining(recipe, rollouts, questions)
    print(f"{len(questions)} questions, {recipe.schedule.steps} steps", flush=True)
    network, seconds = training.train(show, taught(training))
    export_router(network, recipe)
    scores = score(recipe, training, network) if recipe.test.path else []
    parameters = sum(weight.numel() for weight in network.parameters())
    lines = curve(Path(recipe.work))
    write_card_of(recipe, scores, seconds, parameters, file, lines)
    return {"output": recipe.output, "seconds": round(seconds), "parameters": parameters, "scores": scores}


def run_config(recipe: "Recipe", file: str) -> "Config":
    """Of the runs that the router is for; raises `ConfigError` where answers cannot be checked."""
    from cmasd.config import load
    from cmasd.errors import ConfigError

    if recipe.workers != 1:
        raise ConfigError(f"workers: must be 1 for kind router, got {recipe.workers}. Leave it out.")
    if not Path(recipe.router.config).exists():
        raise ConfigError(f"router.config: no such file, got {recipe.router.config}. Pass router.config=PATH.")
    least_of = {"questions": 1, "hidden": 1, "prompts": 1, "rollouts": 2, "passes": 1, "tries": 0, "latency_rows": 1}
    for key, least in least_of.items():
        value = getattr(recipe.router, key)
        if value is not None and value < least:
            raise ConfigError(f"router.{key}: must be at least {least}, got {value}.")
    for key in ("tau", "recall"):
        if not 0 <= (value := getattr(recipe.router, key)) <= 1:
            raise ConfigError(f"router.{key}: must be between 0 and 1, got {value}.")
    overrides = ["policy.kind=stitch", "stitch.random=[]", *recipe.router.overrides]
    config = load([recipe.router.config], overrides)
    if config.compare.answer == "none":
        raise ConfigError(
            f"compare.answer: must be gsm8k, regex or exact in {recipe.router.config}, got none; a router is rewarded "
            f"for right answers. Set it there, or in router.overrides of {file}."
        )
    rows, slots = recipe.router.latency_rows, config.engine.slots
    if rows is not None and slots is not None and rows > slots:
        raise ConfigError(f"router.latency_rows: must be at most engine.slots, {slots}, got {rows}. Lower it.")
    return config


def read_questions(
    path: str, question_column: str, answer_column: str, most: int | None, codec: "TextCodec"
) -> "list[CheckedQuestion]":
    """The first rows of a Parquet file or folder; those that cannot be encoded are left out."""
    import pyarrow.parquet as pq

    from cmasd.core import RowError
    from cmasd.errors import ConfigError
    from cmasd.training.router_rollouts import CheckedQuestion

    try:
        table = pq.read_table(path, columns=[question_column, answer_column])
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"data.path: {path} cannot be read ({reason}); expected Parquet with both columns.") from None
    missing = {question_column, answer_column} - set(table.column_names)
    if missing:
        raise ConfigError(
            f"{path}: has no column {', '.join(sorted(missing))}. Set data.source_column and data.target_column."
        )
    table = table.slice(0, most)
    sources = codec.encode(table[question_column].to_pylist())
    answers = map(str, table[answer_column].to_pylist())
    pairs = zip(sources, answers, strict=True)
    questions = [CheckedQuestion(source, answer) for source, answer in pairs if not isinstance(source, RowError)]
    if not questions:
        why = f" (the first: {sources[0]})" if sources else ""
        raise ConfigError(f"{path}: no row is a question that fits, got {table.num_rows} rows{why}; expected some.")
    return questions


def grade(config: "Config", codec: "TextCodec", said: list[list[int]], answers: list[str]) -> list[bool]:
    """Of outputs, whether they give these answers; what has no text is wrong."""
    from cmasd.core import RowError
    from cmasd.evaluation.quality.answers import is_right

    texts = codec.decode(said)
    return [
        not isinstance(text, RowError) and is_right(config.compare, text, answer)
        for text, answer in zip(texts, answers, strict=True)
    ]


def taught(training: Any) -> Callable[[int, int], None]:
    """A line for each piece of the lessons."""

    def tell(done: int, questions: int) -> None:
        print(f"lessons {done}/{questions}", flush=True)

    return tell


def score(recipe: "Recipe", training: Any, network: Any) -> list[dict[str, Any]]:
    """Each way of deciding who speaks, on the test questions."""
    from cmasd.evaluation.quality.answers import with_interval
    from cmasd.training.router_scores import score_router

    test, codec = recipe.test, training.rollouts.pair.codec
    questions = read_questions(test.path or "", test.source_column, test.target_column, test.rows, codec)

    def tell(one: "RouterScore") -> None:
        print(
            f"{one.name}: {one.right}/{one.rows} right, reward {one.reward:.3f}, latency {one.latency:.2f}", flush=True
        )

    assert training.warm is not None, "it has been trained"
    scores = score_router(training.rollouts, questions, network, training.warm, recipe.router.latency_weight, tell)
    return [{**asdict(one), **with_interval(one.right, one.rows)} for one in scores]


def write_card_of(
    recipe: "Recipe",
    scores: list[dict[str, Any]],
    seconds: float,
    parameters: int,
    file: str,
    lines: list[dict[str, Any]],
) -> None:
    """`README.md` beside the router."""
    import torch

    from cmasd.training.card import write_card

    write_card(recipe, scores, seconds, machine(torch.cuda.is_available()), parameters, file, lines)
