"""Models of random weights, to measure what forwards of their sizes cost: what they say is of no use."""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, MarianConfig, MarianMTModel


@dataclass(frozen=True)
class Sizes:
    """Of a model of random weights."""

    width: int
    feed_forward: int
    heads: int
    layers: int
    drafter_layers: int
    vocabulary: int


def encoder_decoder(sizes: Sizes, layers: int) -> Any:
    """A Marian."""
    kind: Any = MarianConfig
    return MarianMTModel(
        kind(
            vocab_size=sizes.vocabulary,
            d_model=sizes.width,
            encoder_layers=sizes.layers,
            decoder_layers=layers,
            encoder_ffn_dim=sizes.feed_forward,
            decoder_ffn_dim=sizes.feed_forward,
            encoder_attention_heads=sizes.heads,
            decoder_attention_heads=sizes.heads,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def decoder_only(sizes: Sizes, layers: int) -> Any:
    """A Llama."""
    kind: Any = LlamaConfig
    return LlamaForCausalLM(
        kind(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            intermediate_size=sizes.feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=sizes.heads,
            max_position_embeddings=2048,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
