"""Linear layers with their weights stored the way the machine multiplies fastest.

On a CPU, stock `F.linear` packs the weights anew in every call, which for 16 to 64 rows costs more than the product
itself, and reads weights that were stored in 16 bits as 32. `cmasd.kernels` packs them once, as they were stored: for 1
to 8 rows two to three times faster, at the same precision. Where there are no kernels, and for bfloat16, oneDNN can be
given packed weights; that door is private to torch (Inductor uses it when it freezes weights). Each way is tried once
on the real weight and given up for the next, in the end for `F.linear`. On a GPU `F.linear` is right.

Shapes: N rows, I input width, O output width.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation

from cmasd.kernels import Bits, Norm, Packed, kernels_for
from cmasd.models.packed import PackedLinear, no_rounding

Dense = Callable[[Tensor], Tensor]
"""(N, I) -> (N, O)"""
_ACTIVATIONS: dict[type, str] = {
    nn.ReLU: "relu",
    GELUActivation: "gelu",
    nn.SiLU: "silu",
    SiLUActivation: "silu",
}
"""Those that kernels know."""


def dense(*linears: nn.Linear, bias: Tensor | None = None, bits: Bits = None) -> Dense:
    """One product for all `linears`, their outputs side by side; `bias` (O,) is added to theirs.

    `bits` asks for rounded weights; raises `ModelError` where there is no kernel for them.
    """
    weight_OI = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
    bias_O = _joined_bias(linears, bias)
    if bits is not None:
        return _rounded(weight_OI.detach(), bias_O, bits)
    for kind in _candidates(weight_OI):
        try:
            packed = kind(weight_OI.detach(), bias_O)
            packed(weight_OI.new_zeros(2, weight_OI.shape[1]))
        except (RuntimeError, AttributeError, NotImplementedError):
            continue
        return packed
    return lambda x_NI: F.linear(x_NI, weight_OI, bias_O)


def _rounded(weight_OI: Tensor, bias_O: Tensor | None, bits: Literal[8, 4]) -> Dense:
    try:
        return NativeDense(weight_OI, bias_O, bits)
    except NotImplementedError:
        raise no_rounding(bits, weight_OI.dtype, weight_OI.device) from None


def activated(product: Dense, activation: Callable[[Tensor], Tensor]) -> Dense:
    """With an activation behind it."""
    name = _ACTIVATIONS.get(type(activation))
    if name is not None and isinstance(product, NativeDense):
        return product.followed(activation=name)
    return lambda x_NI: activation(product(x_NI))


def added(product: Dense, norm: Norm | None) -> Callable[[Tensor, Tensor], Tensor]:
    """With a residual behind it: of (N, I) and (N, O) their sum (N, O), normalised where there is a norm."""
    if isinstance(product, NativeDense):
        return product.followed(norm=norm)

    def sum_of(x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        sum_NO = product(x_NI).add_(residual_NO)
        return sum_NO if norm is None else norm(sum_NO)

    return sum_of


def _candidates(weight_OI: Tensor) -> Sequence[Callable[[Tensor, Tensor | None], Dense]]:
    kinds: dict[torch.dtype, Sequence[Callable[[Tensor, Tensor | None], Dense]]] = {
        torch.float64: (NativeDense,),
        torch.float32: (NativeDense, OneDnnDense),
        torch.bfloat16: (OneDnnDense,),
    }
    return kinds.get(weight_OI.dtype, ()) if weight_OI.device.type == "cpu" else ()


class NativeDense:
    """Weights packed for `cmasd.kernels`, one copy for every number of rows; the arithmetic is that of the inputs."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, bits: Bits = None) -> None:
        kernels = kernels_for(weight_OI)
        if kernels is None:
            raise NotImplementedError("there are no kernels for this tensor")
        self._kernels = kernels
        self.packed: Packed = kernels.pack(weight_OI, bias_O, bits)

    @classmethod
    def of(cls, layer: PackedLinear, bias_O: Tensor | None) -> "NativeDense":
        """A layer that is packed, with another bias where one is given."""
        made = cls.__new__(cls)
        made._kernels, made.packed = layer.kernels, layer.packed if bias_O is None else layer.packed.with_bias(bias_O)
        return made

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """(N, O)"""
        return self._kernels.product(x_NI, self.packed, residual_NO)

    def followed(self, activation: str | None = None, norm: Norm | None = None) -> "NativeDense":
        """The same weights, with this behind them."""
        other = copy(self)
        other.packed = self.packed.followed(activation, norm)
        return other


class OneDnnDense:
    """Float32 or bfloat16 weights in oneDNN's own layout, one copy for every row count."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        ops: Any = torch.ops.mkldnn
        self._packed = ops._reorder_linear_weight(weight_OI)
        self._bias_O = bias_O
        self._product = ops._linear_pointwise.default

    def __call__(self, x_NI: Tensor) -> Tensor:
        """(N, O)"""
        product: Tensor = self._product(x_NI, self._packed, self._bias_O, "none", [], "")
        return product


def linear_of(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    """A layer around given weights, for `dense`."""
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O, requires_grad=False)
    return linear


def _joined_bias(linears: Sequence[nn.Linear], bias: Tensor | None) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return bias
    own: list[Tensor] = [one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in linears]
    return torch.cat(own) if bias is None else torch.cat(own) + bias
