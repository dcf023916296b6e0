"""Training: it learns, a killed run ends with the weights of an unkilled one, and what it exports loads anywhere."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cmasd.errors import ConfigError
from cmasd.training.corpus import Bare, Corpus, build_corpus
from cmasd.training.recipe import Recipe, ScheduleRecipe
from cmasd.training.seq2seq import Seq2SeqModel, build_model, export, source_gain, token_loss
from cmasd.training.trainer import TrainingProgress, rate
from tests.unit.training.small import SMALL_MODEL, copy_data, fit, small_recipe, small_tokenizer


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = copy_data(tmp_path_factory.mktemp("data"))
    return build_corpus(small_recipe(path.parent, path).data, Bare(small_tokenizer()))


@pytest.fixture(scope="module", params=["marian", "t5"])
def learned(
    tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, request: pytest.FixtureRequest
) -> tuple[Seq2SeqModel, Recipe, list[TrainingProgress]]:
    """A model that has learned to copy."""
    folder = tmp_path_factory.mktemp("learned")
    recipe = small_recipe(folder, folder, steps=200, warmup_steps=20, learning_rate=1e-2, batch_tokens=256)
    recipe = replace(recipe, model=replace(SMALL_MODEL, architecture=request.param))
    reports: list[TrainingProgress] = []
    model, _ = fit(recipe, corpus, reports.append)
    return model, recipe, reports


def batch(corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    rows = max(corpus.batches(0, 0, 400), key=len)
    return corpus.source.padded(rows, 0), corpus.target.padded(rows, 0)


def kill_at(step: int) -> Callable[[TrainingProgress], None]:
    def report(progress: TrainingProgress) -> None:
        if progress.step == step:
            raise Killed

    return report


def weights(recipe: Recipe, corpus: Corpus) -> dict[str, torch.Tensor]:
    """Trained to the end, or from the checkpoint to the end."""
    model, _ = fit(recipe, corpus, lambda progress: None)
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_copy_task_is_learned(learned: tuple[Seq2SeqModel, Recipe, list[TrainingProgress]]) -> None:
    _, _, reports = learned
    assert [report.step for report in reports] == [50, 100, 150, 200]
    assert reports[0].loss_nats > 1.5 > 0.6 > reports[-1].loss_nats
    assert reports[-1].gauge[1] > 1.5
    assert reports[-1].eta_seconds == 0
    assert all(report.target_tokens_per_second > 0 and report.steps == 200 for report in reports)


def test_source_gain_tells_whether_sources_are_read(
    learned: tuple[Seq2SeqModel, Recipe, list[TrainingProgress]], corpus: Corpus
) -> None:
    torch.manual_seed(0)
    untrained = build_model(SMALL_MODEL, small_tokenizer())
    assert abs(source_gain(untrained, *batch(corpus))) < 0.02
    assert source_gain(learned[0], *batch(corpus)) > 1.5


def test_an_untrained_model_knows_nothing(corpus: Corpus) -> None:
    torch.manual_seed(0)
    loss = token_loss(build_model(SMALL_MODEL, small_tokenizer()), *batch(corpus), smoothing=0.0).item()
    assert loss == pytest.approx(math.log(len(small_tokenizer())), abs=0.8)


def test_loss_ignores_padding(learned: tuple[Seq2SeqModel, Recipe, list[TrainingProgress]], corpus: Corpus) -> None:
    source, target = batch(corpus)
    wider = [torch.nn.functional.pad(ids, (0, 5)) for ids in (source, target)]
    loss = token_loss(learned[0], source, target, smoothing=0.1).item()
    assert token_loss(learned[0], wider[0], wider[1], smoothing=0.1).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("killed_at", [3, 12])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, corpus: Corpus, killed_at: int) -> None:
    whole = weights(small_recipe(tmp_path / "whole", tmp_path), corpus)
    recipe = replace(small_recipe(tmp_path / "killed", tmp_path), checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        fit(recipe, corpus, kill_at(killed_at), report_every=1)
    state = torch.load(tmp_path / "killed" / "work" / "checkpoint.pt", weights_only=True)
    assert state["step"] == killed_at - 1, "the last step before the kill"
    assert equal(weights(recipe, corpus), whole)


def test_dropout_and_the_average_survive_a_kill(tmp_path: Path, corpus: Corpus) -> None:
    def recipe(name: str) -> Recipe:
        one = small_recipe(tmp_path / name, tmp_path, average_decay=0.5)
        return replace(one, model=replace(one.model, dropout=0.2), checkpoint_seconds=0.0)

    whole = weights(recipe("whole"), corpus)
    with pytest.raises(Killed):
        fit(recipe("killed"), corpus, kill_at(7), report_every=1)
    assert equal(weights(recipe("killed"), corpus), whole)


def test_what_is_exported_is_the_moving_average(tmp_path: Path, corpus: Corpus) -> None:
    """After two steps with decay 3/4: three quarters of the first step's weights and one of the second's."""
    first, second, mean = (
        weights(small_recipe(tmp_path / name, tmp_path, steps=steps, decay_share=0.0, average_decay=decay), corpus)
        for name, steps, decay in (("first", 1, 0.0), ("second", 2, 0.0), ("mean", 2, 0.75))
    )
    assert not equal(first, second)
    for name in first:
        torch.testing.assert_close(mean[name], 0.75 * first[name] + 0.25 * second[name])


def test_dropout_teaches_only_while_training(corpus: Corpus) -> None:
    torch.manual_seed(0)
    model = build_model(replace(SMALL_MODEL, dropout=0.5), small_tokenizer())
    losses = [[token_loss(model.train(train), *batch(corpus), 0.0).item() for _ in range(2)] for train in (True, False)]
    assert losses[0][0] != losses[0][1]
    assert losses[1][0] == losses[1][1]
    assert source_gain(model.train(), *batch(corpus)) == source_gain(model.train(), *batch(corpus))
    assert model.training


def test_seeds_decide_the_weights(tmp_path: Path, corpus: Corpus) -> None:
    runs = [
        weights(small_recipe(tmp_path / str(i), tmp_path, steps=3, seed=seed), corpus)
        for i, seed in enumerate([1, 1, 2])
    ]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_a_finished_training_is_not_repeated(tmp_path: Path, corpus: Corpus) -> None:
    recipe = small_recipe(tmp_path, tmp_path, steps=5)
    first, seconds = fit(recipe, corpus, lambda progress: None)
    again, same_seconds = fit(recipe, corpus, kill_at(5))
    assert same_seconds == seconds > 0
    assert equal(first.state_dict(), again.state_dict())


def test_more_steps_go_on_from_the_checkpoint(tmp_path: Path, corpus: Corpus) -> None:
    """With a schedule that does not decay, 4 steps and 4 more are 8 steps."""
    recipe = small_recipe(tmp_path / "a", tmp_path, steps=4, decay_share=0.0)
    weights(recipe, corpus)
    steps: list[int] = []
    longer = replace(recipe, schedule=replace(recipe.schedule, steps=8))
    model, _ = fit(longer, corpus, lambda progress: steps.append(progress.step), report_every=1)
    assert steps == [5, 6, 7, 8]
    whole = weights(small_recipe(tmp_path / "b", tmp_path, steps=8, decay_share=0.0), corpus)
    assert equal(dict(model.state_dict()), whole)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    recipe = small_recipe(tmp_path, tmp_path, steps=1)
    weights(recipe, corpus)
    wider = replace(recipe, model=replace(recipe.model, width=64))
    with pytest.raises(ConfigError, match=r"work: .*checkpoint\.pt is of a model of another shape"):
        weights(wider, corpus)


def test_rate_rises_stays_and_falls() -> None:
    schedule = ScheduleRecipe(steps=100, warmup_steps=10, decay_share=0.4, learning_rate=2.0)
    rates = [rate(step, schedule) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(rates[10:61]) == {2.0}
    assert rates[60:] == pytest.approx([2.0 * (100 - step) / 40 for step in range(60, 100)])
    assert rate(100, schedule) == 0


def test_rate_without_warm_up_or_decay() -> None:
    schedule = ScheduleRecipe(steps=10, warmup_steps=0, decay_share=0.0, learning_rate=2.0)
    assert {rate(step, schedule) for step in range(10)} == {2.0}


def test_exported_model_loads_in_plain_transformers(
    learned: tuple[Seq2SeqModel, Recipe, list[TrainingProgress]], corpus: Corpus, tmp_path: Path
) -> None:
    trained, recipe, _ = learned
    source, target = batch(corpus)
    copy: Any = build_model(recipe.model, small_tokenizer()).eval()  # type: ignore[no-untyped-call]
    copy.load_state_dict(trained.state_dict())
    with torch.no_grad():
        expected = copy(source, attention_mask=(source != 0).long(), decoder_input_ids=target).logits
    export(copy, small_tokenizer(), replace(recipe, output=str(tmp_path)), torch.float16)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(source, attention_mask=(source != 0).long(), decoder_input_ids=target).logits
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max(), "rounding to float16, nothing else"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["kay gee", "oak"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    generated = model.generate(**inputs)
    assert tokenizer.batch_decode(generated, skip_special_tokens=True) == texts
    assert torch.equal(generated, cast(Any, trained).generate(**inputs, generation_config=model.generation_config))


def test_exported_generation_config(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tmp_path)
    export(build_model(recipe.model, small_tokenizer()), small_tokenizer(), recipe, torch.float16)
    generation = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").generation_config
    ids = (generation.pad_token_id, generation.eos_token_id, generation.decoder_start_token_id)
    assert ids == (0, 1, 0)
    assert generation.bad_words_ids == [[0]], "an untrained start token is never generated"
    assert generation.bos_token_id is None
    assert (generation.max_length, generation.num_beams) == (32, 1)
    assert generation.forced_eos_token_id is None


def test_a_certain_teacher_is_the_target_and_an_even_one_is_between(
    corpus: Corpus, learned: tuple[Seq2SeqModel, Recipe, list[TrainingProgress]]
) -> None:
    model, (source, target) = learned[0], batch(corpus)
    ids = target[target != 0]
    wrong = torch.full_like(ids, int(ids[0]) + 1)
    both = torch.stack([ids, wrong], dim=1)
    with torch.no_grad():
        given = token_loss(model, source, target, 0.0)
        certain, other, even = (
            token_loss(model, source, target, 0.0, (both, torch.tensor(shares).expand(both.shape)))
            for shares in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5])
        )
    torch.testing.assert_close(certain, given)
    torch.testing.assert_close(even, (certain + other) / 2)
    assert other > certain
