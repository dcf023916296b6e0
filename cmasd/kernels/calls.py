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
from torch import Tensor

from cmasd.kernels import fours
from cmasd.kernels.build import FAST, built
from cmasd.kernels.forwards import ForwardKernels
from cmasd.kernels.layers import lines, window_struct
from cmasd.kernels.packing import PackingKernels
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
        *fours.DEFINITIONS,
    ),
    torch.float64: ("-DREAL=double", "-DEXP=exp", "-DERF=erf", "-DLOG=log", "-DSQRT=sqrt", "-DFABS=fabs"),
}
"""The names that C knows a number format by."""

log = logging.getLogger(__name__)


class Kernels(RowKernels, ForwardKernels, TreeKernels, PackingKernels):
    """`kernels.c` for one number format."""

    def __init__(self, library: Path, dtype: torch.dtype = torch.float32) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.name = library.stem
        """Of this source, compiler and processor."""
        loaded = ctypes.CDLL(str(library))
        RowKernels.__init__(self, loaded)
        ForwardKernels.__init__(self, loaded)
        TreeKernels.__init__(self, loaded)
        PackingKernels.__init__(self, loaded, dtype)
        self._read, self._statistics = loaded.attend, loaded.statistics
        self._product = loaded.product
        self._read.argtypes = [pointer, pointer, pointer, size, size, pointer]
        self._statistics.argtypes = [pointer, size, size, pointer, pointer]
        self._product.argtypes = [pointer, pointer, size, size, pointer, pointer]

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
        return Kernels(built("kernels.c", *FAST, *REALS[dtype]), dtype)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s", {"event": "kernels.none", "cause": str(error).splitlines()[0]})
        return None
