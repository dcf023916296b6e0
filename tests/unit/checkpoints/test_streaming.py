"""Checkpoints read tensor by tensor equal checkpoints read as transformers does, in the memory that they need."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from cmasd.checkpoints import streaming
from cmasd.checkpoints.by_name import load_model
from cmasd.checkpoints.streaming import load_ready
from cmasd.errors import ModelError
from cmasd.kernels import kernels
from cmasd.models.packed import LookUp, PackedLinear, is_packed, linears
from tests.unit.models.test_packed import IDS, STOCK, logits_of
from tests.unit.runner.tiny import tiny_model

pytestmark = pytest.mark.skipif(kernels(torch.float32) is None, reason="no kernels here")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def streamed_only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A test that is not of the other way fails where that is taken."""
    if "other_way" not in request.fixturenames:
        monkeypatch.setattr(streaming, "load_model", None)


@pytest.fixture
def other_way() -> None:
    """For tests of checkpoints that are not streamed."""


def saved(family: str, folder: Path, tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = tiny_model(family)
    model.config.tie_word_embeddings = tied
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    model.generation_config.max_length = 77
    model.to(dtype).save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", [*STOCK, "mt5"])
def test_a_streamed_model_is_the_stored_one(family: str, tied: bool, tmp_path: Path) -> None:
    stock = saved(family, tmp_path, tied)
    model = load_ready(str(tmp_path), "auto", CPU)
    torch.testing.assert_close(logits_of(model, IDS), logits_of(stock, IDS), atol=1e-5, rtol=0)
    assert all(isinstance(layer, PackedLinear) for layer in linears(model))
    assert isinstance(model.get_input_embeddings(), LookUp)
    assert type(model) is type(stock)
    assert model.generation_config == stock.generation_config
    assert (model.dtype, model.device, model.training) == (torch.float32, CPU, False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stay_in_their_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    stock = saved("llama", tmp_path, tied=True, dtype=dtype)
    model: Any = load_ready(str(tmp_path), "auto", CPU)
    torch.testing.assert_close(logits_of(model, IDS), logits_of(stock, IDS), atol=1e-5, rtol=0)
    native = kernels(torch.float32)
    assert native is not None
    if dtype in native.halves:
        assert {layer.packed.dtype for layer in linears(model)} == {dtype}
    assert model.get_input_embeddings().table is model.lm_head.packed, "one copy for both"


@pytest.mark.parametrize("tied", [False, True])
def test_int8_keeps_the_embedding_as_it_was(tied: bool, tmp_path: Path) -> None:
    saved("qwen2", tmp_path, tied, torch.bfloat16)
    model: Any = load_ready(str(tmp_path), "int8", CPU)
    assert {layer.packed.dtype for layer in linears(model)} == {torch.int8}
    stored = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().table, stored)
    assert model.get_input_embeddings().table.dtype == torch.bfloat16


def test_shards_and_other_prefixes(tmp_path: Path) -> None:
    """Checkpoints of several files, and such as hold the model without its head (gpt2 of the hub)."""
    stock = saved("gpt2", tmp_path, tied=True)
    stock.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    shutil.copytree(tmp_path, tmp_path / "bare", ignore=shutil.ignore_patterns("shards", "bare"))
    save_file({**bare, "h.0.attn.bias": torch.ones(1)}, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    for folder in ("shards", "bare"):
        model = load_ready(str(tmp_path / folder), "float32", CPU)
        torch.testing.assert_close(logits_of(model, IDS), logits_of(stock, IDS), atol=1e-5, rtol=0)


def test_what_is_unusual_goes_the_other_way(other_way: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pickles are packed layer by layer after loading; what is wrong is said by the way that says it for all."""
    stock = saved("llama", tmp_path)
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    with caplog.at_level(logging.INFO, streaming.log.name):
        model = load_ready(str(tmp_path), "auto", CPU, allow_pickle=True)
    assert "model.not_streamed" in caplog.text
    assert all(isinstance(layer, PackedLinear) for layer in linears(model))
    torch.testing.assert_close(logits_of(model, IDS), logits_of(stock, IDS), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="weights are in pickle format"):
        load_ready(str(tmp_path), "auto", CPU)
    (tmp_path / "kept").rename(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, expected in (
        ({"num_hidden_layers": 3}, "the checkpoint lacks 9 tensors"),
        ({"intermediate_size": 40}, "do not have the shapes that config.json calls for"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=expected):
            load_ready(str(tmp_path), "auto", CPU)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-99])
    with pytest.raises(ModelError, match="the safetensors file is damaged"):
        load_ready(str(tmp_path), "auto", CPU)


def test_other_precisions_and_barts_kin_are_loaded_as_before(other_way: None, tmp_path: Path) -> None:
    stock = saved("llama", tmp_path / "llama")
    assert not is_packed(load_ready(str(tmp_path / "llama"), "float64", CPU))
    assert load_ready(str(tmp_path / "llama"), "bfloat16", CPU).dtype == torch.bfloat16
    saved("marian", tmp_path / "marian")
    assert not is_packed(load_ready(str(tmp_path / "marian"), "auto", CPU))
    model = load_model(str(tmp_path / "llama"), "float32", "cpu")
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS)), "gradients are for stock models alone"


PEAK = """
import resource, sys, torch
from cmasd.kernels import kernels
from cmasd.models.packed import linears
from cmasd.checkpoints.streaming import load_ready
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_ready(sys.argv[2], sys.argv[3], torch.device("cpu"))  # a tiny one: what the libraries take
before = peak()
model = load_ready(sys.argv[1], sys.argv[3], torch.device("cpu"))
table = model.get_input_embeddings().table
kept = sum(layer.packed.nbytes for layer in linears(model)) + (table.nbytes if torch.is_tensor(table) else 0)
print(peak() - before, kept)
"""


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_loading_takes_what_is_kept_and_the_largest_tensor(dtype: str, tmp_path: Path) -> None:
    """80 MB in bfloat16, 9 of them the embedding; a float32 copy would take 160 MB, and a second one 80."""
    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    }
    shape = LlamaConfig(vocab_size=6144, num_hidden_layers=4, tie_word_embeddings=False, **sizes)
    LlamaForCausalLM(shape).bfloat16().save_pretrained(tmp_path / "large")
    saved("llama", tmp_path / "small", dtype=torch.bfloat16)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(tmp_path / "small"), dtype]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    taken, kept = map(int, said.split())
    largest = 6144 * 768 * 2
    assert kept > (60e6 if dtype == "auto" else 35e6)
    assert taken <= 1.25 * kept + largest
