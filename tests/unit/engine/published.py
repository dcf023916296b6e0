"""Architectures of pairs from the hub, as `configs/` names them, at tiny width.

Vocabulary sizes, special tokens, tied embeddings, positions and generation settings are those of the published
configurations; widths, layers and weights are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import transformers as hf
from transformers import PreTrainedModel

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
