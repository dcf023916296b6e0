"""What each model family needs so that rows of one batch may stand at different positions.

No model code is copied. Most decoders compute `arange(T) + cache length`, which gives (B, T) positions when the cache
answers with a (B, 1) tensor. Where that is not enough, one module of the loaded model gets a subclass of its own class
that differs for such tensors only: `model.generate` and training behave as before, several runners may share a model,
and preparing twice changes nothing.

Shapes: B rows, T window, K keys, H heads, L cache length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmasd.errors import ModelError

SUPPORTED_ATTENTION = ("sdpa", "eager")


def _is_ragged(lengths: object) -> TypeGuard[Tensor]:
    """Whether cache lengths or positions differ by row; plain ones are ints or 1-D tensors."""
    return isinstance(lengths, Tensor) and lengths.ndim == 2


def _specialise(module: nn.Module, mixin: type) -> None:
    """Put `mixin` in front of the module's class; the module keeps its weights."""
    base = type(module)
    if not issubclass(base, mixin):
        module.__class__ = type(f"Ragged{base.__name__}", (mixin, base), {})


class _TablePositions:
    """Position tables of Marian, Pegasus, BART and mBART: (B, T) positions, held inside the table.

    Only padding and drafts past the end of a row reach beyond the table, and their logits are never used.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        position_ids = kwargs.get("position_ids")
        if not _is_ragged(position_ids):
            return super().forward(*args, **kwargs)  # type: ignore[misc, no-any-return]
        table: Tensor = self.weight  # type: ignore[attr-defined]
        positions_BT = position_ids + getattr(self, "offset", 0)
        return F.embedding(positions_BT.clamp_(max=table.shape[0] - 1), table)


class _SinusoidalPositions:
    """Positions of M2M100: padding ids get the padding position, as they do when decoding one token at a time."""

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values_length: Any = 0
    ) -> Tensor:
        if not _is_ragged(past_key_values_length):
            return super().forward(input_ids, inputs_embeds, past_key_values_length)  # type: ignore[misc, no-any-return]
        assert input_ids is not None, "a ragged window is fed as token ids"
        padding: int = self.padding_idx  # type: ignore[attr-defined]
        steps_T = torch.arange(padding + 1, padding + 1 + input_ids.shape[1], device=input_ids.device)
        positions_BT = (past_key_values_length + steps_T).masked_fill_(input_ids == padding, padding)
        return F.embedding(positions_BT, self.weights)  # type: ignore[attr-defined]


class _RelativeBias:
    """Relative position bias of T5: one bias per row, (B, H, T, K), since each row's queries stand elsewhere.

    Buckets depend on the distance alone and are kept; positive distances (keys ahead of the query) are masked anyway.
    """

    _buckets_L: Tensor | None = None

    def compute_bias(
        self, query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: Any = 0
    ) -> Tensor:
        if not _is_ragged(past_seen_tokens):
            return super().compute_bias(query_length, key_length, device, past_seen_tokens)  # type: ignore[misc, no-any-return]
        device = past_seen_tokens.device
        queries_BT1 = (past_seen_tokens + torch.arange(query_length, device=device))[:, :, None]
        distance_BTK = (queries_BT1 - torch.arange(key_length, device=device)).clamp_(min=0)
        buckets_BTK = self._distance_buckets(key_length, past_seen_tokens.device)[distance_BTK]
        bias_BTKH: Tensor = self.relative_attention_bias(buckets_BTK)  # type: ignore[attr-defined]
        return bias_BTKH.permute(0, 3, 1, 2).contiguous()

    def _distance_buckets(self, length: int, device: torch.device) -> Tensor:
        buckets_L = self._buckets_L
        if buckets_L is None or buckets_L.shape[0] < length or buckets_L.device != device:
            buckets_L = self._relative_position_bucket(  # type: ignore[attr-defined]
                -torch.arange(2 * length, device=device),
                bidirectional=False,
                num_buckets=self.relative_attention_num_buckets,  # type: ignore[attr-defined]
                max_distance=self.relative_attention_max_distance,  # type: ignore[attr-defined]
            )
            self._buckets_L = buckets_L
        assert buckets_L is not None, "buckets were just computed"
        return buckets_L


def _ready_as_is(decoder: Any, max_length: int) -> None:
    """Decoders that are given their positions."""


def _table(decoder: Any, max_length: int) -> None:
    _specialise(decoder.embed_positions, _TablePositions)


def _sinusoidal(decoder: Any, max_length: int) -> None:
    positions = decoder.embed_positions
    needed = positions.padding_idx + 1 + max_length
    if positions.weights.shape[0] < needed:
        positions.make_weights(needed, positions.embedding_dim, positions.padding_idx)
    _specialise(positions, _SinusoidalPositions)


def _relative(decoder: Any, max_length: int) -> None:
    _specialise(decoder.block[0].layer[0].SelfAttention, _RelativeBias)


def _all_keys(config: Any) -> "int | dict[str, int | None] | None":
    return None


def _one_span(config: Any) -> "int | dict[str, int | None] | None":
    span: int | None = config.sliding_window
    return span


def _span_by_layer_type(config: Any) -> "int | dict[str, int | None] | None":
    spans: dict[str, int | None] = {"full_attention": None, "sliding_attention": config.sliding_window}
    unknown = sorted(set(config.layer_types) - set(spans))
    if unknown:
        raise ModelError(f"models: attention layers of kind {unknown} are not supported; expected {sorted(spans)}.")
    return {kind: spans[kind] for kind in sorted(set(config.layer_types))}


@dataclass(frozen=True)
class Family:
    """How one architecture is driven."""

    is_encoder_decoder: bool
    """Whether it has an encoder of its own."""
    prepare: Callable[[Any, int], None] = _ready_as_is
    """Makes a decoder accept (B, T) positions up to the given length."""
    spans: Callable[[Any], "int | dict[str, int | None] | None"] = _all_keys
    """From the config: keys that a query sees back (None: all), or such a number per layer type."""
    positions_key: str | None = "max_position_embeddings"
    """Name of the config's position limit; None when positions are relative."""
    has_position_table: bool = False
    """Whether positions past the limit cannot be computed at all."""


_TABLE = Family(True, prepare=_table, has_position_table=True)
_RELATIVE = Family(True, prepare=_relative, positions_key=None)
_LAYERED = Family(False, spans=_span_by_layer_type)

FAMILIES: dict[str, Family] = {
    "MarianMTModel": _TABLE,
    "BartForConditionalGeneration": _TABLE,
    "MBartForConditionalGeneration": _TABLE,
    "PegasusForConditionalGeneration": _TABLE,
    "T5ForConditionalGeneration": _RELATIVE,
    "MT5ForConditionalGeneration": _RELATIVE,
    "M2M100ForConditionalGeneration": Family(True, prepare=_sinusoidal),
    "LlamaForCausalLM": Family(False),
    "MistralForCausalLM": Family(False, spans=_one_span),
    "Qwen2ForCausalLM": _LAYERED,
    "Qwen3ForCausalLM": _LAYERED,
    "GPT2LMHeadModel": Family(False, has_position_table=True),
    "GemmaForCausalLM": Family(False),
    "Gemma2ForCausalLM": _LAYERED,
    "Gemma3ForCausalLM": _LAYERED,
}
"""By the class of the loaded model."""


def family_of(model: PreTrainedModel) -> Family:
    """The family of a loaded model, or an error that names what is not supported."""
    architecture = type(model).__name__
    family = FAMILIES.get(architecture)
    if family is None:
        raise ModelError(
            f"models: architecture {architecture} is not supported; expected one of {', '.join(FAMILIES)}."
        )
    attention = model.config._attn_implementation
    if attention not in SUPPORTED_ATTENTION:
        raise ModelError(
            f"models: attention implementation {attention} reads no per-row masks; expected one of "
            f"{', '.join(SUPPORTED_ATTENTION)}. Load the model with attn_implementation='sdpa'."
        )
    _refuse_length_dependent_rotation(model.config)
    if getattr(model.config, "use_bidirectional_attention", False):
        raise ModelError("models: bidirectional attention is not supported, got use_bidirectional_attention=true.")
    return family


def _refuse_length_dependent_rotation(config: Any) -> None:
    """Rotations that are rescaled by the longest row would make a row depend on its neighbours."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in nested or [parameters]:
        kind = rope.get("rope_type", "default")
        if "dynamic" in kind or kind == "longrope":
            raise ModelError(
                f"models: rope_type {kind} rescales by the longest row of a batch, so that a row's output would "
                "depend on its neighbours; expected default, linear, llama3 or yarn."
            )


def output_head(model: Any) -> Callable[[Tensor], Tensor]:
    """The function from the decoder's last hidden states (B, T, d) to logits (B, T, V), as in the model's forward."""
    config, linear = model.config, model.lm_head
    scale = _output_scale(model)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    bias: Tensor | None = getattr(model, "final_logits_bias", None)
    if bias is not None and not bool(bias.any()):
        bias = None  # most checkpoints: spares one pass over the logits

    def logits(hidden_BTd: Tensor) -> Tensor:
        if scale is not None:
            hidden_BTd = hidden_BTd * scale
        logits_BTV: Tensor = linear(hidden_BTd)
        if bias is not None:
            logits_BTV = logits_BTV + bias
        if cap is not None:
            logits_BTV = torch.tanh(logits_BTV / cap) * cap
        return logits_BTV

    return logits


def _output_scale(model: Any) -> float | None:
    """T5 with tied embeddings divides the last hidden states by the square root of their width."""
    if not isinstance(getattr(model, "model_dim", None), int):
        return None
    config = model.config
    scaled: bool = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return float(model.model_dim**-0.5) if scaled else None
