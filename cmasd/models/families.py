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
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmasd.errors import ModelError
from cmasd.kernels import Bits, Packed
from cmasd.models.dense import Dense, NativeDense, dense, linear_of
from cmasd.models.packed import PackedLinear

SUPPORTED_ATTENTION = ("sdpa", "eager")


def _is_ragged(lengths: object) -> TypeGuard[Tensor]:
    """Whether cache lengths or positions differ by row; plain ones are ints or 1-D tensors."""
    return isinstance(lengths, Tensor) and lengths.ndim == 2


def _specialise(module: nn.Module, mixin: type) -> None:
    """Put `mixin` in front of the module's class; the module keeps its weights."""
    base = type(module)
    if not issubclass(base, mixin):
        module.__class__ = type(f"Ragged{base.__name__}", (mixin, base), {})


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
        steps_T, keys_K = torch.arange(query_length, device=device), torch.arange(key_length, device=device)
        queries_BT1 = (past_seen_tokens + steps_T)[:, :, None]
        keys_B1K = keys_K.expand(len(past_seen_tokens), 1, -1)
        if past_seen_tokens.shape[1] > 1:  # of a tree each token's own
            places_BT = past_seen_tokens[:, :1] + steps_T
            keys_B1K = keys_B1K.scatter(2, places_BT[:, None], queries_BT1.transpose(1, 2))
        distance_BTK = (queries_BT1 - keys_B1K).clamp_(min=0)
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
    is_bart: bool = False
    """Whether `bart.py` runs it."""
    hears: bool = False
    """Whether its encoder takes sound (`hearing.py`)."""
    prepare: Callable[[Any, int], None] = _ready_as_is
    """Makes a decoder accept (B, T) positions up to the given length."""
    spans: Callable[[Any], "int | dict[str, int | None] | None"] = _all_keys
    """From the config: keys that a query sees back (None: all), or such a number per layer type."""
    positions_key: str | None = "max_position_embeddings"
    """Name of the config's position limit; None when positions are relative."""
    has_position_table: bool = False
    """Whether positions past the limit cannot be computed at all."""


_TABLE = Family(True, is_bart=True, has_position_table=True)
_RELATIVE = Family(True, prepare=_relative, positions_key=None)
_LAYERED = Family(False, spans=_span_by_layer_type)

FAMILIES: dict[str, Family] = {
    "MarianMTModel": _TABLE,
    "BartForConditionalGeneration": _TABLE,
    "MBartForConditionalGeneration": _TABLE,
    "PegasusForConditionalGeneration": _TABLE,
    "T5ForConditionalGeneration": _RELATIVE,
    "MT5ForConditionalGeneration": _RELATIVE,
    "M2M100ForConditionalGeneration": Family(True, is_bart=True),
    "WhisperForConditionalGeneration": Family(True, is_bart=True, hears=True, positions_key="max_target_positions"),
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


@dataclass(frozen=True)
class Words:
    """Which tokens a model may say."""

    banned: tuple[int, ...] = ()
    """Ids whose logit never wins."""
    shortlist: tuple[int, ...] | None = None
    """The only ids whose logits are computed, in the order of the logits' columns; None: the whole vocabulary."""

    def tensor(self, device: torch.device) -> Tensor | None:
        """The shortlist on a device."""
        return None if self.shortlist is None else torch.tensor(self.shortlist, dtype=torch.int64, device=device)


ANY_WORD = Words()


def output_layer(model: Any) -> Any:
    """The layer whose outputs are logits."""
    return model.lm_head if hasattr(model, "lm_head") else model.proj_out


class Head:
    """The decoder's last hidden states (..., d) to logits (..., V), as in the model's forward."""

    def __init__(
        self,
        product: Dense,
        rows: Callable[[Tensor], Tensor],
        scale: float | None,
        cap: float | None,
        banned: list[int],
    ) -> None:
        """The product (N, d) to (N, V), between a scale and a cap; `banned` where these come after a cap."""
        self.rows = rows
        """Of columns of the logits (...) their weights (..., d)."""
        self._product, self._scale, self._cap, self._banned = product, scale, cap, banned

    @property
    def packed(self) -> Packed | None:
        """The product, where it is packed and is all there is to do."""
        is_plain = self._scale is None and self._cap is None
        return self._product.packed if is_plain and isinstance(self._product, NativeDense) else None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., V)"""
        if self._scale is not None:
            hidden = hidden * self._scale
        logits_NV = self._product(hidden.reshape(-1, hidden.shape[-1]))
        logits = logits_NV.view(*hidden.shape[:-1], logits_NV.shape[-1])
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
            logits[..., self._banned] = float("-inf")
        return logits


def output_head(model: Any, words: Words, bits: Bits = None) -> Head:
    """Of a model. Where it can, the ban is part of the layer's bias and costs nothing."""
    cap: float | None = getattr(model.config, "final_logit_softcapping", None)
    banned = [one for one in words.banned if words.shortlist is None and one < len(output_layer(model).weight)]
    product = _output_product(model, words, banned if cap is None else [], bits)
    return Head(product, _output_rows(model, words), output_scale(model), cap, banned)


def _output_rows(model: Any, words: Words) -> Callable[[Tensor], Tensor]:
    """See `Head.rows`."""
    layer: nn.Linear | PackedLinear = output_layer(model)
    ids_S = words.tensor(model.device)

    def rows(columns: Tensor) -> Tensor:
        return _weights(layer, columns if ids_S is None else ids_S[columns])

    return rows


def _weights(layer: "nn.Linear | PackedLinear", ids: Tensor) -> Tensor:
    """(..., d) of these outputs."""
    return layer.packed.rows(ids) if isinstance(layer, PackedLinear) else layer.weight[ids]


def _output_product(model: Any, words: Words, banned: list[int], bits: Bits) -> Dense:
    """The output layer; without a bias where it would be zero, which spares one pass over the logits."""
    layer: nn.Linear | PackedLinear = output_layer(model)
    bias_V = _output_bias(model, layer, banned)
    ids_S = words.tensor(model.device)
    if ids_S is None and isinstance(layer, PackedLinear):
        return NativeDense.of(layer, bias_V)
    if ids_S is None:
        return dense(linear_of(layer.weight, None), bias=bias_V, bits=bits)
    return dense(linear_of(_weights(layer, ids_S), None), bias=None if bias_V is None else bias_V[ids_S], bits=bits)


def _output_bias(model: Any, layer: "nn.Linear | PackedLinear", banned: list[int]) -> Tensor | None:
    """The layer's own, what Marian's kin add to the logits, and what keeps banned ids from winning."""
    more: Tensor | None = getattr(model, "final_logits_bias", None)
    parts = [layer.bias, None if more is None or not bool(more.any()) else more.view(-1)]
    found = [one.detach() for one in parts if one is not None]
    bias_V = sum(found[1:], found[0]) if found else None
    if banned:
        dtype = layer.weight.dtype
        bias_V = torch.zeros(len(layer.weight), dtype=dtype, device=model.device) if bias_V is None else bias_V.clone()
        bias_V[banned] = torch.finfo(dtype).min / 2
    return bias_V


def output_scale(model: Any) -> float | None:
    """T5 whose checkpoint ties its embeddings divides the last hidden states by the square root of their width.

    mT5 does not, though its configuration says that it ties them.
    """
    return float(model.model_dim**-0.5) if getattr(model.config, "scale_decoder_outputs", False) else None
