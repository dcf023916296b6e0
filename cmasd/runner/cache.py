"""Preallocated key/value storage in which every slot has its own length.

    buffer[layer, keys|values, slot, head, position, width]
                               |<- live rows 0..B-1 ->|
                    position:  |<-- seen by the row -->|<- stale, masked ->|<- room ->|

Reads are views `[:B, :, :read_length]` of one buffer; writes go to each row's own positions. Nothing is ever erased:
a position past a row's length is masked until it is written again. Buffers start at zero, because a masked NaN would
still poison its row. `SlotCache` knows no lengths outside an open window, so the caching helpers of `generate`
(crop, reorder) do not apply to it.

Shapes: B rows, T window, N = B*T*H written lines, H heads, D head width, L cache length, S source length.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from cmasd.runner.masks import source_mask


@dataclass(frozen=True)
class Geometry:
    """What a cache needs to know of a model."""

    layers: int
    """Decoder layers."""
    heads: int
    """Key/value heads per layer."""
    width: int
    """Of one head."""
    dtype: torch.dtype
    """Of keys and values."""
    device: torch.device
    """Of keys and values."""

    def allocate(self, slots: int, length: int) -> Tensor:
        """Zeros of shape (layers, 2, slots, heads, length, width)."""
        shape = (self.layers, 2, slots, self.heads, length, self.width)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


def _layer_pairs(view: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split (layers, 2, ...) into one (keys, values) pair per layer, without copying."""
    parts = view.flatten(0, 1).unbind(0)
    return list(zip(parts[::2], parts[1::2], strict=True))


class SlotCache(Cache):
    """Decoder self-attention keys and values. Open a window or a prompt before each forward of the model."""

    def __init__(self, geometry: Geometry, slots: int, max_length: int) -> None:
        super().__init__(layers=[])
        self._buffer = geometry.allocate(slots, max_length)
        self._lines = _layer_pairs(self._buffer.view(geometry.layers, 2, -1, geometry.width))
        slot_heads = torch.arange(slots * geometry.heads, device=geometry.device)
        self._first_line_BH = slot_heads.view(slots, geometry.heads) * max_length
        self._written = [0] * slots
        self._starts: Tensor | int = 0
        self._index_N = slot_heads
        self._views: list[tuple[Tensor, Tensor]] | None = None

    def open_window(self, positions_BT: Tensor, starts_B1: Tensor, read_length: int) -> None:
        """Slots 0..B-1 write at `positions_BT`; attention reads every position below `read_length`."""
        rows = positions_BT.shape[0]
        self._starts = starts_B1
        self._index_N = self._lines_of(self._first_line_BH[:rows], positions_BT)
        self._views = _layer_pairs(self._buffer[:, :, :rows, :, :read_length])
        self._written[:rows] = [max(length, read_length) for length in self._written[:rows]]

    def open_prompt(self, slots_B: Tensor, positions_1T: Tensor) -> None:
        """The given slots write from position 0; attention reads the prompt's own keys alone."""
        self._starts = 0
        self._index_N = self._lines_of(self._first_line_BH[slots_B], positions_1T)
        self._views = None
        for slot in slots_B.tolist():
            self._written[slot] = positions_1T.shape[1]

    @staticmethod
    def _lines_of(first_line_BH: Tensor, positions_BT: Tensor) -> Tensor:
        """Lines of the buffer to write, in the order (row, position, head) that projections come in."""
        return (first_line_BH[:, None, :] + positions_BT[:, :, None]).reshape(-1)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: write (B, H, T, D) keys and values, return what to attend to."""
        key_lines, value_lines = self._lines[layer_idx]
        width = key_lines.shape[-1]
        key_lines.index_copy_(0, self._index_N, key_states.transpose(1, 2).reshape(-1, width))
        value_lines.index_copy_(0, self._index_N, value_states.transpose(1, 2).reshape(-1, width))
        return (key_states, value_states) if self._views is None else self._views[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length before the window: 0 for a prompt, else (B, 1), from which decoders derive (B, T) positions."""
        return self._starts  # type: ignore[return-value]

    def move(self, source: int, target: int) -> None:
        """Copy all that slot `source` ever wrote onto slot `target`."""
        length = self._written[target] = self._written[source]
        self._buffer[:, :, target, :, :length] = self._buffer[:, :, source, :, :length]


class SourceCache:
    """Cross-attention keys and values, stored once per row, and the mask of each row's source."""

    def __init__(self, geometry: Geometry, slots: int, max_source_length: int) -> None:
        self._buffer = geometry.allocate(slots, max_source_length)
        self._lengths = [0] * slots
        self._mask_BS = torch.zeros((slots, 1, 1, max_source_length), dtype=geometry.dtype, device=geometry.device)
        self._opened = (0, 0)
        self._layers = [DynamicLayer() for _ in range(geometry.layers)]
        self.cache = Cache(layers=list(self._layers))

    def store(self, slots_B: Tensor, lengths_B: Tensor, computed: Cache) -> None:
        """Keep the cross-attention cache of a batch of new rows, (B, H, S, D) per layer."""
        for fresh, (keys, values) in zip(cast(Any, computed).layers, _layer_pairs(self._buffer), strict=True):
            keys[slots_B, :, : fresh.keys.shape[2]] = fresh.keys
            values[slots_B, :, : fresh.values.shape[2]] = fresh.values
        self._mask_BS[slots_B] = source_mask(lengths_B, self._mask_BS.shape[-1], self._mask_BS.dtype)
        for slot, length in zip(slots_B.tolist(), lengths_B.tolist(), strict=True):
            self._lengths[slot] = length

    def open(self, rows: int) -> Tensor:
        """Let the model read slots 0..rows-1 up to their longest source; return the mask (B, 1, 1, S)."""
        read_length = max(self._lengths[:rows])
        if self._opened != (rows, read_length):
            self._opened = (rows, read_length)
            pairs = _layer_pairs(self._buffer[:, :, :rows, :, :read_length])
            for layer, (keys, values) in zip(self._layers, pairs, strict=True):
                layer.keys, layer.values = keys, values
        return self._mask_BS[:rows, :, :, :read_length]

    def move(self, source: int, target: int) -> None:
        """Copy the source of slot `source` onto slot `target`."""
        length = self._lengths[target] = self._lengths[source]
        self._buffer[:, :, target, :, :length] = self._buffer[:, :, source, :, :length]
        self._mask_BS[target] = self._mask_BS[source]
