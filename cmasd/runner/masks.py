"""Additive attention masks for rows of different lengths: 0 where a key is visible, -inf where it is not.

Additive float rather than bool: eager attention adds what it is given, and SDPA on a CPU would convert a bool mask
again in every layer. Passing a ready 4-D mask also skips the mask building of transformers, which assumes one length
per batch.

Shapes: B rows, T window, L cache length, S source length. Every mask is (B, 1, T or 1, L or S).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def source_mask(lengths_B: Tensor, source_length: int, dtype: torch.dtype) -> Tensor:
    """Mask (B, 1, 1, S) that shows each row the first `lengths_B` of S source positions."""
    visible_BS = torch.arange(source_length, device=lengths_B.device) < lengths_B[:, None]
    mask_BS = torch.zeros(visible_BS.shape, dtype=dtype, device=lengths_B.device)
    return mask_BS.masked_fill_(~visible_BS, float("-inf"))[:, None, None, :]


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

    def window(self, positions_BT: Tensor, read_length: int, span: int | None) -> Tensor:
        """Mask (B, 1, T, read_length): key j is visible at position p iff j <= p and, with a span, j > p - span."""
        positions_BT1 = positions_BT[:, None, :, None]
        keys_L = self.keys_L[:read_length]
        seen = keys_L <= positions_BT1
        if span is not None and span < read_length:
            seen = seen & (keys_L > positions_BT1 - span)
        return torch.where(seen, self.visible, self.hidden)
