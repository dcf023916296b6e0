"""Linear layers with their weights stored the way the machine multiplies fastest.

On a CPU, stock `F.linear` packs the weights anew in every call, which for 16 to 64 rows costs more than the product
itself. MKL (Intel) and oneDNN (others, and bfloat16) can be given packed weights: 1.2 to 2.4 times faster at the same
precision. Both doors are private to torch (Inductor uses them when it freezes weights), so each is tried once on the
real weight and given up for `F.linear` where it fails. On a GPU `F.linear` is right.

Shapes: N rows, I input width, O output width.
"""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmasd.errors import ModelError

Dense = Callable[[Tensor], Tensor]
"""(N, I) -> (N, O)"""

ROW_COUNTS = (4, 8, 16, 24, 32, 48, 64)
"""Row counts for which weights are packed; below, `F.linear` is as fast, and above, arithmetic outweighs packing."""
USES_BEFORE_PACKING = 6
"""Row counts that come up less often are not worth a packed copy."""
COPIES, COPIES_OF_LARGE, LARGE_BYTES = len(ROW_COUNTS), 3, 16 * 2**20
"""Packed copies of a weight that are kept, and of one of more bytes than `LARGE_BYTES`."""
LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""


def dense(*linears: nn.Linear, bias: Tensor | None = None, recurs: bool = True, int8: bool = False) -> Dense:
    """One product for all `linears`, their outputs side by side; `bias` (O,) is added to theirs.

    `recurs` says whether the same row counts will come again and again, as they do in decoding. `int8` asks for
    quantised weights; raises `ModelError` where this build of torch has no kernel for them.
    """
    weight_OI = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
    bias_O = _joined_bias(linears, bias)
    if int8:
        return Int8Dense(weight_OI.detach(), bias_O)
    for kind in _candidates(weight_OI) if recurs else ():
        try:
            packed = kind(weight_OI.detach(), bias_O)
            packed(weight_OI.new_zeros(2, weight_OI.shape[1]))
        except (RuntimeError, AttributeError, NotImplementedError):
            continue
        return packed
    return lambda x_NI: F.linear(x_NI, weight_OI, bias_O)


def _candidates(weight_OI: Tensor) -> Sequence[Callable[[Tensor, Tensor | None], Dense]]:
    if weight_OI.device.type != "cpu" or weight_OI.dtype not in (torch.float32, torch.bfloat16):
        return ()
    if weight_OI.dtype == torch.float32 and _is_intel() and torch.backends.mkl.is_available():
        return (MklDense, OneDnnDense)
    return (OneDnnDense,)


def rounded(rows: int) -> int | None:
    """The least packed row count that is not less than `rows`; None where packing does not pay."""
    place = bisect_left(ROW_COUNTS, rows)
    return None if rows <= ROW_COUNTS[0] // 2 or place == len(ROW_COUNTS) else ROW_COUNTS[place]


class MklDense:
    """Float32 weights packed by MKL, which makes a copy for one row count alone.

    Rows are padded up to a count that comes up again, as the last rows of a job would else never meet a packed copy.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI = weight_OI
        self._bias_O = bias_O
        self._kept = COPIES_OF_LARGE if weight_OI.nbytes > LARGE_BYTES else COPIES
        self._packed: dict[int, Tensor] = {}
        self._uses: dict[int, int] = {}
        self._ops: Any = torch.ops.mkl
        self._pack(ROW_COUNTS[0])

    def __call__(self, x_NI: Tensor) -> Tensor:
        """(N, O)"""
        rows = x_NI.shape[0]
        count = rounded(rows)
        packed = None if count is None else self._packed.get(count)
        if packed is None and count is not None:
            packed = self._packed_now(count)
        if packed is None or count is None:
            return F.linear(x_NI, self._weight_OI, self._bias_O)
        if count != rows:
            x_NI = F.pad(x_NI, (0, 0, 0, count - rows))
        product: Tensor = self._ops._mkl_linear(x_NI, packed, self._weight_OI, self._bias_O, count)
        return product[:rows]

    def _packed_now(self, rows: int) -> Tensor | None:
        """Pack for a row count that has come up often enough."""
        uses = self._uses[rows] = self._uses.get(rows, 0) + 1
        if uses < USES_BEFORE_PACKING:
            return None
        self._uses[rows] = 0
        return self._pack(rows)

    def _pack(self, rows: int) -> Tensor:
        if len(self._packed) == self._kept:
            del self._packed[next(iter(self._packed))]
        packed: Tensor = self._ops._mkl_reorder_linear_weight(self._weight_OI, rows)
        self._packed[rows] = packed
        return packed


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


@cache
def _is_intel() -> bool:
    """By the vendor's name in Linux's list of processors; MKL is slow elsewhere."""
    processors = Path("/proc/cpuinfo")
    return processors.is_file() and "GenuineIntel" in processors.read_text(errors="replace")


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
