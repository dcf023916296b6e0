"""What torch has no kernel for on a CPU, in C: attention of short windows over rows of different lengths, all that is
asked of a row of logits, products of few rows with weights that serve again and again, and a decoder of all these.

Batched products read every row up to the longest, and for small models most of their time is the overhead of each
operation, or the reading of weights. `kernels.c` is compiled when it is first needed (some seconds; see `build.py`) and
shares the threads of torch. Without a compiler, on another system, or for other number formats there are no kernels,
and the callers' tensor operations do the same more slowly.

Shapes: B rows, T window, N = B*T, H heads, D head width, d = H*D, P = 2*D, L cache length, S slots, K layers, V
columns, I inputs, O outputs.
"""

import ctypes
import logging
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.kernels.build import built
from cmasd.kernels.forwards import ForwardKernels
from cmasd.kernels.layers import lines, window_struct
from cmasd.kernels.mappings import kept_zeros
from cmasd.kernels.rows import RowKernels
from cmasd.kernels.trees import TreeKernels
from cmasd.kernels.weights import Packed
from cmasd.signals import LogitNumbers
from cmasd.window import Window

REALS = {
    torch.float32: (
        "-DREAL=float",
        "-DEXP=expf",
        "-DERF=erff",
        "-DLOG=logf",
        "-DSQRT=sqrtf",
        "-DFABS=fabsf",
        "-DNARROW",
    ),
    torch.float64: ("-DREAL=double", "-DEXP=exp", "-DERF=erf", "-DLOG=log", "-DSQRT=sqrt", "-DFABS=fabs"),
}
"""The names that C knows a number format by."""
LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""
PACKED_AT_ONCE = 2**21
"""Weights, so that packing needs little memory beside what comes of it."""

log = logging.getLogger(__name__)


class Kernels(RowKernels, ForwardKernels, TreeKernels):
    """`kernels.c` for one number format."""

    def __init__(self, library: Path, dtype: torch.dtype = torch.float32) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.name = library.stem
        """Of this source, compiler and processor."""
        self.dtype = dtype
        """Of inputs and outputs."""
        loaded = ctypes.CDLL(str(library))
        RowKernels.__init__(self, loaded)
        ForwardKernels.__init__(self, loaded)
        TreeKernels.__init__(self, loaded)
        self._read, self._statistics = loaded.attend, loaded.statistics
        self._product = loaded.product
        self._read.argtypes = [pointer, pointer, pointer, size, size, pointer]
        self._statistics.argtypes = [pointer, size, size, pointer, pointer]
        self._product.argtypes = [pointer, pointer, size, size, pointer, pointer]
        self._lanes, self._panel, self._quad, self._zero = (
            size.in_dll(loaded, name).value for name in ("lanes", "panel", "quad", "zero")
        )
        self.multiplies_bytes = self._quad > 1
        """Whether int8 products round their inputs as well, and are much faster than those of 16 or 32 bits."""
        reads = {torch.float16: "reads_float16", torch.bfloat16: "reads_bfloat16"}
        self.halves = [dtype for dtype, name in reads.items() if size.in_dll(loaded, name).value]
        """Formats of 16 bits that `product` widens on the way."""

    def read(self, queries_Nd: Tensor, window: Window, lines_SHLP: Tensor, counts_S: Tensor) -> Tensor:
        """(N, d): attend to the first `counts_S` positions, at least one, of the slots of a window."""
        _, heads, _, pair = lines_SHLP.shape
        out_Nd = torch.empty_like(queries_Nd)
        flat, stored = window_struct(window), lines(lines_SHLP[None], counts_S)
        self._read(
            *(ctypes.byref(flat), ctypes.byref(stored), queries_Nd.data_ptr(), heads, pair // 2, out_Nd.data_ptr())
        )
        return out_Nd

    def argmax(self, logits: Tensor) -> Tensor:
        """(...) int64 of (..., V): the first of equals."""
        return self._scan(logits, None)

    def statistics(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., V): the argmax (...), and its `LogitNumbers` (..., 6)."""
        numbers = logits.new_empty(*logits.shape[:-1], LogitNumbers.width())
        return self._scan(logits, numbers), numbers

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool = False, is_draft: bool = False) -> Packed:
        """For `product`: in 16 bits where no weight loses a digit, or with `int8` rounded, with a scale per output.

        Weights may come in any format, of 16 bits as well, and are packed a few rows at a time. `is_draft` halves what
        is float32 whatever it loses. Kernels of float64 round with `int8`, and store what comes of it as it is.
        """
        outputs, inputs = weight_OI.shape
        keeps_int8 = int8 and self.dtype == torch.float32
        dtype = torch.int8 if keeps_int8 else self._format(weight_OI, int8, is_draft)
        quad, padding = self._quad if keeps_int8 else 1, -outputs % self._panel
        shape = (outputs + padding) // self._lanes, -(-inputs // quad), self._lanes, quad
        strips = kept_zeros(*shape, dtype=dtype)
        bias = torch.zeros(outputs + padding, dtype=self.dtype)
        if bias_O is not None:
            bias[:outputs] = bias_O
        scales = torch.zeros(outputs + padding, dtype=self.dtype) if keeps_int8 else None
        offsets = torch.zeros(outputs + padding, dtype=torch.int32) if keeps_int8 else None
        step = max(1, PACKED_AT_ONCE // (inputs * self._panel)) * self._panel
        for first in range(0, outputs, step):
            part_OI = weight_OI[first : first + step]
            rows = slice(first, first + len(part_OI))
            if int8:
                part_OI = part_OI.to(self.dtype)
                scale_O = part_OI.abs().amax(1).clamp_min(LEAST_SCALE) / 127
                part_OI = (part_OI / scale_O[:, None]).round()
                if scales is None or offsets is None:
                    part_OI = part_OI * scale_O[:, None]
                else:
                    scales[rows], offsets[rows] = scale_O, (-self._zero * part_OI.sum(1)).to(torch.int32)
            padded = F.pad(part_OI.to(dtype), (0, -inputs % quad, 0, -len(part_OI) % self._lanes))
            taken = padded.view(-1, self._lanes, padded.shape[1] // quad, quad).transpose(1, 2)
            strips[first // self._lanes :][: len(taken)] = taken
        return Packed(strips, weight_OI.shape, bias, scales, offsets)

    def _format(self, weight_OI: Tensor, int8: bool, is_draft: bool) -> torch.dtype:
        """That weights are kept in, which loses none of their digits unless `is_draft`."""
        if int8 or self.dtype == torch.float64:
            return self.dtype
        if weight_OI.dtype in self.halves:
            return weight_OI.dtype
        step = max(1, PACKED_AT_ONCE // weight_OI.shape[1])
        fitting = (half for half in self.halves if is_draft or all(_fits(part, half) for part in weight_OI.split(step)))
        return next(fitting, self.dtype)

    def product(self, x_NI: Tensor, packed: Packed, residual_NO: Tensor | None = None) -> Tensor:
        """(N, O): each row's sums are the same whatever rows are beside it.

        The norm, where there is one, is taken of the product and the residual.
        """
        if x_NI.stride(1) != 1:
            x_NI = x_NI.contiguous()
        rows = x_NI.shape[0]
        out_NO = x_NI.new_empty(rows, packed.outputs)
        residual = None
        if residual_NO is not None:
            residual_NO = residual_NO.contiguous()
            residual = residual_NO.data_ptr()
        self._product(packed.address, x_NI.data_ptr(), x_NI.stride(0), rows, residual, out_NO.data_ptr())
        return out_NO

    def _scan(self, logits: Tensor, numbers: Tensor | None) -> Tensor:
        logits, columns = logits.contiguous(), logits.shape[-1]
        tokens = torch.empty(logits.shape[:-1], dtype=torch.int64)
        out = None if numbers is None else numbers.data_ptr()
        self._statistics(logits.data_ptr(), tokens.numel(), columns, tokens.data_ptr(), out)
        return tokens


def _fits(weight: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(weight.to(dtype).to(weight.dtype), weight)


def kernels_for(tensor: Tensor) -> Kernels | None:
    """The kernels for a tensor's device and number format (any, for ids); None where there are none."""
    dtype = torch.float32 if tensor.dtype == torch.int64 else tensor.dtype
    return kernels(dtype) if tensor.device.type == "cpu" else None


@cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """For tensors on the CPU; built when first asked for."""
    if dtype not in REALS or sys.platform != "linux":
        return None
    try:
        return Kernels(built(*REALS[dtype]), dtype)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s", {"event": "kernels.none", "cause": str(error).splitlines()[0]})
        return None
