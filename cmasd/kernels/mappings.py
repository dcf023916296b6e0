"""Memory for what is kept as long as a model: mapped by itself, apart from what comes and goes in malloc's heap.

So what is freed beside it leaves no holes between weights, and huge pages, where Linux has them for the asking, spare
most of the look-ups of page addresses that reading all weights in every step needs.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from math import prod
from typing import cast

import torch
from torch import Tensor

LEAST_BYTES = 2**21
"""Of a mapping of its own; a huge page."""


def kept_zeros(*shape: int, dtype: torch.dtype, is_sparse: bool = False) -> Tensor:
    """Zeros on the host, which take memory when they are first written to; what is sparse, in small pages."""
    size = prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return torch.zeros(shape, dtype=dtype)
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # not every kernel is built with them
            mapping.madvise(mmap.MADV_NOHUGEPAGE if is_sparse else mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)


def give_back(kept: Tensor) -> None:
    """The whole pages of a part of what is sparse are zeros again, and take no memory until they are written to.

    The last dimensions of the part are contiguous; where there are no such pages nothing happens.
    """
    advise = _advise()
    if advise is None or kept.device.type != "cpu" or kept.numel() == 0:
        return
    stretch, outer = kept.element_size(), kept.dim()
    while outer and kept.stride(outer - 1) * kept.element_size() == stretch:
        outer -= 1
        stretch *= kept.shape[outer]
    starts = torch.zeros(1, dtype=torch.int64)
    for size, step in zip(kept.shape[:outer], kept.stride()[:outer], strict=True):
        starts = (starts[:, None] + torch.arange(size) * step * kept.element_size()).flatten()
    for start in (starts + kept.data_ptr()).tolist():
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + stretch) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            advise(first, last - first, mmap.MADV_DONTNEED)


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Linux alone says that pages which are not needed come back as zeros."""
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast(Callable[[int, int, int], int], advise)
