"""`cmasd train RECIPE`: train a verifier, a drafter or a router, export it, score it, write its model card."""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_json, print_json, wants_json
from jobs.machine import machine

if TYPE_CHECKING:
    import torch

    from cmasd.evaluation.quality.drafter_gain import DrafterGain
    from cmasd.evaluation.quality.sets import SetScores
    from cmasd.training.corpus import Corpus
    from cmasd.training.recipe import Recipe
    from cmasd.training.trainer import Task, TrainingProgress

ARCHITECTURES = ("marian", "bart", "t5")
DTYPES = ("float32", "float16", "bfloat16")


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, see configs/train_*.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, e.g. schedule.steps=200")


def main(args: argparse.Namespace) -> int:
    """Train to the end, resuming from `work` if a checkpoint is there."""
    from cmasd.config import load_tree
    from cmasd.models.allocator import keep_freed_memory
    from cmasd.training.recipe import Recipe

    recipe = load_tree(Recipe(), [args.recipe], args.overrides)
    check(recipe, args.recipe)
    keep_freed_memory()
    if recipe.kind == "router":
        from jobs.train_router import train_router

        return finish(train_router(recipe, args.recipe), args)
    if recipe.workers > 1:
        from cmasd.pipeline.workers import together

        everywhere = absolute(recipe)
        together(partial(take_part, everywhere), recipe.workers, recipe.threads or 1, Path(everywhere.work) / "ray")
    return finish(train(recipe, args.recipe), args)


def finish(made: dict[str, Any], args: argparse.Namespace) -> int:
    """Say what was made."""
    print(f"{made['output']}: {made['parameters']:,} trained parameters, {made['seconds']:,} s", flush=True)
    if wants_json(args):
        print_json(made)
    return 0


def absolute(recipe: "Recipe") -> "Recipe":
    """Paths that mean the same in every process."""

    def resolved(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path and Path(path).exists() else path

    return replace(
        recipe,
        work=str(Path(recipe.work).resolve()),
        data=replace(recipe.data, path=str(resolved(recipe.data.path))),
        tokenizer=replace(recipe.tokenizer, path=resolved(recipe.tokenizer.path)),
        start=replace(recipe.start, path=resolved(recipe.start.path)),
        parallel=replace(recipe.parallel, verifier=str(resolved(recipe.parallel.verifier))),
    )


def take_part(recipe: "Recipe") -> None:
    """One worker's share of the training, up to the last checkpoint, from which the command then goes on alone."""
    import torch.distributed as dist

    from cmasd.training.trainer import train as fit

    course = prepare(recipe, recipe.threads or 1)
    fit(recipe, course.task, course.corpus, show if dist.get_rank() == 0 else lambda progress: None)


def _data_wanted(recipe: "Recipe") -> str:
    """What the file must hold, and where such a one can be had."""
    data = recipe.data
    columns = [one for one in (data.audio_column or data.source_column, data.target_column, data.group_column) if one]
    where = data.where.strip().rstrip(".")
    return f": Parquet with the columns {', '.join(columns)}" + (f". {where}" if where else "")


def check(recipe: "Recipe", file: str) -> None:
    """Raise `ConfigError` for what would end the training late: a missing path, or an export that cannot be written."""
    from cmasd.errors import ConfigError

    needed = {"output": recipe.output, "work": recipe.work, "data.path": recipe.data.path}
    if recipe.kind == "parallel":
        needed["parallel.verifier"] = recipe.parallel.verifier
    elif recipe.kind == "router":
        needed["router.config"] = recipe.router.config
    elif recipe.kind != "seq2seq":
        raise ConfigError(f"kind: must be seq2seq, parallel or router, got {recipe.kind}.")
    if recipe.model.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"model.architecture: must be one of {', '.join(ARCHITECTURES)}, got {recipe.model.architecture}."
        )
    for key, value in needed.items():
        if not value:
            raise ConfigError(f"{key}: is not set; expected a path. Add it to {file} or pass {key}=PATH.")
    read = {
        "data.path": recipe.data.path,
        "data.config": recipe.data.config,
        "tokenizer.path": recipe.tokenizer.path,
        "test.path": recipe.test.path,
    }
    for key, path in read.items():
        if path and not Path(path).exists():
            wanted = _data_wanted(recipe) if key == "data.path" else ""
            raise ConfigError(f"{key}: no such file or folder, got {path}. Pass {key}=PATH{wanted}.")
    _check_data(recipe)
    if recipe.workers < 1:
        raise ConfigError(f"workers: must be at least 1, got {recipe.workers}.")
    if recipe.workers > 1 and recipe.kind == "seq2seq" and not recipe.tokenizer.path:
        raise ConfigError(
            f"workers: must be 1 where a tokenizer is trained first, got {recipe.workers}. Pass tokenizer.path=FOLDER."
        )
    if recipe.dtype not in DTYPES:
        raise ConfigError(f"dtype: must be one of {', '.join(DTYPES)}, got {recipe.dtype}.")


def _check_data(recipe: "Recipe") -> None:
    """What a run's prompts, and recordings, do not go together with; raises `ConfigError`."""
    from cmasd.errors import ConfigError

    if recipe.data.config is not None and (recipe.kind != "parallel" or recipe.data.audio_column is not None):
        raise ConfigError(
            f"data.config: is for a parallel drafter that learns from texts, got {recipe.data.config}. Leave it out."
        )
    if recipe.data.audio_column is None:
        return
    others = {
        "kind": recipe.kind != "parallel",
        "parallel.own_encoder": recipe.parallel.own_encoder,
        "test.path": recipe.test.path is not None,
    }
    if asked := [key for key, is_asked in others.items() if is_asked]:
        raise ConfigError(
            "data.audio_column: recordings train a parallel drafter that reads its verifier's encoder, and cmasd run "
            f"scores it; {asked[0]} asks for something else. Leave it out."
        )


def train(recipe: "Recipe", file: str) -> dict[str, Any]:
    """Tokenizer, corpus, training, export, scores, card; returns what came of it."""
    import torch

    from cmasd.training.card import write_card
    from cmasd.training.trainer import train as fit

    course = prepare(recipe, recipe.threads or os.cpu_count() or 1)
    rows = int(course.corpus.share.sum())
    print(f"{rows} pairs per epoch, {recipe.schedule.steps} steps", flush=True)
    seconds = fit(recipe, course.task, course.corpus, show)
    course.export(getattr(torch, recipe.dtype))
    scores = [asdict(score) for score in evaluate(recipe)] if recipe.test.path else []
    parameters = sum(weight.numel() for weight in course.task.model.parameters() if weight.requires_grad)
    write_card(recipe, scores, seconds, machine(torch.cuda.is_available()), parameters, file)
    return {"output": recipe.output, "seconds": round(seconds), "parameters": parameters, "scores": scores}


def prepare(recipe: "Recipe", threads: int) -> "Course":
    """What the recipe asks for; the same in every process."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(recipe.schedule.seed)
    return parallel(recipe) if recipe.kind == "parallel" else seq2seq(recipe)


@dataclass(frozen=True)
class Course:
    """What is trained, on what, and how it is written."""

    task: "Task[Any]"
    corpus: "Corpus"
    export: "Callable[[torch.dtype], None]"


def parallel(recipe: "Recipe") -> Course:
    """A drafter of one pass, for a verifier and its outputs."""
    import torch

    from cmasd.checkpoints.by_name import load_model, load_tokenizer
    from cmasd.errors import ConfigError
    from cmasd.training.corpus import Bare, build_corpus
    from cmasd.training.heard_corpus import build_heard_corpus
    from cmasd.training.parallel_drafter import ParallelTask, build_network, drafted_ids, export_parallel
    from cmasd.training.prompts import Prompts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    verifier = load_model(recipe.parallel.verifier, "float32", device)
    if recipe.parallel.own_encoder and not verifier.config.is_encoder_decoder:
        raise ConfigError(
            f"parallel.own_encoder: {recipe.parallel.verifier} has no encoder, got true; expected false. Remove it."
        )
    tokenizer, heard = load_tokenizer(recipe.parallel.verifier), None
    if recipe.data.audio_column is not None:
        heard = build_heard_corpus(recipe.data, recipe.parallel.verifier, verifier, tokenizer)
    sides = Prompts.of(recipe.data, verifier, tokenizer) or Bare(tokenizer)
    corpus = build_corpus(recipe.data, sides) if heard is None else heard.corpus
    network = build_network(recipe.parallel, verifier)
    ids = drafted_ids(recipe.parallel, corpus, verifier)
    task = ParallelTask(network, verifier, corpus, recipe.parallel, ids, heard)
    return Course(task, corpus, partial(export_parallel, network, corpus, ids, recipe))


def seq2seq(recipe: "Recipe") -> Course:
    """A model that says the target, given the source."""
    import torch

    from cmasd.training.corpus import Bare, build_corpus, read_texts, write_shortlist
    from cmasd.training.seq2seq import Seq2SeqTask, begin, export
    from cmasd.training.tokenizer import read_tokenizer, train_tokenizer

    if recipe.tokenizer.path:
        tokenizer = read_tokenizer(recipe.tokenizer.path)
    else:
        print(f"training a tokenizer of {recipe.tokenizer.vocabulary_size} pieces", flush=True)
        tokenizer = train_tokenizer(read_texts(recipe.data), recipe.tokenizer.vocabulary_size)
    corpus = build_corpus(recipe.data, Bare(tokenizer))
    model: Any = begin(recipe, tokenizer)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    task = Seq2SeqTask(model, corpus, tokenizer, recipe.schedule.label_smoothing)

    def write(dtype: torch.dtype) -> None:
        export(model, tokenizer, recipe, dtype)
        if recipe.role == "drafter":
            write_shortlist(corpus, Path(recipe.output))

    return Course(task, corpus, write)


def show(progress: "TrainingProgress") -> None:
    """One line per report."""
    eta = time.strftime("%H:%M:%S", time.gmtime(progress.eta_seconds))
    print(
        f"step {progress.step}/{progress.steps}  loss {progress.loss_nats:.3f}  "
        f"{progress.gauge[0]} {progress.gauge[1]:.2f}  rate {progress.learning_rate:.1e}  "
        f"{progress.target_tokens_per_second:.0f} tokens/s  ETA {eta}",
        flush=True,
    )


def evaluate(recipe: "Recipe") -> "list[SetScores] | list[DrafterGain]":
    """Scores of the exported model, in our engine: by AR greedy decoding, or as the drafter of its verifier."""
    from cmasd.engine import load_pair
    from cmasd.evaluation.quality.drafter_gain import draft_sets
    from cmasd.evaluation.quality.sets import TestSets, score_sets
    from cmasd.training.prompts import run_of

    base = run_of(recipe.data)
    config = replace(
        base,
        telemetry=replace(base.telemetry, level="none", teacher_top_k=0),
        engine=replace(base.engine, slots=64),
        input=replace(base.input, on_too_long="truncate"),
    )
    assert recipe.test.path is not None, "asked for only with a test file"
    test = recipe.test
    sets = TestSets(test.path or "", test.source_column, test.target_column, test.set_column, test.rows)
    if recipe.kind == "parallel":
        drafts = replace(
            config,
            models=replace(base.models, verifier=recipe.parallel.verifier, drafter=recipe.output),
            drafter=replace(
                base.drafter,
                kind="parallel",
                max_draft_tokens=recipe.parallel.queries,
                shortlist=recipe.parallel.shortlist,
            ),
        )
        lengths = [length for length in (1, 2, 3, 4, 6, 8) if length <= recipe.parallel.queries]
        return draft_sets(
            load_pair(drafts),
            drafts,
            sets,
            lengths,
            on_set=lambda d: print(f"{d.name}: k = {d.draft_tokens}, {d.tokens_per_iteration:.2f} tokens/iteration"),
        )
    plain = replace(
        config,
        models=replace(base.models, verifier=recipe.output, drafter=None),
        policy=replace(base.policy, kind="plain"),
    )
    return score_sets(
        load_pair(plain),
        plain,
        sets,
        on_set=lambda q: print(f"{q.name}: {q.rows} rows, BLEU {q.bleu:.1f}, chrF {q.chrf:.1f}", flush=True),
    )
