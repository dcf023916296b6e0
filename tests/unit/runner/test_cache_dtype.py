"""Keys and values in 16 bits: half the memory, within their rounding, and the same row however its tokens come."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from cmasd.config import from_dict
from cmasd.core import Request
from cmasd.engine.capacity import need_of
from cmasd.engine.pair import _cache_dtype
from cmasd.errors import ModelError
from cmasd.runner.load import load_runner
from cmasd.window import Window
from tests.unit.engine.pairs import decode, shared_pair, tiny_config, tokens_of
from tests.unit.models.test_packed import ROTATED
from tests.unit.runner.tiny import DECODER_ONLY, tiny_model

SOURCES = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [7, 3], [4], [8, 3, 30, 31]]
FED = torch.tensor([[20, 21, 22], [30, 5, 5], [40, 41, 42], [50, 51, 9]])
STARTS = torch.tensor([len(source) - 1 for source in SOURCES])


def halved(family: str, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = tiny_model(family)
    return load_runner(model.to(dtype), 4, 40, 40, cache_dtype=torch.bfloat16)


def logits(runner: Any) -> Tensor:
    runner.prefill([0, 1, 2, 3], SOURCES)
    result: Tensor = runner.forward(FED, STARTS)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", DECODER_ONLY)
def test_what_is_read_is_rounded_and_nothing_else(family: str, dtype: torch.dtype) -> None:
    """By the measure of modules of transformers over a cache that was rounded token by token."""
    runner = halved(family, dtype)
    assert runner._cache.buffer_KSHLP.dtype == torch.bfloat16
    assert (runner._whole is not None) == (family in ROTATED)
    found = logits(runner)
    assert found.dtype == dtype
    stock = halved(family, dtype)
    stock._whole = None
    torch.testing.assert_close(logits(stock), found, atol=2e-3, rtol=0)  # a last digit of 8 bits may fall either way
    model: Any = tiny_model(family)
    whole = logits(load_runner(model.to(dtype), 4, 40, 40))
    assert not torch.equal(found, whole)
    torch.testing.assert_close(found, whole, atol=0.05, rtol=0)


@pytest.mark.parametrize("family", DECODER_ONLY)
def test_a_row_is_the_same_however_its_tokens_come(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = logits(halved(family))
    monkeypatch.setattr("cmasd.runner.decoder_only.PREFILL_TOKENS", {"cpu": 3})
    runner = halved(family)
    runner.prefill([0, 1, 2, 3], SOURCES)
    apart = torch.stack([runner.forward(FED[:, [step]], STARTS + step)[:, 0] for step in range(3)], dim=1)
    if runner._whole is not None:
        assert torch.equal(apart, together)
    else:
        torch.testing.assert_close(apart, together, atol=2e-3, rtol=0)


def test_the_nearest_of_16_bits_is_kept() -> None:
    runner = halved("llama")
    whole: Any = load_runner(tiny_model("llama"), 4, 40, 40)
    for one in (runner, whole):
        one.run(Window.rectangle(torch.tensor([[5]]), torch.tensor([0])))
    kept, given = runner._cache.buffer_KSHLP[0, 0, :, 0], whole._cache.buffer_KSHLP[0, 0, :, 0]
    assert torch.equal(kept, given.to(torch.bfloat16))


@pytest.mark.parametrize("nodes", [0, 7])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_drafts_change_nothing(family: str, nodes: int) -> None:
    """In float64, so that modules of transformers do not fall to either side of a rounding now and then."""
    pair = replace(shared_pair(family, "noisy"), cache_dtype=torch.bfloat16)
    requests = [Request(key, [5 + key, 9, 3], 12) for key in range(5)]
    fixed: dict[str, Any] = {"policy": {"kind": "fixed"}, "engine": {"slots": 2}}
    fixed["drafter"] = {"max_draft_tokens": 3, "tree_nodes": nodes}
    drafted = decode(pair, tiny_config(**fixed), requests)
    assert tokens_of(drafted) == tokens_of(decode(pair, tiny_config(policy={"kind": "plain"}), requests))
    assert sum(result.num_accepted_tokens for result in drafted.values()) > 0
    whole = replace(pair, cache_dtype=None)
    assert need_of(pair, tiny_config(**fixed)).slot_bytes < need_of(whole, tiny_config(**fixed)).slot_bytes


def test_models_with_an_encoder_are_refused() -> None:
    config = from_dict({"models": {"cache_dtype": "bfloat16", "verifier": "a/b"}})
    with pytest.raises(ModelError, match=r"models\.cache_dtype: is of decoder-only models, got bfloat16 with a/b"):
        _cache_dtype(config, shared_pair("marian").verifier)
    assert _cache_dtype(config, shared_pair("llama").verifier) == torch.bfloat16
    assert _cache_dtype(cast(Any, from_dict({})), shared_pair("marian").verifier) is None
