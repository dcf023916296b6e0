"""Linear layers with their weights stored the way the machine multiplies fastest.

On a CPU, stock `F.linear` packs the weights anew in every call, which for 16 to 64 rows costs more than the product
itself, and reads weights that were stored in 16 bits as 32. `cmasd.kernels` packs them once, as they were stored: for 1
to 8 rows two to three times faster, at the same precision. Where there are no kernels, and for bfloat16, oneDNN can be
given packed weights; that door is private to torch (Inductor uses it when it freezes weights). Each way is tried once
on the real weight and given up for the next, in the end for `F.linear`. On a GPU `F.linear` is right.

Shapes: N rows, I input width, O output width.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmasd.errors import ModelError
from cmasd.kernels import Norm, kernels_for

Dense = Callable[[Tensor], Tensor]
"""(N, I) -> (N, O)"""

LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""


def dense(*linears: nn.Linear, bias: Tensor | None = None, int8: bool = False) -> Dense:
    """One product for all `linears`, their outputs side by side; `bias` (O,) is added to theirs.

    `int8` asks for quantised weights; raises `ModelError` where this build of torch has no kernel for them.
    """
    weight_OI = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
    bias_O = _joined_bias(linears, bias)
    if int8:
        return Int8Dense(weight_OI.detach(), bias_O)
    for kind in _candidates(weight_OI):
        try:
            packed = kind(weight_OI.detach(), bias_O)
            packed(weight_OI.new_zeros(2, weight_OI.shape[1]))
        except (RuntimeError, AttributeError, NotImplementedError):
            continue
        return packed
    return lambda x_NI: F.linear(x_NI, weight_OI, bias_O)


def rectified(product: Dense) -> Dense:
    """With a relu behind it."""
    if isinstance(product, NativeDense):
        return product.followed(relu=True)
    return lambda x_NI: torch.relu_(product(x_NI))


def added(product: Dense, norm: Norm | None) -> Callable[[Tensor, Tensor], Tensor]:
    """With a residual behind it: of (N, I) and (N, O) their sum (N, O), normalised where there is a norm."""
    if isinstance(product, NativeDense):
        return product.followed(norm=norm)

    def sum_of(x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        sum_NO = product(x_NI).add_(residual_NO)
        return sum_NO if norm is None else norm(sum_NO)

    return sum_of


def _candidates(weight_OI: Tensor) -> Sequence[Callable[[Tensor, Tensor | None], Dense]]:
    if weight_OI.device.type != "cpu" or weight_OI.dtype not in (torch.float32, torch.bfloat16):
        return ()
    return (OneDnnDense,) if weight_OI.dtype == torch.bfloat16 else (NativeDense, OneDnnDense)


class NativeDense:
    """Float32 weights packed for `cmasd.kernels`, one copy for every number of rows."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        kernels = kernels_for(weight_OI)
        if kernels is None:
            raise NotImplementedError("there are no kernels for this tensor")
        self._kernels = kernels
        self._packed = kernels.pack(weight_OI, bias_O)

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """(N, O)"""
        return self._kernels.product(x_NI, self._packed, residual_NO)

    def followed(self, relu: bool = False, norm: Norm | None = None) -> "NativeDense":
        """The same weights, with this behind them."""
        other = copy(self)
        other._packed = self._packed.followed(relu, norm)
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


class Int8Dense:
    """8-bit weights with a scale per output channel, 8-bit inputs with a scale per row.

    A scale per tensor would make a row's result depend on its neighbours; rows scaled to [-1, 1] share one scale.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        if weight_OI.device.type != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
            raise ModelError(
                "models.dtype: int8 needs a CPU and a torch with FBGEMM, got device "
                f"{weight_OI.device.type}. Use models.dtype=auto."
            )
        try:
            self._packed = self._pack(weight_OI)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ModelError(f"models.dtype: int8 cannot be had from this torch ({error}). Use auto.") from error
        self._bias_O = weight_OI.new_zeros(len(weight_OI)) if bias_O is None else bias_O
        self._product: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    @staticmethod
    def _pack(weight_OI: Tensor) -> Any:
        scales_O = weight_OI.abs().amax(1).clamp_min(LEAST_SCALE).double() / 127
        zeros_O = torch.zeros(len(weight_OI), dtype=torch.int64)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            with warnings.catch_warnings(action="ignore"):  # quantised tensors are to leave torch, one day
                quantised = torch.quantize_per_channel(weight_OI.float(), scales_O, zeros_O, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before

    def __call__(self, x_NI: Tensor) -> Tensor:
        """(N, O)"""
        scale_N1 = x_NI.abs().amax(1, keepdim=True).clamp_min_(LEAST_SCALE)
        scaled_NO = self._product(x_NI / scale_N1, 1 / 127, 128, self._packed)
        return torch.addcmul(self._bias_O, scaled_NO, scale_N1)


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
