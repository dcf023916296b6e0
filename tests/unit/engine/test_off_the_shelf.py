"""Pairs from the hub that share a tokenizer, as `configs/` names them (`published.py`).

Exact verification must equal `model.generate`, token for token, within the limits that the shipped configuration and
the checkpoint set together.
"""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import transformers as hf
from transformers import GenerationConfig, PreTrainedModel

from cmasd.checkpoints.by_name import vocabulary_size
from cmasd.codecs.text import TextCodec
from cmasd.config import load
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.generation.constraints import Constraints
from cmasd.generation.settings import limits
from tests.unit.engine.pairs import decode, tiny_config, tokens_of
from tests.unit.engine.published import CAUSAL, CONFIGS, PAIRS, WIDTH, Published


@torch.no_grad()
def scatter(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights large enough that the argmax varies; tied tensors stay tied, computed tables keep their values.

    An output layer of its own is near the embeddings, so that models with and without ties agree now and then.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.double().parameters():
        if weight.ndim >= 2 and weight.requires_grad:
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / WIDTH**0.5)
    head, embedding = cast(Any, model).lm_head.weight, cast(Any, model).get_input_embeddings().weight
    if head is not embedding:
        head.mul_(0.3).add_(embedding)
    if isinstance(model, hf.T5ForConditionalGeneration):  # it does not scale its embeddings
        embedding.mul_(8.0)
    model.eval()
    return model


@torch.no_grad()
def distilled(drafter: PreTrainedModel, verifier: PreTrainedModel) -> PreTrainedModel:
    """The verifier's weights wherever the drafter has one of that name and width, with some noise."""
    scatter(drafter, seed=1)
    theirs = verifier.state_dict()
    for name, weight in drafter.named_parameters():
        if name in theirs and theirs[name].shape[1:] == weight.shape[1:]:
            rows = min(len(weight), len(theirs[name]))
            weight[:rows] = theirs[name][:rows] + 0.02 * weight[:rows]
    return drafter


def pair_of(published: Published, name: str) -> Pair:
    """As `load_pair` makes it, but for the text codec."""
    config = load([CONFIGS / f"{name}.yaml"], published.overrides)
    torch.manual_seed(0)
    verifier = scatter(published.build(2), seed=0)
    verifier.generation_config = GenerationConfig(**published.generation)
    lengths = limits(config.engine, verifier.generation_config, verifier.config)
    constraints = Constraints.from_generation_config(
        verifier.generation_config, vocabulary_size(verifier.config), forced_bos_token_id=published.forced_bos
    )
    drafter = distilled(published.build(1), verifier)
    source = min(lengths.max_source_tokens, 24)
    return Pair(verifier, drafter, cast(TextCodec, None), constraints, lengths.max_new_tokens, source)


def requests_of(published: Published, pair: Pair) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    [(first, last)] = published.prompts
    rows = []
    for key, length in enumerate((3, 9)):
        middle = torch.randint(3, published.tokens, (length,), generator=generator).tolist()
        rows.append(Request(key, [first, *middle, last], pair.max_new_tokens))
    return rows


def generate(pair: Pair, published: Published, request: Request) -> list[int]:
    """What transformers makes of the row, with the published settings but for beams and sampling."""
    source = torch.tensor([request.source])
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if published.forced_bos is not None:
        settings["forced_bos_token_id"] = published.forced_bos
    if "max_length" not in published.generation or published.overrides:
        settings["max_new_tokens"] = request.max_new_tokens
    model = cast(Any, pair.verifier)
    output = model.generate(source, attention_mask=torch.ones_like(source), **settings)
    tokens: list[int] = output[0, 1 if pair.is_encoder_decoder else len(request.source) :].tolist()
    return tokens


@pytest.mark.parametrize("name", PAIRS)
def test_the_shipped_configuration_names_the_pair(name: str) -> None:
    config = load([CONFIGS / f"{name}.yaml"])
    published = PAIRS[name]
    assert (config.models.verifier, config.models.drafter) == (published.verifier, published.drafter)
    assert config.lossless == ("lossy" if name == "stitch_qwen_math" else "exact")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_exact_verification_equals_generate(name: str) -> None:
    published = PAIRS[name]
    pair = pair_of(published, name)
    requests = requests_of(published, pair)
    config = tiny_config(policy={"kind": "fixed"}, drafter={"max_draft_tokens": 3}, engine={"slots": 2})
    results = decode(pair, config, requests)
    assert tokens_of(results) == {request.key: generate(pair, published, request) for request in requests}
    drafted = sum(result.num_drafted_tokens for result in results.values())
    accepted = sum(result.num_accepted_tokens for result in results.values())
    assert drafted > accepted > 0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_two_models_that_are_stitched_are_the_published_ones(tau: float) -> None:
    """By the shipped settings but for tau: at its ends the output is what `generate` makes of one of the two."""
    name = "stitch_qwen_math"
    published, shipped = PAIRS[name], load([CONFIGS / f"{name}.yaml"])
    pair = pair_of(published, name)
    assert pair.drafter is not None
    pair.drafter.generation_config = pair.verifier.generation_config
    stitch = {"tau": tau, "speculate": shipped.stitch.speculate, "max_wait": shipped.stitch.max_wait}
    config = tiny_config(policy={"kind": shipped.policy.kind}, stitch=stitch, engine={"slots": 2})
    requests = requests_of(published, pair)
    speaking = pair if tau == 0 else replace(pair, verifier=pair.drafter)
    expected = {request.key: generate(speaking, published, request) for request in requests}
    assert tokens_of(decode(pair, config, requests)) == expected


def test_a_limit_of_the_checkpoint_holds_without_an_override() -> None:
    """bart-large-cnn: 142 positions with the decoder's start, at least 56, an end forced at the last one."""
    pair = pair_of(PAIRS["summarise_bart"], "summarise_bart")
    assert (pair.max_new_tokens, pair.constraints.min_length, pair.constraints.no_repeat_ngram_size) == (141, 56, 3)
    assert pair.constraints.forced_bos_token_id == 0
    assert pair.constraints.forced_eos_token_ids == (2,)


@pytest.mark.parametrize("widths", [(70, 64), (64, 70), (64, 64)], ids=["verifier padded", "drafter padded", "equal"])
@pytest.mark.parametrize("verification", ["exact", "sampling"])
def test_padded_columns_are_never_drafted(widths: tuple[int, int], verification: str) -> None:
    """The verifier may say an id that the drafter has no embedding for; the drafter may prefer one of its padding."""

    def model(vocabulary: int, seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        config = hf.LlamaConfig(**CAUSAL, num_hidden_layers=1, vocab_size=vocabulary, tie_word_embeddings=False)
        made: Any = scatter(hf.LlamaForCausalLM(config), seed)
        made.lm_head.weight[60:].mul_(2.0)  # ids near the end are likely
        return cast(PreTrainedModel, made)

    with torch.no_grad():
        verifier, drafter = model(widths[0], 0), model(widths[1], 1)
    pair = Pair(verifier, drafter, cast(TextCodec, None), Constraints(), 20, 12)
    requests = [Request(key, [5 + key, 9, 3], 20) for key in range(6)]
    sections: dict[str, Any] = {"verification": {"kind": verification}, "drafter": {"max_draft_tokens": 3}}
    results = decode(pair, tiny_config(policy={"kind": "fixed"}, **sections), requests)
    said = {token for row in tokens_of(results).values() for token in row}
    assert (max(said) >= 64) == (widths[0] > 64), "ids past the drafter's are said where there are any"
    assert sum(result.num_drafted_tokens for result in results.values()) > 0
    if verification == "exact":
        plain = decode(pair, tiny_config(policy={"kind": "plain"}), requests)
        assert tokens_of(results) == tokens_of(plain)
