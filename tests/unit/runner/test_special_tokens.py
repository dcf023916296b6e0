"""Special tokens at any place of a source, a prompt or an output, against what `generate` makes of that row alone.

A corpus may hold the text of any special token, a pad's as well, and a model may say one. `generate` is given the row
as the tokenizer gives it, nothing masked, and made to say drawn tokens; logits tell more than words would.
"""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from cmasd.runner import load_runner
from tests.unit.runner.tiny import ENCODER_DECODER, FAMILIES, tiny_model

ROWS, OUTPUT, MAX_SOURCE = 4, 9, 12
BATCHES = 5
WITH_KERNELS = [family for family in ENCODER_DECODER if family != "t5"]


class Says(LogitsProcessor):
    """Lets nothing but the next of the given tokens be said."""

    def __init__(self, tokens: list[int], start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = torch.full_like(scores, float("-inf"))
        scores[:, self.tokens[input_ids.shape[1] - self.start]] = 0.0
        return scores


@torch.no_grad()
def generated_logits(model: Any, source: list[int], output: list[int]) -> Tensor:
    """Logits (T, V) before each token of `output`."""
    ids = torch.tensor([source])
    start = 1 if model.config.is_encoder_decoder else len(source)
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        max_new_tokens=len(output),
        logits_processor=[Says(output, start)],
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert generated.sequences[0, start:].tolist() == output
    return torch.stack(generated.logits, dim=1)[0]


class Drawn:
    """Rows in which every second token is special."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        generation: Any = model.generation_config
        self.pad, self.end = generation.pad_token_id, generation.eos_token_id
        self.special = sorted({0, 1, 2, 3, self.pad, self.end})
        self.choose = random.Random(seed)

    def tokens(self, count: int) -> list[int]:
        choose = self.choose
        return [choose.choice(self.special) if choose.random() < 0.5 else choose.randrange(4, 64) for _ in range(count)]

    def sources(self, batch: int) -> list[list[int]]:
        if batch == 0:
            return [[self.pad] * 5, [self.end] * 3, [self.pad], [4, 5, self.pad]]
        return [self.tokens(self.choose.randint(1, MAX_SOURCE)) for _ in range(ROWS)]


@torch.no_grad()
def worst_difference(model: Any, seed: int) -> float:
    """Of any logit, over rows in batches whose output is fed in two windows."""
    drawn = Drawn(model, seed)
    runner = load_runner(model, ROWS, MAX_SOURCE + 2 * OUTPUT, MAX_SOURCE)
    worst = 0.0
    for batch in range(BATCHES):
        sources, outputs = drawn.sources(batch), [drawn.tokens(OUTPUT) for _ in range(ROWS)]
        runner.prefill(list(range(ROWS)), sources)
        encoder = runner.is_encoder_decoder
        firsts = [model.config.decoder_start_token_id if encoder else source[-1] for source in sources]
        starts_B = torch.tensor([0 if encoder else len(source) - 1 for source in sources])
        fed_BT = torch.tensor([[first, *output[:-1]] for first, output in zip(firsts, outputs, strict=True)])
        cut = drawn.choose.randint(1, OUTPUT - 1)
        parts = [runner.forward(fed_BT[:, :cut], starts_B), runner.forward(fed_BT[:, cut:], starts_B + cut)]
        logits_BTV = torch.cat(parts, dim=1).float()
        for row in range(ROWS):
            expected_TV = generated_logits(model, sources[row], outputs[row])
            worst = max(worst, (logits_BTV[row] - expected_TV).abs().max().item())
    return worst


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*FAMILIES, "mt5"])
def test_special_tokens_anywhere(family: str) -> None:
    assert worst_difference(tiny_model(family, seed=1).double(), seed=len(family)) < 2e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", WITH_KERNELS)
def test_special_tokens_anywhere_in_a_kernel(family: str) -> None:
    assert worst_difference(tiny_model(family, seed=2), seed=FAMILIES.index(family)) < 1e-5
