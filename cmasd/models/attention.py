"""Attention of one forward over stored keys and values: those of the output so far, and those of the source.

Two ways of the same: one call of C per attention (`cmasd.kernels`), or tensor operations, which need masks and read all
rows up to the longest. Readers are given queries, writers a window's queries, keys and values, which they keep first.

Shapes: B rows, T window, N = B*T, H heads, D head width, d = H*D, G = B*H, L stored positions that are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmasd.kernels import Kernels
from cmasd.window import Window

LayerPairs = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer."""

Attend = Callable[[int, Tensor], Tensor]
"""Of a layer, (N, d) of the queries (N, d) that a reader is given, or of what a writer is: all heads' queries, then
(key, value) head by head, (N, 3d).
"""


@dataclass(frozen=True)
class NativeReading:
    """In C, without masks or views."""

    kernels: Kernels
    layers_SHLP: Sequence[Tensor]
    """Of a cache, rows in its first slots."""
    rows: int
    """B, each of which asks as many queries."""
    counts_S: Tensor
    """(S,) int64, at least one: how many of a slot's first positions are read."""

    def __call__(self, layer: int, queries_Nd: Tensor) -> Tensor:
        """See `Attend`."""
        queries = torch.empty(self.rows, len(queries_Nd) // self.rows, dtype=torch.int64)
        window = Window.rectangle(queries, self.counts_S[: self.rows])
        return self.kernels.read(queries_Nd, window, self.layers_SHLP[layer], self.counts_S)


@dataclass(frozen=True)
class TensorReading:
    """In tensor operations, on any device."""

    rows: int
    product: Callable[[int], tuple[Tensor, Tensor]]
    """Of a layer, as `View.product`: keys (G, D, L) and values (G, L, D)."""
    mask_GTL: Tensor
    """Additive; T may be 1."""

    @classmethod
    def of(cls, product: Callable[[int], tuple[Tensor, Tensor]], mask: Tensor, heads: int) -> "TensorReading":
        """`mask` (B, 1, T, L), with -inf where a position is not to be seen."""
        return cls(len(mask), product, mask.expand(-1, heads, -1, -1).flatten(0, 1))

    def __call__(self, layer: int, queries_Nd: Tensor) -> Tensor:
        """See `Attend`."""
        return attend(queries_Nd, self.rows, *self.product(layer), self.mask_GTL)


def attend(queries_Nd: Tensor, rows: int, keys_GDL: Tensor, values_GLD: Tensor, mask_GTL: Tensor) -> Tensor:
    """(N, d). Two batched products: on a CPU a fifth faster than the fused kernel for windows this short."""
    groups, width, _ = keys_GDL.shape
    heads = groups // rows
    queries_GTD = queries_Nd.view(rows, -1, heads, width).transpose(1, 2).reshape(groups, -1, width)
    scores_GTL = torch.baddbmm(mask_GTL, queries_GTD, keys_GDL, alpha=width**-0.5)
    out_GTD = torch.bmm(torch.softmax(scores_GTL, dim=-1), values_GLD)
    return out_GTD.view(rows, heads, -1, width).transpose(1, 2).reshape(queries_Nd.shape)
