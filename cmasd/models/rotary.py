"""Llama and its kin (Qwen2, Qwen3, Mistral, Gemma, Gemma 3) in one call of C for a whole forward.

Stock modules take a rectangle, and call the threads together some twenty times a layer; where other processes want
the processors too, each time may cost a time slice. Here a window is run as it is, by threads called once for all.
The weights are those of the packed modules (`packed.py`); whatever is not known to the kernels stays with the modules.

Shapes: N tokens, d model width, L places, D head width.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers.activations import GELUTanh, SiLUActivation

from cmasd.kernels import Kernels, PackedRotary, RootNorm, Turn, kernels_for
from cmasd.models.packed import PackedLinear
from cmasd.window import Window

KNOWN = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma3ForCausalLM",
)
ADDS_ONE = ("GemmaForCausalLM", "Gemma3ForCausalLM")
"""Families whose norms keep their gains less one."""
ACTIVATIONS = {torch.nn.SiLU: "silu", SiLUActivation: "silu", GELUTanh: "gelu_tanh"}


class RotaryDecoder:
    """Windows of tokens to hidden states, over a slot cache."""

    def __init__(self, embed: Any, packed: PackedRotary, kernels: Kernels) -> None:
        self._embed, self._packed, self._kernels = embed, packed, kernels

    def __call__(self, window: Window, past_KSHLP: Tensor) -> Tensor:
        """(N, d); keys and values are kept at the tokens' places."""
        return self._kernels.rotate(self._packed, window, self._embed(window.tokens_N), past_KSHLP)


@torch.no_grad()
def rotary_decoder(model: Any, spans: "int | dict[str, int | None] | None", length: int) -> RotaryDecoder | None:
    """Of a packed model, for `length` places; None where a part of it is not known to the kernels."""
    architecture, config, inner = type(model).__name__, model.config, model.base_model
    kernels = kernels_for(torch.empty(0, dtype=model.dtype, device=model.device))
    if architecture not in KNOWN or kernels is None:
        return None
    activation = ACTIVATIONS.get(type(inner.layers[0].mlp.act_fn))
    if activation is None or not all(isinstance(one, PackedLinear) for one in _linears(inner)):
        return None
    kinds = getattr(config, "layer_types", None) or [None] * len(inner.layers)
    angles = {kind: _angles(model, kind, length) for kind in sorted(set(kinds[: len(inner.layers)]), key=str)}
    one = float(architecture in ADDS_ONE)
    turns = []
    for layer, kind in zip(inner.layers, kinds, strict=False):
        span = spans[kind] if isinstance(spans, dict) else spans
        turns.append(_turn(layer, angles[kind], span or 0, one))
    attention = inner.layers[0].self_attn
    heads, kept = (part.out_features // attention.head_dim for part in (attention.q_proj, attention.k_proj))
    packed = PackedRotary(turns, _norm(inner.norm, one), heads, kept, activation, attention.scaling)
    return RotaryDecoder(inner.embed_tokens, packed, kernels)


def _turn(layer: Any, angles: Tensor, span: int, one: float) -> Turn:
    attention, mlp = layer.self_attn, layer.mlp
    has_after = hasattr(layer, "post_feedforward_layernorm")
    middle = layer.pre_feedforward_layernorm if has_after else layer.post_attention_layernorm
    return Turn(
        _norm(layer.input_layernorm, one),
        _norm(middle, one),
        _norm(layer.post_attention_layernorm, one) if has_after else None,
        _norm(layer.post_feedforward_layernorm, one) if has_after else None,
        _norm(attention.q_norm, one) if hasattr(attention, "q_norm") else None,
        _norm(attention.k_norm, one) if hasattr(attention, "k_norm") else None,
        (attention.q_proj.packed, attention.k_proj.packed, attention.v_proj.packed, attention.o_proj.packed),
        (mlp.gate_proj.packed, mlp.up_proj.packed, mlp.down_proj.packed),
        angles,
        span,
    )


def _linears(inner: Any) -> list[Any]:
    return [
        getattr(part, name)
        for layer in inner.layers
        for part, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
        )
        for name in names
    ]


def _norm(module: Any, one: float) -> RootNorm:
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    return RootNorm((module.weight.detach() + one).contiguous(), float(epsilon))


def _angles(model: Any, kind: str | None, length: int) -> Tensor:
    """(L, D), by the model's own rotation."""
    places_1L = torch.arange(length, device=model.device)[None]
    x_1 = torch.empty(1, dtype=model.dtype, device=model.device)
    more = (kind,) if type(model).__name__ == "Gemma3ForCausalLM" else ()
    parts = model.base_model.rotary_emb(x_1, places_1L, *more)
    halves = [cast(Tensor, part)[0, :, : part.shape[-1] // 2] for part in parts]
    return torch.cat(halves, dim=-1).to(model.dtype).contiguous()
