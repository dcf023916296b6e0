"""What a model starts with: a larger one's weights (what is copied, what is trained, what does not fit), or a T5's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmasd.errors import ConfigError
from cmasd.training.corpus import Bare, build_corpus
from cmasd.training.recipe import StartRecipe
from cmasd.training.seq2seq import build_model, copy_weights, export
from tests.unit.training.small import SMALL_MODEL, copy_data, fit, small_recipe, small_tokenizer


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A model of three decoder layers, with the tokenizer of the copy task."""
    torch.manual_seed(3)
    recipe = small_recipe(tmp_path / "teacher", tmp_path)
    export(
        build_model(replace(SMALL_MODEL, decoder_layers=3), small_tokenizer()), small_tokenizer(), recipe, torch.float32
    )
    return tmp_path / "teacher" / "model"


def test_copies_encoder_embeddings_and_the_named_layer(teacher: Path) -> None:
    given = build_model(replace(SMALL_MODEL, decoder_layers=3), small_tokenizer())
    given = type(given).from_pretrained(teacher)
    model = build_model(SMALL_MODEL, small_tokenizer())
    copy_weights(model, StartRecipe(str(teacher), decoder_layers=[2]))
    before, after = given.state_dict(), model.state_dict()
    assert torch.equal(after["model.shared.weight"], before["model.shared.weight"])
    assert torch.equal(after["model.encoder.layers.0.fc1.weight"], before["model.encoder.layers.0.fc1.weight"])
    assert torch.equal(after["model.decoder.layers.0.fc1.weight"], before["model.decoder.layers.2.fc1.weight"])


@pytest.mark.parametrize("train_encoder", [False, True])
def test_trains_the_copied_encoder_only_when_asked(teacher: Path, tmp_path: Path, train_encoder: bool) -> None:
    recipe = small_recipe(tmp_path, copy_data(tmp_path))
    recipe = replace(recipe, start=StartRecipe(str(teacher), [1], train_encoder))
    start = build_model(SMALL_MODEL, small_tokenizer())
    copy_weights(start, recipe.start)
    trained, _ = fit(recipe, build_corpus(recipe.data, Bare(small_tokenizer())))
    name = "model.encoder.layers.0.fc1.weight"
    assert torch.equal(trained.state_dict()[name], start.state_dict()[name]) is not train_encoder
    name = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(trained.state_dict()[name], start.state_dict()[name])


def test_another_width_is_refused(teacher: Path) -> None:
    model = build_model(replace(SMALL_MODEL, width=16), small_tokenizer())
    with pytest.raises(ConfigError, match=r"^start: .* does not fit the model of this recipe"):
        copy_weights(model, StartRecipe(str(teacher), [0]))


def test_a_wider_feed_forward_begins_with_the_same_function(teacher: Path) -> None:
    given: Any = build_model(replace(SMALL_MODEL, decoder_layers=3), small_tokenizer())
    given = type(given).from_pretrained(teacher).eval()
    wider = replace(SMALL_MODEL, decoder_layers=3, feed_forward=2 * SMALL_MODEL.feed_forward)
    model: Any = build_model(wider, small_tokenizer()).train(False)
    copy_weights(model, StartRecipe(str(teacher), [0, 1, 2], train_encoder=True))
    source, target = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 6, 7]])
    expected = given(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(model(input_ids=source, decoder_input_ids=target).logits, expected)
    new_units = model.state_dict()["model.encoder.layers.0.fc1.weight"][SMALL_MODEL.feed_forward :]
    assert new_units.abs().max() > 0, "units that read nothing would learn nothing"


def test_copies_the_named_layer_of_t5_and_the_distances_of_all(tmp_path: Path) -> None:
    small = replace(SMALL_MODEL, architecture="t5")
    given = build_model(replace(small, decoder_layers=3), small_tokenizer())
    distances = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    with torch.no_grad():
        given.get_parameter(distances).add_(1)
    export(given, small_tokenizer(), small_recipe(tmp_path, tmp_path), torch.float32)
    model = build_model(small, small_tokenizer())
    copy_weights(model, StartRecipe(str(tmp_path / "model"), decoder_layers=[2]))
    before, after = given.state_dict(), model.state_dict()
    for name in ("shared.weight", "encoder.block.0.layer.1.DenseReluDense.wi.weight", distances):
        assert torch.equal(after[name], before[name])
    for part in ("layer.0.SelfAttention.q.weight", "layer.2.DenseReluDense.wi.weight"):
        assert torch.equal(after[f"decoder.block.0.{part}"], before[f"decoder.block.2.{part}"])
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("decoder.")
    }


def test_a_fresh_t5_looks_at_neighbours_and_for_like_tokens() -> None:
    torch.manual_seed(5)
    recipe = replace(SMALL_MODEL, architecture="t5", width=128, heads=4)
    model: Any = build_model(recipe, small_tokenizer())
    source = torch.randperm(270)[None, :12] + 3
    with torch.no_grad():
        out = model(source, decoder_input_ids=source[:, [7, 3, 9]], output_attentions=True)
    back, ahead = out.encoder_attentions[0][0, 0], out.encoder_attentions[0][0, 1]
    assert back.diagonal(-1).min() > 0.5 < ahead.diagonal(1).min()
    assert out.decoder_attentions[0][0, 0].diagonal(-1).min() > 0.5
    assert out.cross_attentions[0][0].mean(0).argmax(-1).tolist() == [7, 3, 9]
