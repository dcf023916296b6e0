"""Loading gives the saved weights, and each way of going wrong gives one line that says what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, MarianConfig, MarianMTModel, PreTrainedTokenizerFast, T5Config

from cmasd.checkpoints import by_name as models
from cmasd.errors import ModelError

MARIAN: dict[str, Any] = {
    "vocab_size": 20,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
LLAMA: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def word_tokenizer(*words: str, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=eos)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete tiny model."""
    folder = tmp_path_factory.mktemp("models") / "marian"
    torch.manual_seed(0)
    model = MarianMTModel(MarianConfig(**MARIAN))
    model.generation_config.forced_eos_token_id = 1
    model.save_pretrained(folder)
    word_tokenizer("a", "b").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _refusal(name: object, allow_pickle: bool = False) -> str:
    """The one line that a user sees."""
    with pytest.raises(ModelError) as caught:
        models.load_model(str(name), "auto", "cpu", allow_pickle=allow_pickle)
    assert caught.value.exit_code == 2
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{name}: ")
    return line


def test_a_folder_loads_with_its_generation_config_ready_for_inference(saved: Path) -> None:
    model = models.load_model(str(saved), "auto", "cpu")
    assert isinstance(model, MarianMTModel)
    assert model.generation_config is not None
    assert model.generation_config.forced_eos_token_id == 1
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    stored = MarianMTModel.from_pretrained(saved).state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_dtype_is_the_one_asked_for(saved: Path, dtype: models.DtypeName) -> None:
    assert models.load_model(str(saved), dtype, "cpu").dtype is getattr(torch, dtype)


def test_auto_widens_half_precision_weights_on_a_cpu(saved: Path, tmp_path: Path) -> None:
    MarianMTModel.from_pretrained(saved, dtype=torch.float16).save_pretrained(tmp_path)
    assert models.load_model(str(tmp_path), "auto", "cpu").dtype is torch.float32


def test_a_decoder_only_model_loads(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path)
    assert isinstance(models.load_model(str(tmp_path), "auto", "cpu"), LlamaForCausalLM)


def test_bundled_names_resolve_to_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = folder.parent / "pairs"
    shutil.copytree(folder, pairs / "en-xx" / "verifier")
    monkeypatch.setattr(models, "PAIRS", pairs)
    assert models.bundled_names() == ["en-xx/verifier"]
    assert models.resolve("en-xx/verifier") == pairs / "en-xx" / "verifier"
    assert models.load_tokenizer("en-xx/verifier").eos_token_id == 1
    assert "bundled model (en-xx/verifier)" in _refusal("/no/such/folder")


def test_other_names_resolve_to_folders_or_to_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert models.resolve("model") == Path("model")
    assert models.resolve("Helsinki-NLP/opus-mt-en-de") == "Helsinki-NLP/opus-mt-en-de"
    assert models.resolve("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/no-such-model", "one/two/three"])
def test_a_missing_folder_is_not_sought_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such model folder. Give an existing folder" in _refusal(name)


def test_an_empty_name() -> None:
    with pytest.raises(ModelError, match="models: a name is empty, got ' '"):
        models.resolve(" ")


def test_a_hub_name_that_is_not_cached_offline() -> None:
    assert "the configuration cannot be had from the Hugging Face hub (" in _refusal("nobody/no-such-model")
    with pytest.raises(ModelError, match="the tokenizer cannot be had from the Hugging Face hub"):
        models.load_tokenizer("nobody/no-such-model")


def test_a_file_is_not_a_model(folder: Path) -> None:
    assert "is a file; expected a model folder" in _refusal(folder / "config.json")


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "no config.json in the folder" in _refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{nope", "not a valid JSON file"),
        ("{}", "Unrecognized model"),
        ('{"model_type": "zork"}', "model type `zork`"),
        ('{"model_type": "vit"}', "ViTConfig"),
    ],
)
def test_a_configuration_that_is_no_text_model(folder: Path, text: str, expected: str) -> None:
    (folder / "config.json").write_text(text)
    assert expected in _refusal(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights in the folder; expected model.safetensors" in _refusal(folder)


def test_pickles_are_read_only_when_allowed(folder: Path) -> None:
    state = MarianMTModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert "pickle format, got pytorch_model.bin; expected model.safetensors" in _refusal(folder)
    model = models.load_model(str(folder), "auto", "cpu", allow_pickle=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_damaged_weights(folder: Path, share: float) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * share)])
    assert "the safetensors file is damaged" in _refusal(folder)


def test_weights_that_the_configuration_does_not_fit(folder: Path) -> None:
    _edit_config(folder, d_model=32)
    assert "do not have the shapes that config.json calls for" in _refusal(folder)


def test_missing_tensors_are_an_error_and_not_random_numbers(folder: Path) -> None:
    _edit_config(folder, decoder_layers=2)
    assert "lacks 26 tensors that its config.json calls for, the first is model.decoder.layers.1." in _refusal(folder)


def test_a_repositorys_own_code_is_not_run(folder: Path) -> None:
    _edit_config(folder, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    (folder / "configuration_own.py").write_text("raise SystemExit('ran')")
    assert "the repository's own code, which is not run by itself" in _refusal(folder)


def test_a_folder_without_tokenizer_files_gives_no_empty_tokenizer(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer next to the model; expected one of tokenizer\.json"):
        models.load_tokenizer(str(tmp_path))


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        models.load_tokenizer(str(folder))


def test_loading_is_silent(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.logging.set_verbosity_info()
    transformers.logging.enable_progress_bar()
    models.load_model(str(saved), "auto", "cpu")
    models.load_tokenizer(str(saved))
    assert capfd.readouterr() == ("", "")


def _check(
    drafter_config: transformers.PretrainedConfig | None = None,
    drafter: PreTrainedTokenizerFast | None = None,
    verifier: PreTrainedTokenizerFast | None = None,
) -> None:
    config = MarianConfig(**MARIAN)
    models.check_pair(config, drafter_config or config, verifier or word_tokenizer("a", "b"), drafter)


def test_a_pair_that_shares_its_tokenizer_passes() -> None:
    _check(MarianConfig(**{**MARIAN, "d_model": 8, "decoder_layers": 2}), word_tokenizer("a", "b"))
    _check(drafter=None)
    _check(drafter=word_tokenizer("a", "b", "added later"))


def test_vocabularies_that_differ_by_padding_pass() -> None:
    """Qwen2.5 has 151,936 columns at 0.5B and 152,064 at 7B, over one tokenizer of fewer tokens."""
    for size in (8, 20, 40):
        _check(MarianConfig(**{**MARIAN, "vocab_size": size}), word_tokenizer("a", "b"))


@pytest.mark.parametrize(
    ("size", "drafter"),
    [(40, None), (8, word_tokenizer("a", "b", *"cdefgh")), (8, None)],
    ids=["no tokenizer to tell", "tokens past the smaller", "smaller without a tokenizer"],
)
def test_other_vocabularies_of_different_sizes(size: int, drafter: PreTrainedTokenizerFast | None) -> None:
    with pytest.raises(ModelError, match=rf"disagree on the vocabulary: 20 vs {size} tokens"):
        _check(MarianConfig(**{**MARIAN, "vocab_size": size}), drafter)


def test_vocabularies_of_different_sizes() -> None:
    with pytest.raises(ModelError) as caught:
        _check(MarianConfig(**{**MARIAN, "vocab_size": 32100}))
    assert str(caught.value) == (
        "Drafter and verifier disagree on the vocabulary: 20 vs 32100 tokens. "
        "Speculative decoding compares token ids, so both must share one tokenizer."
    )


def test_vocabularies_of_one_size_with_other_pieces() -> None:
    with pytest.raises(ModelError, match=r"1 of 5 ids differ, the first is 4: 'c' vs 'b'\. Speculative decoding"):
        _check(drafter=word_tokenizer("a", "c"))


def test_an_encoder_decoder_cannot_be_drafted_for_by_a_language_model() -> None:
    with pytest.raises(ModelError, match=r"got a decoder-only model \(llama\); expected an encoder-decoder model"):
        _check(LlamaConfig(**LLAMA), word_tokenizer("a", "b"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MarianConfig(**{**MARIAN, "decoder_vocab_size": 30, "share_encoder_decoder_embeddings": False}), 30),
        (T5Config(vocab_size=25), 25),
        (LlamaConfig(**LLAMA), 20),
    ],
)
def test_the_vocabulary_is_that_of_the_output_layer(config: transformers.PretrainedConfig, expected: int) -> None:
    assert models.vocabulary_size(config) == expected
