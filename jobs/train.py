"""`cmasd train RECIPE`: train a verifier or a drafter, export it, score it, write its model card."""

import argparse
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.machine import machine

if TYPE_CHECKING:
    from cmasd.evaluation.quality import Quality
    from cmasd.training.recipe import Recipe
    from cmasd.training.trainer import Progress

DTYPES = ("float32", "float16", "bfloat16")


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, see configs/train_*.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, e.g. schedule.steps=200")


def main(args: argparse.Namespace) -> int:
    """Train to the end, resuming from `work` if a checkpoint is there."""
    from cmasd.config import load_tree
    from cmasd.runner.allocator import keep_freed_memory
    from cmasd.training.recipe import Recipe

    recipe = load_tree(Recipe(), [args.recipe], args.overrides)
    check(recipe, args.recipe)
    keep_freed_memory()
    return train(recipe)


def check(recipe: "Recipe", file: str) -> None:
    """Raise `ConfigError` for what would end the training late: a missing path, or an export that cannot be written."""
    from cmasd.errors import ConfigError

    needed = {"output": recipe.output, "work": recipe.work, "data.path": recipe.data.path}
    for key, value in needed.items():
        if not value:
            raise ConfigError(f"{key}: is not set; expected a path. Add it to {file} or pass {key}=PATH.")
    read = {"data.path": recipe.data.path, "tokenizer.path": recipe.tokenizer.path, "test.path": recipe.test.path}
    for key, path in read.items():
        if path and not Path(path).exists():
            raise ConfigError(f"{key}: no such file or folder, got {path}. Pass {key}=PATH.")
    if recipe.dtype not in DTYPES:
        raise ConfigError(f"dtype: must be one of {', '.join(DTYPES)}, got {recipe.dtype}.")


def train(recipe: "Recipe") -> int:
    """Tokenizer, corpus, training, export, scores, card."""
    import torch

    from cmasd.training.card import write_card
    from cmasd.training.corpus import build_corpus, read_texts
    from cmasd.training.tokenizer import read_tokenizer, train_tokenizer
    from cmasd.training.trainer import export, write_shortlist
    from cmasd.training.trainer import train as fit

    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    if recipe.tokenizer.path:
        tokenizer = read_tokenizer(recipe.tokenizer.path)
    else:
        print(f"training a tokenizer of {recipe.tokenizer.vocabulary_size} pieces", flush=True)
        tokenizer = train_tokenizer(read_texts(recipe.data), recipe.tokenizer.vocabulary_size)
    corpus = build_corpus(recipe.data, tokenizer)
    print(f"{int(corpus.share.sum())} pairs per epoch, {recipe.schedule.steps} steps", flush=True)
    model, seconds = fit(recipe, corpus, tokenizer, show)
    export(model, tokenizer, recipe, getattr(torch, recipe.dtype))
    if recipe.role == "drafter":
        write_shortlist(corpus, Path(recipe.output))
    scores = [asdict(quality) for quality in evaluate(recipe)] if recipe.test.path else []
    parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    write_card(recipe, scores, seconds, machine(torch.cuda.is_available()), parameters)
    print(json.dumps({"output": recipe.output, "seconds": round(seconds), "parameters": parameters, "scores": scores}))
    return 0


def show(progress: "Progress") -> None:
    """One line per report."""
    eta = time.strftime("%H:%M:%S", time.gmtime(progress.eta_seconds))
    print(
        f"step {progress.step}/{progress.steps}  loss {progress.loss_nats:.3f}  "
        f"source gain {progress.source_gain_nats:.2f}  rate {progress.learning_rate:.1e}  "
        f"{progress.target_tokens_per_second:.0f} tokens/s  ETA {eta}",
        flush=True,
    )


def evaluate(recipe: "Recipe") -> "list[Quality]":
    """Scores of the exported model by AR greedy decoding in our engine."""
    from cmasd.config import Config
    from cmasd.engine import load_pair
    from cmasd.evaluation.quality import TestSets
    from cmasd.evaluation.quality import evaluate as score_sets

    base = Config()
    config = replace(
        base,
        models=replace(base.models, verifier=recipe.output, drafter=None),
        policy=replace(base.policy, kind="plain"),
        telemetry=replace(base.telemetry, level="none"),
        engine=replace(base.engine, slots=64),
        input=replace(base.input, on_too_long="truncate"),
    )
    assert recipe.test.path is not None, "asked for only with a test file"
    test = recipe.test
    sets = TestSets(test.path or "", test.source_column, test.target_column, test.set_column)
    return score_sets(
        load_pair(config),
        config,
        sets,
        on_set=lambda q: print(f"{q.name}: {q.rows} rows, BLEU {q.bleu:.1f}, chrF {q.chrf:.1f}", flush=True),
    )
