"""Forwards of a packed model in C: windows of tokens, sources, and drafts of several tokens.

Shapes: B rows, R runs, N tokens of a window, S slots or sources, K layers, d width, V columns, P = 2 * head width.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmasd.kernels.layers import (
    PackedDecoder,
    PackedDrafter,
    PackedRule,
    drafted_into,
    lines,
    places,
    window_struct,
)
from cmasd.kernels.rotary import PackedRotary
from cmasd.kernels.weights import Packed
from cmasd.signals import LogitNumbers
from cmasd.window import Window

NO_ROOM = "no memory for a draft"


@dataclass(frozen=True)
class Caches:
    """What a forward reads and writes; whoever keeps the tensors keeps this, too."""

    past_KSHLP: Tensor
    source_KSHLP: Tensor | None
    """None without an encoder."""
    counts_S: Tensor | None
    """(S,) int64 source tokens in each slot."""
    where_S: Tensor | None = None
    """(S,) int64 whose source lines those of each slot are; None: its own."""

    @cached_property
    def past(self) -> Any:
        """The address of its structure."""
        return ctypes.byref(lines(self.past_KSHLP, None))

    @cached_property
    def source(self) -> Any:
        """The same; None without an encoder."""
        source_KSHLP = self.source_KSHLP
        return None if source_KSHLP is None else ctypes.byref(lines(source_KSHLP, self.counts_S, self.where_S))


class Speaker(NamedTuple):
    """A model that speaks greedily."""

    decoder: PackedDecoder
    head: Packed
    ids_S: Tensor | None
    """Ids of the head's columns where these are not all."""
    eos_ids: Tensor
    """A draft ends with one of these."""


class Drafted(NamedTuple):
    """Drafts of slots 0..B-1, made token by token."""

    tokens_BK: Tensor
    """0 behind a row's draft."""
    numbers_BK6: Tensor
    """NaN there."""
    made_B: Tensor
    """Tokens drafted."""
    sent_B: Tensor
    """Of these, the leading ones that a rule sends to the verifier; without a rule all."""
    missing: int
    """The most tokens of a row that the cache lacked."""


class ForwardKernels:
    """Calls of `kernels.c` that run models."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._decode, self._encode, self._fill = loaded.decode, loaded.encode, loaded.fill
        self._guess, self._catch_up = loaded.guess, loaded.catch_up
        self._propose, self._remember = loaded.propose, loaded.remember
        self._rotate = loaded.rotate
        self._rotate.argtypes = [pointer] * 6
        four = (pointer, pointer, pointer, pointer)
        self._decode.argtypes = [*four, pointer, pointer]
        self._encode.argtypes = [*four, pointer]
        self._fill.argtypes = [*four, pointer]
        self._guess.argtypes = [*four, pointer, size, pointer, size, *four]
        self._catch_up.argtypes = [
            *(*four, size, pointer, size, pointer, size, pointer, size, pointer, size),
            *four,
        ]
        self._propose.argtypes = [pointer, pointer, size, pointer, size, pointer, size, size, *four, pointer, pointer]
        self._remember.argtypes = [pointer, pointer, size, pointer]
        self._catch_up.restype = self._guess.restype = self._propose.restype = size

    def decode(self, decoder: PackedDecoder, window: Window, caches: Caches) -> Tensor:
        """(N, d) hidden states of a window, whose keys and values are kept at its places.

        Every token sees those before it in its slot, and the first `counts_S` places of its source, at least one.
        """
        count, real = len(window.tokens_N), caches.past_KSHLP
        room, out_Nd = real.new_empty(count * decoder.room), real.new_empty(count, decoder.width)
        assert caches.source is not None, "a decoder reads a source"
        flat = window_struct(window)
        self._decode(
            *(decoder.address, ctypes.byref(flat), caches.past, caches.source, room.data_ptr(), out_Nd.data_ptr())
        )
        return out_Nd

    def rotate(self, decoder: PackedRotary, window: Window, embedded_Nd: Tensor, past_KSHLP: Tensor) -> Tensor:
        """(N, d) hidden states of a window over its embeddings, as `decode` but without a source."""
        room = embedded_Nd.new_empty(len(embedded_Nd) * decoder.room)
        x_Nd, out_Nd = embedded_Nd.contiguous().clone(), torch.empty_like(embedded_Nd)
        flat, past = window_struct(window), lines(past_KSHLP, None)
        self._rotate(
            *(decoder.address, ctypes.byref(flat), ctypes.byref(past)),
            *(x_Nd.data_ptr(), room.data_ptr(), out_Nd.data_ptr()),
        )
        return out_Nd

    def encode(self, encoder: PackedDecoder, window: Window) -> Tensor:
        """(N, d) hidden states of whole sources, each a run from place 0 on; run i is in slot i."""
        runs, count, kind = len(window.slots_R), len(window.tokens_N), encoder.tables[0]
        room, out_Nd = kind.new_empty(count * encoder.room), kind.new_empty(count, encoder.width)
        scratch_1SHLP = kind.new_empty(1, runs, encoder.heads, window.longest, 2 * encoder.width // encoder.heads)
        lengths_R = window.firsts_R1.diff()
        flat, past = window_struct(window), lines(scratch_1SHLP, lengths_R)
        past.block = 0  # layer after layer in the same scratch
        self._encode(encoder.address, ctypes.byref(flat), ctypes.byref(past), room.data_ptr(), out_Nd.data_ptr())
        return out_Nd

    def fill(
        self,
        decoder: PackedDecoder,
        window: Window,
        encoded_Nd: Tensor,
        source_KSHLP: Tensor,
        where_S: Tensor | None = None,
    ) -> None:
        """Keep the keys and values of sources (N, d), each a run from place 0 on."""
        encoded_Nd, (count, width) = encoded_Nd.contiguous(), encoded_Nd.shape
        room = encoded_Nd.new_empty(count * 2 * width)
        flat, source = window_struct(window), lines(source_KSHLP, None, where_S)
        self._fill(*(decoder.address, ctypes.byref(flat), encoded_Nd.data_ptr(), ctypes.byref(source), room.data_ptr()))

    def guess(self, speaker: Speaker, window: Window, caches: Caches) -> tuple[Tensor, Tensor]:
        """One greedy token (R,) behind each run of a window, and the numbers (R, 6) of its logits."""
        assert caches.counts_S is not None, "there is an encoder"
        slots = int(window.slots_R.max()) + 1
        into = self._room_for(slots, 1, caches.past_KSHLP, caches.counts_S)
        ones_S = torch.ones(slots, dtype=torch.int64)
        flat, out = window_struct(window), drafted_into(into[0], into[1], into[2], into[3])
        about, stored, ends = self._about(speaker, caches)
        if not self._guess(*about, ctypes.byref(flat), *ends, ones_S.data_ptr(), 1, None, *stored, ctypes.byref(out)):
            raise MemoryError(NO_ROOM)
        return into[0][window.slots_R, 0], into[1][window.slots_R, 0]

    def catch_up(
        self,
        speaker: Speaker,
        tokens_BL: Tensor,
        lengths_B: Tensor,
        held_B: Tensor,
        room_B: Tensor,
        count: int,
        rule: PackedRule | None,
        caches: Caches,
    ) -> Drafted:
        """Greedy tokens behind slots 0..B-1, at most `room_B` of each and `count` of all, as far as the rule lets each.

        The cache knows `held_B` (B,) tokens of rows, and all afterwards where there is room.
        """
        rows = len(lengths_B)
        assert caches.counts_S is not None, "there is an encoder"
        into = self._room_for(rows, count, caches.past_KSHLP, caches.counts_S)
        out = drafted_into(*into)
        about, stored, ends = self._about(speaker, caches)
        tokens, lengths = (tokens_BL.data_ptr(), tokens_BL.stride(0)), (lengths_B.data_ptr(), lengths_B.stride(0))
        missing: int = self._catch_up(
            *(*about, *tokens, *lengths, held_B.data_ptr(), rows, *ends, room_B.data_ptr(), count),
            *(None if rule is None else rule.address, *stored, ctypes.byref(out)),
        )
        if not missing and bool((room_B > 0).any()):
            raise MemoryError(NO_ROOM)
        return Drafted(*into, missing)

    @staticmethod
    def _room_for(rows: int, count: int, real: Tensor, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, numbers, and how many are made and sent, of rows that draft nothing."""
        made_2B = whole.new_zeros(2, rows)
        numbers_BK6 = real.new_full((rows, count, LogitNumbers.width()), float("nan"))
        return whole.new_zeros(rows, count), numbers_BK6, made_2B[0], made_2B[1]

    @staticmethod
    def _about(speaker: Speaker, caches: Caches) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, int]]:
        """A model, what is stored, and the ends of sequence."""
        decoder, head, ids_S, eos_ids = speaker
        assert caches.source is not None, "there is an encoder"
        stored = caches.past, caches.source
        about = decoder.address, head.address, None if ids_S is None else ids_S.data_ptr()
        return about, stored, (eos_ids.data_ptr(), len(eos_ids))

    def propose(
        self,
        drafter: PackedDrafter,
        tokens_BL: Tensor,
        lengths_B: Tensor,
        held_B: Tensor,
        count: int,
        seen_SLd: Tensor,
        caches: Caches,
    ) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Greedy tokens (B, count) of one pass, their numbers (B, count, 6), and the predicted acceptance (B, count)
        where there is a head for it; and how many places of a row the cache lacked at most, from `held_B` (B,) on.
        """
        rows, past_KSHLP = len(lengths_B), caches.past_KSHLP
        found, numbers = held_B.new_empty(rows, count), past_KSHLP.new_empty(rows, count, LogitNumbers.width())
        predicted = past_KSHLP.new_empty(rows, count) if drafter.has_judge else None
        seen = places(seen_SLd)
        missing: int = self._propose(
            *(drafter.address, tokens_BL.data_ptr(), tokens_BL.stride(0), lengths_B.data_ptr(), lengths_B.stride(0)),
            *(held_B.data_ptr(), rows, count, ctypes.byref(seen), caches.past, caches.source),
            *(found.data_ptr(), numbers.data_ptr()),
            None if predicted is None else predicted.data_ptr(),
        )
        if not missing:
            raise MemoryError(NO_ROOM)
        return found, numbers, predicted, missing

    def remember(self, hidden_Nd: Tensor, window: Window, seen_SLd: Tensor) -> None:
        """Keep a window's hidden states, each at the place behind its token."""
        hidden_Nd, seen = hidden_Nd.contiguous(), ctypes.byref(places(seen_SLd))
        flat = window_struct(window)
        self._remember(hidden_Nd.data_ptr(), ctypes.byref(flat), hidden_Nd.shape[1], seen)
