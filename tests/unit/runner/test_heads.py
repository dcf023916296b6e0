"""The output layer: ids that are never said, ids that alone are computed, one token's logits instead of a window's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from cmasd.models.families import ANY_WORD, Words
from cmasd.runner import Runner, load_runner
from tests.unit.runner.tiny import FAMILIES, tiny_model

SOURCES = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
WINDOW = torch.tensor([[20, 21, 22], [30, 31, 32], [40, 41, 42]])


def capped(family: str) -> Any:
    """Gemma 2 caps its logits, here harder than by default, so that the cap is felt; others do not."""
    model: Any = tiny_model(family, seed=11)
    if family == "gemma2":
        model.config.final_logit_softcapping = 2.0
    return model


def prefilled(model: PreTrainedModel, words: Words = ANY_WORD) -> tuple[Runner, Tensor]:
    """A runner with three rows, and their starts."""
    runner = load_runner(model, 3, 24, 12, words)
    runner.prefill([0, 1, 2], SOURCES)
    starts = [0 if runner.is_encoder_decoder else len(source) - 1 for source in SOURCES]
    return runner, torch.tensor(starts)


def logits_of(model: PreTrainedModel, words: Words = ANY_WORD) -> Tensor:
    runner, starts_B = prefilled(model, words)
    return runner.forward(WINDOW, starts_B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_banned_ids_never_win_and_nothing_else_changes(family: str, dtype: torch.dtype) -> None:
    model = capped(family).to(dtype)
    free_BTV = logits_of(model)
    banned = tuple(sorted(set(free_BTV.argmax(-1).flatten().tolist())))
    assert len(banned) > 1, "the model is too dull to tell a ban"
    held_BTV = logits_of(model, Words(banned))
    others = [token for token in range(64) if token not in banned]
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(held_BTV[..., others], free_BTV[..., others], atol=tolerance, rtol=0)
    assert set(held_BTV.argmax(-1).flatten().tolist()).isdisjoint(banned)
    assert not held_BTV.isnan().any()
    assert (torch.softmax(held_BTV.float(), -1)[..., list(banned)] == 0).all()
    assert (held_BTV.amax(-1) - held_BTV.amin(-1) > 1e4).all(), "a penalty could bring it back"


def test_a_ban_comes_on_top_of_a_models_own_bias() -> None:
    model: Any = tiny_model("marian", seed=12)
    model.final_logits_bias.copy_(torch.linspace(-2, 2, 64)[None])
    before = model.final_logits_bias.clone()
    free_BTV, held_BTV = logits_of(model), logits_of(model, Words((7, 9)))
    others = [token for token in range(64) if token not in (7, 9)]
    torch.testing.assert_close(held_BTV[..., others], free_BTV[..., others], atol=1e-5, rtol=0)
    assert (held_BTV[..., [7, 9]] < -1e30).all()
    assert torch.equal(model.final_logits_bias, before), "the model itself stays as it was"


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["marian", "t5", "llama"])
def test_a_ban_costs_no_operation(family: str) -> None:
    counts = []
    for words in (Words(), Words((7, 9))):
        runner, starts_B = prefilled(tiny_model(family), words)
        runner.forward(WINDOW, starts_B)
        with Operations() as operations:
            runner.forward(WINDOW, starts_B)
        counts.append(operations.count)
    assert counts[0] == counts[1] > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shortlist_computes_these_columns_alone(family: str) -> None:
    model = capped(family)
    shortlist = (3, 50, 7, 20)
    logits_BTS = logits_of(model, Words(shortlist=shortlist))
    torch.testing.assert_close(logits_BTS, logits_of(model)[..., list(shortlist)], atol=1e-5, rtol=0)


def test_a_shortlist_takes_its_share_of_a_bias() -> None:
    model: Any = tiny_model("marian", seed=13)
    model.final_logits_bias.copy_(torch.linspace(-2, 2, 64)[None])
    free_BTV = logits_of(model)
    torch.testing.assert_close(logits_of(model, Words(shortlist=(60, 1))), free_BTV[..., [60, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("only", [[0, 0, 0], [2, 2, 2], [0, 2, 1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_tokens_logits_are_those_of_the_whole_window(family: str, only: list[int]) -> None:
    model = capped(family)
    only_B = torch.tensor(only)
    whole_BTV = logits_of(model)
    runner, starts_B = prefilled(model)
    one_B1V = runner.forward(WINDOW, starts_B, only_B)
    assert one_B1V.shape == (3, 1, 64)
    torch.testing.assert_close(one_B1V[:, 0], whole_BTV[torch.arange(3), only_B], atol=1e-5, rtol=0)
    whole_again_BTV = runner.forward(WINDOW, starts_B + 3)
    other, starts_B = prefilled(model)
    other.forward(WINDOW, starts_B)
    expected_BTV = other.forward(WINDOW, starts_B + 3)
    torch.testing.assert_close(whole_again_BTV, expected_BTV, atol=1e-5, rtol=0, msg="the window was not all cached")


def test_two_runners_of_one_model_do_not_share_their_bans() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    free_BTV = logits_of(model)
    logits_of(model, Words((7, 9)))
    assert torch.equal(logits_of(model), free_BTV)
