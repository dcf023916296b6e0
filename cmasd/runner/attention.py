"""What a decoder's attention sees in one forward: the output so far, and the source.

Two ways of the same: one call of C per attention (`cmasd.kernels`), or tensor operations, which need masks and read all
rows up to the longest.

Shapes: B rows, T window, N = B*T, H heads, D head width, d = H*D, G = B*H, L and S what is read of output and source.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cmasd.kernels import Kernels
from cmasd.runner.base import LayerPairs
from cmasd.runner.cache import SlotCache, SourceCache


class Sight(Protocol):
    """Attention of every layer, for a window that is open in the cache."""

    def history(self, layer: int, projected_N3d: Tensor) -> Tensor:
        """(N, d): keep the window's keys and values, attend to all so far.

        `projected_N3d` holds all heads' queries, then (key, value) head by head.
        """

    def source(self, layer: int, queries_Nd: Tensor) -> Tensor:
        """(N, d): attend to the keys and values stored of the source."""


@dataclass(frozen=True)
class NativeSight:
    """In C; needs neither masks nor views."""

    kernels: Kernels
    cache: SlotCache
    sources: SourceCache
    starts_B: Tensor
    """(B,) int64, tokens before the window."""
    source_lengths_B: Tensor
    """(B,) int64"""

    def history(self, layer: int, projected_N3d: Tensor) -> Tensor:
        """See `Sight.history`."""
        return self.kernels.extend(projected_N3d, self.cache.layers_SHLP[layer], self.starts_B)

    def source(self, layer: int, queries_Nd: Tensor) -> Tensor:
        """See `Sight.source`."""
        return self.kernels.read(queries_Nd, self.sources.layers_SHLP[layer], self.source_lengths_B)


@dataclass(frozen=True)
class TensorSight:
    """In tensor operations, on any device."""

    rows: int
    cache: SlotCache
    mask_GTL: Tensor
    sources: LayerPairs
    """As in `View.products`."""
    mask_G1S: Tensor

    @classmethod
    def of(cls, cache: SlotCache, mask: Tensor, sources: LayerPairs, source_mask: Tensor, heads: int) -> "TensorSight":
        """`mask` (B, 1, T, L), `source_mask` (B, 1, 1, S)."""
        return cls(len(mask), cache, per_head(mask, heads), sources, per_head(source_mask, heads))

    def history(self, layer: int, projected_N3d: Tensor) -> Tensor:
        """See `Sight.history`."""
        width = projected_N3d.shape[1] // 3
        heads = len(self.mask_GTL) // self.rows
        self.cache.write(layer, projected_N3d[:, width:].reshape(-1, 2 * width // heads))
        assert self.cache.view is not None, "a window is open"
        return attend(projected_N3d[:, :width], self.rows, *self.cache.view.products[layer], self.mask_GTL)

    def source(self, layer: int, queries_Nd: Tensor) -> Tensor:
        """See `Sight.source`."""
        return attend(queries_Nd, self.rows, *self.sources[layer], self.mask_G1S)


def attend(queries_Nd: Tensor, rows: int, keys_GDL: Tensor, values_GLD: Tensor, mask_GTL: Tensor) -> Tensor:
    """(N, d). Two batched products: on a CPU a fifth faster than the fused kernel for windows this short."""
    groups, width, _ = keys_GDL.shape
    heads = groups // rows
    queries_GTD = queries_Nd.view(rows, -1, heads, width).transpose(1, 2).reshape(groups, -1, width)
    scores_GTL = torch.baddbmm(mask_GTL, queries_GTD, keys_GDL, alpha=width**-0.5)
    out_GTD = torch.bmm(torch.softmax(scores_GTL, dim=-1), values_GLD)
    return out_GTD.view(rows, heads, -1, width).transpose(1, 2).reshape(queries_Nd.shape)


def per_head(mask: Tensor, heads: int) -> Tensor:
    """(B, 1, T, L) -> (B*H, T, L)"""
    return mask.expand(-1, heads, -1, -1).flatten(0, 1)
