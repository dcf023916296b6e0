"""Tiny random models of every supported family, with weights large enough that the argmax varies.

Same seed, same weights. Special ids: pad, start and end of sequence are the first few, as in real checkpoints. The
names `mistral-sliding`, `qwen2-sliding`, `gemma2` and `gemma3` have a window of six keys.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

WIDTH, HEADS, INNER, POSITIONS, SPAN = 32, 4, 48, 128, 6
GAIN, STRIDE = 0.7, 7


def _seq2seq(vocabulary: int, layers: int, **ids: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "d_model": WIDTH,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": INNER,
        "decoder_ffn_dim": INNER,
        "max_position_embeddings": POSITIONS,
        "scale_embedding": True,
        "forced_eos_token_id": None,
        "tie_word_embeddings": False,
        **ids,
    }


def _causal(vocabulary: int, layers: int, **extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **extra,
    }


def _layer_types(layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]


def _marian(v: int, n: int) -> PreTrainedModel:
    return hf.MarianMTModel(hf.MarianConfig(**_seq2seq(v, n, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)))


def _bart(v: int, n: int) -> PreTrainedModel:
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return hf.BartForConditionalGeneration(hf.BartConfig(**_seq2seq(v, n, **ids)))


def _mbart(v: int, n: int) -> PreTrainedModel:
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return hf.MBartForConditionalGeneration(hf.MBartConfig(**_seq2seq(v, n, **ids)))


def _pegasus(v: int, n: int) -> PreTrainedModel:
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return hf.PegasusForConditionalGeneration(hf.PegasusConfig(**_seq2seq(v, n, **ids)))


def _m2m100(v: int, n: int) -> PreTrainedModel:
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return hf.M2M100ForConditionalGeneration(hf.M2M100Config(**_seq2seq(v, n, **ids)))


def _t5(v: int, n: int, kind: Callable[[dict[str, Any]], PreTrainedModel]) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": v,
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": INNER,
        "num_layers": n,
        "num_heads": HEADS,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return kind(settings)


def _gpt2(v: int, n: int) -> PreTrainedModel:
    config = hf.GPT2Config(
        vocab_size=v,
        n_embd=WIDTH,
        n_layer=n,
        n_head=HEADS,
        n_inner=INNER,
        n_positions=POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
    )
    return hf.GPT2LMHeadModel(config)


_BUILDERS: dict[str, Callable[[int, int], PreTrainedModel]] = {
    "marian": _marian,
    "bart": _bart,
    "mbart": _mbart,
    "pegasus": _pegasus,
    "t5": lambda v, n: _t5(v, n, lambda settings: hf.T5ForConditionalGeneration(hf.T5Config(**settings))),
    "mt5": lambda v, n: _t5(v, n, lambda settings: hf.MT5ForConditionalGeneration(hf.MT5Config(**settings))),
    "m2m100": _m2m100,
    "llama": lambda v, n: hf.LlamaForCausalLM(hf.LlamaConfig(**_causal(v, n))),
    "qwen2": lambda v, n: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_causal(v, n))),
    "qwen2-sliding": lambda v, n: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**_causal(v, n, use_sliding_window=True, sliding_window=SPAN, layer_types=_layer_types(n)))
    ),
    "qwen3": lambda v, n: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_causal(v, n))),
    "mistral": lambda v, n: hf.MistralForCausalLM(hf.MistralConfig(**_causal(v, n, sliding_window=None))),
    "mistral-sliding": lambda v, n: hf.MistralForCausalLM(hf.MistralConfig(**_causal(v, n, sliding_window=SPAN))),
    "gpt2": _gpt2,
    "gemma": lambda v, n: hf.GemmaForCausalLM(hf.GemmaConfig(**_causal(v, n))),
    "gemma2": lambda v, n: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**_causal(v, n, sliding_window=SPAN, layer_types=_layer_types(n), query_pre_attn_scalar=8))
    ),
    "gemma3": lambda v, n: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**_causal(v, n, sliding_window=SPAN, layer_types=_layer_types(n), query_pre_attn_scalar=8))
    ),
}

FAMILIES = [family for family in _BUILDERS if family != "mt5"]
"""Names that `tiny_model` knows; and mt5, which is t5 but for the scale of its output."""
ENCODER_DECODER = ["marian", "bart", "mbart", "pegasus", "t5", "m2m100"]
DECODER_ONLY = [family for family in FAMILIES if family not in ENCODER_DECODER]


@torch.no_grad()
def _scatter_weights(model: Any, seed: int) -> None:
    """Redraw every trained weight; tables that are computed keep their values.

    The output layer favours the successor of the last token, `STRIDE` ids on, over the token itself; the layers add
    enough to lead elsewhere now and then. Without that, random models repeat one token for ever.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim >= 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * GAIN / WIDTH**0.5)
        elif parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    embedding = decoder.get_input_embeddings().weight
    gain = 8.0 if isinstance(model, hf.T5ForConditionalGeneration) else 2.0  # T5 does not scale its embeddings
    embedding.mul_(gain)
    noise = torch.randn(embedding.shape, generator=generator) * GAIN / WIDTH**0.5
    model.lm_head.weight = torch.nn.Parameter(embedding.roll(STRIDE, dims=0) / gain + noise / 3)


def tiny_model(family: str, seed: int = 0, vocabulary: int = 64, layers: int = 2) -> PreTrainedModel:
    """A random model of the family in eval mode, float32, on the CPU."""
    model = _BUILDERS[family](vocabulary, layers)
    _scatter_weights(model, seed)
    model.eval()
    return model
