"""Additive attention masks for rows of different lengths: 0 where a key is visible, -inf where it is not.

Additive float rather than bool: eager attention adds what it is given, and SDPA on a CPU would convert a bool mask
again in every layer. Passing a ready 4-D mask also skips the mask building of transformers, which assumes one length
per batch.

Shapes: B rows, T window, L cache length, S source length. Every mask is (B, 1, T or 1, L or S).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def source_mask(lengths_B: Tensor, source_length: int, dtype: torch.dtype) -> Tensor:
    """Mask (B, 1, 1, S) that shows each row the first `lengths_B` of S source positions."""
    visible_BS = torch.arange(source_length, device=lengths_B.device) < lengths_B[:, None]
    mask_BS = torch.zeros(visible_BS.shape, dtype=dtype, device=lengths_B.device)
    return mask_BS.masked_fill_(~visible_BS, float("-inf"))[:, None, None, :]


class Branches(NamedTuple):
    """What windows are that are trees."""

    places_BT: Tensor
    """(B, T) int64: where keys and values are kept; positions are behind a row's start as deep as tokens are."""
    sees_BTT: Tensor
    """(B, T, T) bool, as `Window.sees_RTT`."""


@dataclass(frozen=True)
class CausalMask:
    """Builds the self-attention mask of a window; constants are kept, since this runs once per forward."""

    keys_L: Tensor
    """(max_length,) int64: 0, 1, 2, ..."""
    visible: Tensor
    """() zero in the dtype of the model."""
    hidden: Tensor
    """() -inf in the dtype of the model."""

    @classmethod
    def build(cls, max_length: int, dtype: torch.dtype, device: torch.device) -> "CausalMask":
        """For windows that end at or before `max_length`."""
        scalars = torch.tensor([0.0, float("-inf")], dtype=dtype, device=device)
        return cls(torch.arange(max_length, device=device), scalars[0], scalars[1])

    def window(
        self, positions_BT: Tensor, read_length: int, span: int | None, branches: Branches | None = None
    ) -> Tensor:
        """Mask (B, 1, T, read_length): key j is visible at position p iff j <= p and, with a span, j > p - span."""
        positions_BT1 = positions_BT[:, None, :, None]
        keys_L = self.keys_L[:read_length]
        if branches is not None:
            return self._tree(positions_BT1, keys_L, span, branches)
        seen = keys_L <= positions_BT1
        if span is not None and span < read_length:
            seen = seen & (keys_L > positions_BT1 - span)
        return torch.where(seen, self.visible, self.hidden)

    def _tree(self, positions_B1T1: Tensor, keys_L: Tensor, span: int | None, branches: Branches) -> Tensor:
        """The same where a window's own keys are seen by their descendants alone, and stand as deep as they are."""
        places_BT, sees_BTT = branches
        rows, window = places_BT.shape
        seen_B1TL = (keys_L < places_BT[:, :1, None, None]).expand(rows, 1, window, len(keys_L))
        into_B1TT = places_BT[:, None, None].expand(rows, 1, window, window)
        seen_B1TL = seen_B1TL.scatter(3, into_B1TT, sees_BTT[:, None])
        if span is not None and span < len(keys_L):
            keys_BL = keys_L.expand(rows, -1).scatter(1, places_BT, positions_B1T1[:, 0, :, 0])
            seen_B1TL &= keys_BL[:, None, None] > positions_B1T1 - span
        return torch.where(seen_B1TL, self.visible, self.hidden)
