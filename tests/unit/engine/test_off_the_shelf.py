"""Pairs from the hub that share a tokenizer, as `configs/` names them: their architectures at tiny width.

Vocabulary sizes, special tokens, tied embeddings, positions and generation settings are those of the published
configurations; widths, layers and weights are not. Exact verification must equal `model.generate`, token for token,
within the limits that the shipped configuration and the checkpoint set together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
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

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
WIDTH, HEADS, MOST_NEW_TOKENS = 16, 2, 24
SEQ2SEQ: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
CAUSAL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
}


def _bart(layers: int) -> PreTrainedModel:
    config = hf.BartConfig(
        **SEQ2SEQ,
        decoder_layers=layers,
        vocab_size=50264,
        max_position_embeddings=1024,
        scale_embedding=False,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    return hf.BartForConditionalGeneration(config)


def _pegasus(layers: int) -> PreTrainedModel:
    config = hf.PegasusConfig(
        **SEQ2SEQ,
        decoder_layers=layers,
        vocab_size=96103,
        max_position_embeddings=512,
        scale_embedding=True,
        activation_function="relu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return hf.PegasusForConditionalGeneration(config)


def _nllb(layers: int) -> PreTrainedModel:
    config = hf.M2M100Config(
        **SEQ2SEQ,
        decoder_layers=layers,
        vocab_size=256206,
        max_position_embeddings=1024,
        scale_embedding=True,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    return hf.M2M100ForConditionalGeneration(config)


def _flan_t5(layers: int) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": 32128,
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": 24,
        "num_layers": layers,
        "num_heads": HEADS,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return hf.T5ForConditionalGeneration(hf.T5Config(**settings))


def _qwen(layers: int, is_large: bool = True) -> PreTrainedModel:
    """7B is the verifier, of two layers here; 1.5B and 0.5B tie their embeddings and have fewer padded columns."""
    is_verifier = layers == 2 and is_large
    config = hf.Qwen2Config(
        **CAUSAL,
        num_hidden_layers=layers,
        vocab_size=152064 if is_verifier else 151936,
        tie_word_embeddings=not is_verifier,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        use_sliding_window=False,
        sliding_window=131072 if is_verifier else 32768,
        max_window_layers=28 if is_verifier else 21,
        bos_token_id=151643,
        eos_token_id=151645,
        pad_token_id=None,
    )
    return hf.Qwen2ForCausalLM(config)


def _qwen_coder(layers: int) -> PreTrainedModel:
    """1.5B and 0.5B have one vocabulary, and tie their embeddings."""
    config = hf.Qwen2Config(
        **CAUSAL,
        num_hidden_layers=layers,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        use_sliding_window=False,
        bos_token_id=151643,
        eos_token_id=151645,
        pad_token_id=None,
    )
    return hf.Qwen2ForCausalLM(config)


def _smollm(layers: int) -> PreTrainedModel:
    """The configuration names no drafter: the smaller model is one here."""
    config = hf.LlamaConfig(
        **CAUSAL,
        num_hidden_layers=layers,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return hf.LlamaForCausalLM(config)


def _llama(layers: int) -> PreTrainedModel:
    is_verifier = layers == 2
    rope: dict[str, Any] = {
        "rope_type": "llama3",
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "rope_theta": 500_000.0,
    }
    rope |= {"factor": 8.0 if is_verifier else 32.0, "original_max_position_embeddings": 8192}
    config = hf.LlamaConfig(
        **CAUSAL,
        num_hidden_layers=layers,
        head_dim=WIDTH // HEADS if is_verifier else 4,
        vocab_size=128256,
        tie_word_embeddings=not is_verifier,
        max_position_embeddings=131072,
        rope_parameters=rope,
        bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009],
        pad_token_id=None,
    )
    return hf.LlamaForCausalLM(config)


@dataclass(frozen=True)
class Published:
    """One pair."""

    verifier: str
    drafter: str | None
    build: Callable[[int], PreTrainedModel]
    generation: dict[str, Any]
    tokens: int
    """Ids from here on have no piece in the tokenizer."""
    prompts: tuple[tuple[int, int], ...]
    """First and last token of a source; None leaves it free."""
    overrides: list[str] = field(default_factory=list)
    forced_bos: int | None = None
    """The target language's token, which the text codec adds."""


BEAMS = {"num_beams": 4, "early_stopping": True}
PAIRS = {
    "summarise_bart": Published(
        "facebook/bart-large-cnn",
        "sshleifer/distilbart-cnn-6-6",
        _bart,
        {
            "bos_token_id": 0,
            "decoder_start_token_id": 2,
            "eos_token_id": 2,
            "forced_bos_token_id": 0,
            "forced_eos_token_id": 2,
            "length_penalty": 2.0,
            "max_length": 142,
            "min_length": 56,
            "no_repeat_ngram_size": 3,
            "pad_token_id": 1,
            **BEAMS,
        },
        tokens=50264,
        prompts=((0, 2),),
    ),
    "summarise_pegasus": Published(
        "google/pegasus-xsum",
        "sshleifer/distill-pegasus-xsum-16-4",
        _pegasus,
        {
            "bos_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            "forced_eos_token_id": 1,
            "length_penalty": 0.6,
            "max_length": 64,
            "num_beams": 8,
            "pad_token_id": 0,
        },
        tokens=96103,
        prompts=((107, 1),),
    ),
    "translate_nllb": Published(
        "facebook/nllb-200-3.3B",
        "facebook/nllb-200-distilled-600M",
        _nllb,
        {"bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "max_length": 200, "pad_token_id": 1},
        tokens=256204,
        prompts=((256047, 2),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
        forced_bos=256042,
    ),
    "instruct_flan_t5": Published(
        "google/flan-t5-xl",
        "google/flan-t5-small",
        _flan_t5,
        {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
        tokens=32100,
        prompts=((100, 1),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
    ),
    "chat_qwen": Published(
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        _qwen,
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.05,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        tokens=151665,
        prompts=((151644, 198),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
    ),
    "stitch_qwen_math": Published(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        partial(_qwen, is_large=False),
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        tokens=151665,
        prompts=((151644, 198),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
    ),
    "chat_llama": Published(
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        _llama,
        {
            "bos_token_id": 128000,
            "do_sample": True,
            "eos_token_id": [128001, 128008, 128009],
            "temperature": 0.6,
            "top_p": 0.9,
        },
        tokens=128256,
        prompts=((128000, 271),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
    ),
    "qwen_coder_math": Published(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        _qwen_coder,
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        tokens=151665,
        prompts=((151644, 198),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
    ),
    "summarise_smollm": Published(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        None,
        _smollm,
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        tokens=49152,
        prompts=((1, 198),),
        overrides=[f"engine.max_new_tokens={MOST_NEW_TOKENS}"],
    ),
}
"""By the configuration's name."""


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
