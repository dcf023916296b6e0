"""Preallocated key/value storage in which every slot has its own length.

    buffer[layer, slot, head, position, keys|values]
                               |<- live rows 0..B-1 ->|
                    position:  |<-- seen by the row -->|<- stale, masked ->|<- room ->|

Reads are views `[:B, :, :read_length]` of one buffer; writes go to each row's own positions. Nothing is ever erased:
a position past a row's length is masked until it is written again. Buffers start at zero, because a masked NaN would
still poison its row. `SlotCache` knows no lengths outside an open window, so the caching helpers of `generate`
(crop, reorder) do not apply to it.

Shapes: B rows, T window, N = B*T*H written lines, K layers, S slots or source length, H heads, D head width, P = 2*D, L
cache length.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from cmasd.config.tree import KEPT_PLACES
from cmasd.kernels import give_back, kept_zeros
from cmasd.models.attention import LayerPairs
from cmasd.models.masks import source_mask

READ_STEP = 8
"""Attention reads a multiple of this, so that views are made anew in one forward of so many; the rest is masked."""


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
        """Zeros of shape (layers, slots, heads, length, 2 * width): keys and values side by side.

        On a host, places that no row comes to take no memory.
        """
        return self.zeros(self.layers, slots, self.heads, length, 2 * self.width)

    def zeros(self, *shape: int) -> Tensor:
        """Of any shape."""
        if self.device.type == "cpu":
            return kept_zeros(*shape, dtype=self.dtype, is_sparse=True)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class View:
    """What attention reads in a forward, every layer's keys and values, in the two forms that kernels want.

    Of the first slots these are views, made once; other slots are copied, layer by layer when a layer is read.
    """

    def __init__(self, buffer: Tensor, rows: int, read_length: int, slots_B: Tensor | None = None) -> None:
        """Slots 0..rows-1, or those of `slots_B`, up to `read_length` of `buffer` (layers, slots, H, length, 2D)."""
        self._whole = buffer
        self._buffer = buffer[:, :rows, :, :read_length]
        self._slots_B = slots_B

    def again(self, rows: int, read_length: int) -> "View":
        """This one if its shape is asked for again, else one of that shape."""
        _, has_rows, _, has_length, _ = self._buffer.shape
        return self if (has_rows, has_length) == (rows, read_length) else View(self._whole, rows, read_length)

    def pair(self, layer: int) -> tuple[Tensor, Tensor]:
        """(B, H, L, D) each."""
        return self._pairs[layer] if self._slots_B is None else _halves(self._copied(layer))

    def product(self, layer: int) -> tuple[Tensor, Tensor]:
        """For batched products: keys (B*H, D, L), values (B*H, L, D)."""
        return self._products[layer] if self._slots_B is None else _flat(self._copied(layer))

    def _copied(self, layer: int) -> Tensor:
        assert self._slots_B is not None, "others are views"
        return self._whole[layer, :, :, : self._buffer.shape[3]].index_select(0, self._slots_B)

    @cached_property
    def _pairs(self) -> LayerPairs:
        return [_halves(layer) for layer in self._buffer.unbind(0)]

    @cached_property
    def _products(self) -> LayerPairs:
        return [_flat(layer) for layer in self._buffer.unbind(0)]


def _flat(layer_BHLP: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = _halves(layer_BHLP.flatten(0, 1))
    return keys.transpose(1, 2), values


def _halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    width = pair.shape[-1] // 2
    return pair[..., :width], pair[..., width:]


class SlotCache(Cache):
    """Decoder self-attention keys and values. Open a window or a prompt before each forward of the model."""

    def __init__(self, geometry: Geometry, slots: int, max_length: int, spare: bool = False) -> None:
        """`spare` adds a slot that rows of padding write to."""
        super().__init__(layers=[])
        self.layer_count = geometry.layers
        allocated = slots + spare
        self.buffer_KSHLP = geometry.allocate(allocated, max_length)
        self._lines = self.buffer_KSHLP.flatten(1, 3).unbind(0)
        self.layers_SHLP = self.buffer_KSHLP.unbind(0)
        slot_heads = torch.arange(allocated * geometry.heads, device=geometry.device)
        self._first_line_BH = slot_heads.view(allocated, geometry.heads) * max_length
        self._slots_B1 = torch.arange(slots, device=geometry.device)[:, None]
        self.is_bucketed = spare
        self._max_length = max_length
        self._written = np.zeros(slots, dtype=np.int64)
        self._starts: Tensor | int = 0
        self._first_line_RH = self._first_line_BH
        self._positions_BT = slot_heads[:0]
        self._index_N: Tensor | None = None
        self._view = View(self.buffer_KSHLP, 0, 0)
        self.view: View | None = None
        """Of the open window; None while a prompt is open."""

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        return self.buffer_KSHLP.nbytes

    def extend(self, slots: slice | list[int], length: int) -> int:
        """These slots are about to be written up to `length`; returns what to read, `length` or a few more."""
        self._written[slots] = np.maximum(self._written[slots], length)
        return min(-(-length // READ_STEP) * READ_STEP, self._max_length)

    def open_window(
        self,
        positions_BT: Tensor,
        starts_B1: Tensor,
        read_length: int,
        live: Tensor | None = None,
        slots_B: Tensor | None = None,
        places_BT: Tensor | None = None,
    ) -> None:
        """Slots 0..B-1, or those of `slots_B`, write at `positions_BT`; with `live` (), only so many of the first: the
        others write to the spare slot. With `places_BT` they write there, as in a tree.

        Works on the device alone, so that a CUDA graph may hold it; `extend` is the host's part.
        """
        rows, window = positions_BT.shape
        self._starts = starts_B1
        if places_BT is not None:  # decoders add 0, 1, 2, ... to what they are told
            self._starts = positions_BT - torch.arange(window, device=positions_BT.device)
        first_line_BH = self._first_line_BH[:rows] if slots_B is None else self._first_line_BH[slots_B]
        if live is not None:
            assert self.is_bucketed, "rows of padding need a spare slot"
            first_line_BH = torch.where(self._slots_B1[:rows] < live, first_line_BH, self._first_line_BH[-1])
        self._write_at(first_line_BH, positions_BT if places_BT is None else places_BT)
        if slots_B is not None:
            self.view = View(self.buffer_KSHLP, rows, read_length, slots_B)
            return
        self.view = self._view = self._view.again(rows, read_length)

    def open_prompt(self, slots_B: Tensor, positions_1T: Tensor) -> None:
        """The given slots write from position 0; attention reads the prompt's own keys alone."""
        self._starts = 0
        self._write_at(self._first_line_BH[slots_B], positions_1T)
        self.view = None
        self.extend(slots_B.tolist(), positions_1T.shape[1])

    def begin(self, slots: list[int]) -> None:
        """New rows are in these slots, of which nothing is written yet."""
        self.leave(slots)
        self._written[slots] = 0

    def _write_at(self, first_line_BH: Tensor, positions_BT: Tensor) -> None:
        self._first_line_RH, self._positions_BT, self._index_N = first_line_BH, positions_BT, None

    def write(self, layer: int, pairs: Tensor) -> None:
        """Keep the window's keys and values of a layer, (row, position, head) by (key | value, D) in memory."""
        if self._index_N is None:  # lines of the buffer in the order (row, position, head) that projections come in
            self._index_N = (self._first_line_RH[:, None, :] + self._positions_BT[:, :, None]).reshape(-1)
        lines_NP = self._lines[layer]
        lines_NP.index_copy_(0, self._index_N, pairs.reshape(-1, lines_NP.shape[1]).to(lines_NP.dtype))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer of transformers: write (B, H, T, D), return what to attend to.

        What is kept in fewer bits is read so by its own window, too: a row is the same however its tokens come.
        """
        self.write(layer_idx, torch.cat([key_states, value_states], dim=-1).transpose(1, 2))
        kept, asked = self.buffer_KSHLP.dtype, key_states.dtype
        keys, values = (key_states, value_states) if self.view is None else self.view.pair(layer_idx)
        return (keys, values) if kept == asked else (keys.to(kept).to(asked), values.to(kept).to(asked))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length before the window: 0 for a prompt, else (B, 1), from which decoders derive (B, T) positions.

        For trees (B, T), so that each token gets its own; the first one is a row's length before it.
        """
        return self._starts  # type: ignore[return-value]

    def carry(self, slots_M: Tensor, from_M: Tensor, to_M: Tensor) -> None:
        """Of some slots, the keys and values of these places go to others, all at once."""
        self.buffer_KSHLP[:, slots_M, :, to_M] = self.buffer_KSHLP[:, slots_M, :, from_M]

    def move(self, source: int, target: int) -> None:
        """What slot `source` wrote is in slot `target` from now on."""
        self.leave([target])
        length = int(self._written[source])
        self._written[target] = length
        self.buffer_KSHLP[:, target, :, :length] = self.buffer_KSHLP[:, source, :, :length]
        self.leave([source])

    def leave(self, slots: list[int]) -> None:
        """No row is in these slots any more: a host's memory of places behind the first is given back."""
        shrink(self.buffer_KSHLP, self._written, slots)


def shrink(buffer_KSHLP: Tensor, written: np.ndarray[Any, np.dtype[np.int64]], slots: list[int]) -> None:
    """Slots that were written so far keep their first places alone."""
    for slot in slots:
        if written[slot] > KEPT_PLACES:
            give_back(buffer_KSHLP[:, slot, :, KEPT_PLACES : written[slot]])
            written[slot] = KEPT_PLACES


class SourceCache:
    """Cross-attention keys and values, stored once per row, and the mask of each row's source.

    A row that moves takes a copy along, or, for readers who ask `where_S`, the name of the place where they are: copies
    took an eighth of the time of short rows.
    """

    def __init__(self, geometry: Geometry, slots: int, max_source_length: int) -> None:
        self.buffer_KSHLP = geometry.allocate(slots, max_source_length)
        self.layers_SHLP = self.buffer_KSHLP.unbind(0)
        self._width = geometry.width
        self._lengths = np.zeros(slots, dtype=np.int64)
        self._written = np.zeros(slots, dtype=np.int64)
        """By place."""
        self._places = np.arange(slots)
        """Of each slot."""
        self._counts = torch.from_numpy(self._lengths)
        self.where_S: Tensor | None = None
        """(S,) int64 on the host: the place of each slot, in `buffer_KSHLP`; None: each has its own."""
        self._mask_BS = torch.zeros((slots, 1, 1, max_source_length), dtype=geometry.dtype, device=geometry.device)
        self._view = View(self.buffer_KSHLP, 0, 0)

    def move_by_name(self) -> None:
        """From now on rows that move take no copy along, and who reads and writes `buffer_KSHLP` asks `where_S`."""
        self.where_S = torch.from_numpy(self._places)

    def is_like(self, other: "SourceCache") -> bool:
        """Whether who reads the first layers of the other one finds there what would be here."""
        mine, theirs = (one.buffer_KSHLP for one in (self, other))
        is_same = mine.dtype == theirs.dtype and mine.shape[1:] == theirs.shape[1:]
        return is_same and (self.where_S is None) == (other.where_S is None)

    def in_halves(self) -> "SourceCache":
        """Room for the same rows in bfloat16, at the same places, which `take` fills; rows move in this one alone."""
        halves = copy(self)
        halves.buffer_KSHLP = kept_zeros(*self.buffer_KSHLP.shape, dtype=torch.bfloat16, is_sparse=True)
        halves.layers_SHLP = halves.buffer_KSHLP.unbind(0)
        return halves

    def take(self, other: "SourceCache", slots: list[int]) -> None:
        """Of new rows, what the cache that these are the halves of holds."""
        for place, length in zip(self._places[slots].tolist(), self._lengths[slots].tolist(), strict=True):
            self.buffer_KSHLP[:, place, :, :length] = other.buffer_KSHLP[:, place, :, :length]

    @property
    def nbytes(self) -> int:
        """Of all keys and values, and of the mask."""
        return self.buffer_KSHLP.nbytes + self._mask_BS.nbytes

    def store(self, slots_B: Tensor, lengths_B: Tensor, computed: LayerPairs) -> None:
        """Keep the cross-attention keys and values of a batch of new rows, (B, H, S, D) per layer."""
        places_B = slots_B if self.where_S is None else self.where_S[slots_B]
        for (keys, values), buffer in zip(computed, self.buffer_KSHLP, strict=True):
            buffer[places_B, :, : keys.shape[2], : self._width] = keys
            buffer[places_B, :, : keys.shape[2], self._width :] = values
        self.note(slots_B, lengths_B)

    def note(self, slots_B: Tensor, lengths_B: Tensor) -> None:
        """New rows are in these slots, with sources of these lengths."""
        if self.where_S is None:
            self._mask_BS[slots_B] = source_mask(lengths_B, self._mask_BS.shape[-1], self._mask_BS.dtype)
        slots = slots_B.tolist()
        places = self._places[slots]
        self._lengths[slots] = lengths_B.tolist()
        self._written[places] = np.maximum(self._written[places], lengths_B.max().item())

    def longest(self, slots: slice | list[int]) -> int:
        """Tokens of the longest source in these slots."""
        return int(self._lengths[slots].max())

    @property
    def counts_S(self) -> Tensor:
        """(S,) int64 on the host: source tokens in each slot; a view."""
        return self._counts

    def open(self, rows: int, read_length: int, slots_B: Tensor | None = None) -> tuple[View, Tensor]:
        """Slots 0..rows-1, or those of `slots_B`, up to `read_length`: keys and values, and the mask (B, 1, 1, S)."""
        if self.where_S is not None:
            slots_B = torch.arange(rows) if slots_B is None else slots_B
            view = View(self.buffer_KSHLP, rows, read_length, self.where_S[slots_B])
            return view, source_mask(self._counts[slots_B], read_length, self._mask_BS.dtype)
        if slots_B is not None:
            view = View(self.buffer_KSHLP, rows, read_length, slots_B)
            return view, self._mask_BS[slots_B, :, :, :read_length]
        self._view = self._view.again(rows, read_length)
        return self._view, self._mask_BS[:rows, :, :, :read_length]

    def move(self, source: int, target: int) -> None:
        """The source of slot `source` is in slot `target` from now on."""
        self.leave([target])
        length = int(self._lengths[source])
        self._lengths[target] = length
        if self.where_S is not None:
            places = self._places
            places[source], places[target] = places[target], places[source]
            return
        self._written[target] = length
        self.buffer_KSHLP[:, target, :, :length] = self.buffer_KSHLP[:, source, :, :length]
        self._mask_BS[target] = self._mask_BS[source]
        self.leave([source])

    def leave(self, slots: list[int]) -> None:
        """See `SlotCache.leave`."""
        shrink(self.buffer_KSHLP, self._written, self._places[slots].tolist())
