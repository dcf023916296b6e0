"""Model folders made to run code: none does, unless the user asked for it by key."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import MarianConfig, MarianMTModel

from cmasd.checkpoints import by_name as models
from cmasd.codecs.text import TextCodec
from cmasd.core import RowError
from cmasd.errors import ModelError
from tests.unit.checkpoints.test_by_name import MARIAN, word_tokenizer


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Exists when code has run."""
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = MarianMTModel(MarianConfig(**MARIAN))
    model.save_pretrained(tmp_path / "model")
    word_tokenizer("a", "b").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **changes}))


def test_the_payload_is_real(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
def test_pickled_weights(folder: Path, mark: Path, allow_pickle: bool, writer: Any) -> None:
    """Even where pickles are allowed, torch reads tensors alone out of them."""
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as stream:
        writer({"final_logits_bias": Payload(mark)}, stream)
    with pytest.raises(ModelError):
        models.load_model(str(folder), "auto", "cpu", allow_pickle=allow_pickle)
    assert not mark.exists()


@pytest.mark.parametrize("inside", [True, False])
def test_an_index_that_points_to_a_pickle(folder: Path, mark: Path, inside: bool) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    target = folder / "evil.bin" if inside else folder.parent / "evil.bin"
    torch.save({"final_logits_bias": Payload(mark)}, target)
    name = "evil.bin" if inside else "../evil.bin"
    names = dict.fromkeys(MarianMTModel(MarianConfig(**MARIAN)).state_dict(), name)
    edit(folder / "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=names)
    with pytest.raises(ModelError):
        models.load_model(str(folder), "auto", "cpu")
    assert not mark.exists()


def test_a_pickle_that_is_called_safetensors(folder: Path, mark: Path) -> None:
    torch.save({"final_logits_bias": Payload(mark)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="the safetensors file is damaged"):
        models.load_model(str(folder), "auto", "cpu")
    assert not mark.exists()


def test_code_beside_a_known_architecture_is_not_run(folder: Path, mark: Path) -> None:
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    for name in ("modeling_own", "configuration_own", "tokenization_own", "__init__", "conftest", "setup"):
        (folder / f"{name}.py").write_text(code)
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForSeq2SeqLM": "modeling_own.OwnModel"}
    edit(folder / "config.json", auto_map=auto)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]})
    assert type(models.load_model(str(folder), "auto", "cpu")) is MarianMTModel
    models.load_tokenizer(str(folder))
    assert not mark.exists()


def test_an_unknown_tokenizer_class_is_not_run(folder: Path, mark: Path) -> None:
    (folder / "tokenization_own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    auto = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto)
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    with pytest.raises(ModelError):
        models.load_tokenizer(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_from_the_hub_are_refused(folder: Path, key: str) -> None:
    edit(folder / "config.json", **{key: "someone/evil-kernel"})
    with pytest.raises(ModelError, match=r"asks for code from the hub, got attn_implementation 'someone/evil-kernel'"):
        models.load_model(str(folder), "auto", "cpu")


def test_weights_and_code_in_one_folder_load_the_weights(folder: Path, mark: Path) -> None:
    """A pickle beside good safetensors is not even opened."""
    torch.save(Payload(mark), folder / "pytorch_model.bin")
    save_file({"x": torch.zeros(1)}, folder / "unrelated.safetensors")
    models.load_model(str(folder), "auto", "cpu", allow_pickle=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(messages) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ lipsum.__globals__['os'].system('true') }}",
    ],
)
def test_chat_templates_are_caged(template: str) -> None:
    tokenizer = word_tokenizer("a", "b")
    tokenizer.chat_template = template
    codec = TextCodec(
        tokenizer,
        template=None,
        chat=True,
        source_language=None,
        target_language=None,
        on_too_long="error",
        max_source_tokens=10,
        is_encoder_decoder=True,
        known_ids=100,
    )
    [outcome] = codec.encode(["a"])
    assert isinstance(outcome, RowError)
    assert "the chat template failed on this row" in outcome.message
