"""Memory for what is kept as long as a model: mapped by itself, apart from what comes and goes in malloc's heap.

So what is freed beside it leaves no holes between weights, and huge pages, where Linux has them for the asking, spare
most of the look-ups of page addresses that reading all weights in every step needs.
"""

import mmap
from contextlib import suppress
from math import prod

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
    if hasattr(mmap, "MADV_HUGEPAGE") and not is_sparse:
        with suppress(OSError):  # not every kernel is built with them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)
