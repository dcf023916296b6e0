"""Small corpora and recipes for tests of training: a copy task, and a model of one layer and width 32."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerFast

from cmasd.training.corpus import Corpus
from cmasd.training.recipe import DataRecipe, ModelRecipe, Recipe, ScheduleRecipe, TokenizerRecipe
from cmasd.training.seq2seq import Seq2SeqModel, Seq2SeqTask, begin, build_model, export
from cmasd.training.tokenizer import train_tokenizer
from cmasd.training.trainer import TrainingProgress, train

WORDS = ["ah", "bee", "cee", "dee", "eff", "gee", "hay", "jay", "kay", "oak", "pea", "tea"]
VOCABULARY = 280
SMALL_MODEL = ModelRecipe(encoder_layers=1, decoder_layers=1, width=32, feed_forward=64, heads=4, max_positions=64)


def sentences(count: int, seed: int = 0, longest: int = 4) -> list[str]:
    """Random words, one to `longest` of them."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


@cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the words of the copy task."""
    return train_tokenizer(sentences(200), VOCABULARY)


def write_rows(path: Path, **columns: list[Any]) -> Path:
    """A Parquet file of the given columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def copy_data(folder: Path, count: int = 300, seed: int = 0) -> Path:
    """A Parquet file of pairs whose sides are the same."""
    texts = sentences(count, seed)
    return write_rows(folder / "pairs.parquet", en=texts, de=texts)


def small_recipe(folder: Path, data: Path, **schedule: Any) -> Recipe:
    """A recipe of 12 steps unless told otherwise; it writes below `folder`."""
    recipe = Recipe(
        output=str(folder / "model"),
        work=str(folder / "work"),
        data=DataRecipe(path=str(data)),
        tokenizer=TokenizerRecipe(vocabulary_size=VOCABULARY),
        model=SMALL_MODEL,
        schedule=ScheduleRecipe(steps=12, warmup_steps=3, batch_tokens=256, learning_rate=3e-3, label_smoothing=0.0),
        threads=1,
    )
    return replace(recipe, schedule=replace(recipe.schedule, **schedule))


def fit(
    recipe: Recipe,
    corpus: Corpus,
    report: Callable[[TrainingProgress], None] = lambda progress: None,
    report_every: int = 50,
) -> tuple[Seq2SeqModel, float]:
    """Train a sentence model to the end, or from its checkpoint to the end; the model, and the seconds it took."""
    torch.manual_seed(recipe.schedule.seed)
    model = begin(recipe, small_tokenizer())
    task = Seq2SeqTask(model, corpus, small_tokenizer(), recipe.schedule.label_smoothing)
    return model, train(recipe, task, corpus, report, report_every)


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """A random model with the tokenizer of the copy task, as training exports it; its layers are large enough to
    make outputs differ, which have 31 tokens at most.
    """
    torch.manual_seed(seed)
    recipe = small_recipe(folder, folder)
    model = build_model(recipe.model, small_tokenizer())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name and "shared" not in name:
                weight.mul_(4)
    export(model, small_tokenizer(), recipe, torch.float32)
    return folder / "model"
