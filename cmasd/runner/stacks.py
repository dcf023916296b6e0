"""The encoder and the decoder of a model, as a runner drives them.

BART's kin in few operations of their own, or in one call of C; others as transformers has them.

Shapes: B rows, T window, S source length, L cache length, d model width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from cmasd.kernels import Caches, Drafted, Kernels, PackedRule, Speaker, kernels_for
from cmasd.models.attention import Attend, TensorReading
from cmasd.models.bart import BartDecoder, BartEncoder
from cmasd.models.families import Head
from cmasd.models.masks import Branches, CausalMask, source_mask
from cmasd.runner.base import Guesser, Pass
from cmasd.runner.cache import SlotCache, SourceCache
from cmasd.window import Window


@dataclass(frozen=True)
class TensorWriting:
    """Into the cache, whose open window `reading` sees."""

    cache: SlotCache
    reading: TensorReading

    def __call__(self, layer: int, projected_N3d: Tensor) -> Tensor:
        """See `Attend`."""
        width = projected_N3d.shape[1] // 3
        self.cache.write(layer, projected_N3d[:, width:])
        return self.reading(layer, projected_N3d[:, :width])


class Stack(Protocol):
    """The encoder and the decoder of a model, as a runner drives them."""

    encoder: Any
    """Remembers its latest batch."""

    def encode(self, sources: list[list[int]], ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Encoder states (B, S, d) of sources, padded to `ids_BS`."""

    def store(self, slots_B: Tensor, encoded_BSd: Tensor, lengths_B: Tensor) -> None:
        """Keep every layer's cross-attention keys and values of new rows in these slots."""

    def borrow(self, sources: SourceCache) -> None:
        """Read those of another model, which stores them."""

    def run(self, window: Window) -> Tensor | None:
        """Last hidden states (N, d); None where this kind wants a rectangle."""

    def hidden(self, given: Pass, positions_BT: Tensor, branches: Branches | None) -> Tensor:
        """Last hidden states (B, T, d) of a rectangle that is open in the cache."""


@dataclass(frozen=True)
class NativeGuesser:
    """See `Guesser`."""

    kernels: Kernels
    speaker: Speaker
    caches: Caches

    def catch_up(
        self,
        tokens_BL: Tensor,
        lengths_B: Tensor,
        held_B: Tensor,
        room_B: Tensor,
        count: int,
        rule: PackedRule | None,
    ) -> Drafted:
        """See `Guesser.catch_up`."""
        return self.kernels.catch_up(self.speaker, tokens_BL, lengths_B, held_B, room_B, count, rule, self.caches)

    def __call__(self, window: Window) -> tuple[Tensor, Tensor]:
        """See `Guesser`."""
        return self.kernels.guess(self.speaker, window, self.caches)


class BartStack:
    """BART and its kin, and Whisper, in their own few operations."""

    def __init__(
        self, encoder: BartEncoder, decoder: BartDecoder, cache: SlotCache, sources: SourceCache, causal: CausalMask
    ) -> None:
        self.encoder = encoder
        self._decoder = decoder
        self._cache = cache
        self._sources = sources
        self._causal = causal
        self._kernels = None if cache.is_bucketed else kernels_for(causal.visible)
        self._packed = decoder.packed()
        if self._kernels is not None and self._packed is not None:
            sources.move_by_name()

    def share_weights(self, other: "BartStack") -> None:
        """See `_SlotRunner.share_weights`."""
        self._decoder.share_weights(other._decoder)
        self._packed = self._decoder.packed()

    def encode(self, sources: list[list[int]], ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """See `Stack.encode`."""
        return self.encoder(sources, ids_BS, lengths_B)

    def store(self, slots_B: Tensor, encoded_BSd: Tensor, lengths_B: Tensor) -> None:
        """See `Stack.store`."""
        if self._kernels is not None and self._packed is not None:
            window = Window.prefixes(slots_B.new_zeros(encoded_BSd.shape[:2]), lengths_B, slots_B)
            sources = self._sources.buffer_KSHLP, self._sources.where_S
            self._kernels.fill(self._packed, window, window.flat(encoded_BSd), *sources)
            self._sources.note(slots_B, lengths_B)
        else:
            self._sources.store(slots_B, lengths_B, self._decoder.pairs(encoded_BSd))

    def borrow(self, sources: SourceCache) -> None:
        """See `Stack.borrow`; before anything was read."""
        self._sources = sources

    def run(self, window: Window) -> Tensor | None:
        """See `Stack.run`."""
        if self._kernels is None or self._packed is None:
            return None
        return self._kernels.decode(self._packed, window, self._caches)

    def hidden(self, given: Pass, positions_BT: Tensor, branches: Branches | None) -> Tensor:
        """See `Stack.hidden`."""
        return self._decoder(given.tokens_BT, positions_BT, *self._attention(given, positions_BT, branches))

    def guesser(self, head: Head, ids_S: Tensor | None, eos_ids: Tensor) -> Guesser | None:
        """See `Runner.guesser`."""
        kernels, decoder, last = self._kernels, self._packed, head.packed
        if kernels is None or decoder is None or last is None:
            return None
        return NativeGuesser(kernels, Speaker(decoder, last, ids_S, eos_ids), self._caches)

    @property
    def is_whole(self) -> bool:
        """Whether encoder and decoder run in the kernels; of sounds the encoder does not."""
        encodes = isinstance(self.encoder, BartEncoder) and self.encoder.is_packed
        return encodes and self._kernels is not None and self._packed is not None

    @cached_property
    def _caches(self) -> Caches:
        sources = self._sources
        return Caches(self._cache.buffer_KSHLP, sources.buffer_KSHLP, sources.counts_S, sources.where_S)

    def _attention(self, given: Pass, positions_BT: Tensor, branches: Branches | None) -> tuple[Attend, Attend]:
        cache, sources, extent = self._cache, self._sources, given.extent
        assert cache.view is not None, "a window is open"
        heads, mask = self._decoder.heads, self._causal.window(positions_BT, extent.length, None, branches)
        view, source_mask = sources.open(extent.rows, extent.sources, given.slots_B)
        return (
            TensorWriting(cache, TensorReading.of(cache.view.product, mask, heads)),
            TensorReading.of(view.product, source_mask, heads),
        )


class StockEncoder:
    """An encoder of transformers, which remembers its latest batch for a drafter that shares it."""

    def __init__(self, encoder: Any, dtype: torch.dtype, origin: object) -> None:
        """`origin`: the module that it was made of."""
        self.origin = origin
        self._encoder, self._dtype = encoder, dtype
        self._latest: tuple[list[list[int]], Tensor] | None = None

    def __call__(self, sources: list[list[int]], ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, S, d) states of `sources`, padded to `ids_BS`."""
        if self._latest is None or self._latest[0] != sources:
            self._latest = (sources, encode(self._encoder, ids_BS, lengths_B, self._dtype))
        return self._latest[1]


class StockStack:
    """The modules of transformers as they are."""

    def __init__(
        self, model: PreTrainedModel, cache: SlotCache, sources: SourceCache, causal: CausalMask, origin: object
    ) -> None:
        """`origin`: the encoder of the model that this one was made of."""
        self.encoder = StockEncoder(model.get_encoder(), model.dtype, origin)
        self._decoder: Any = model.get_decoder()
        # Cross-attention reads the stored keys; the decoder only asks whether there are encoder states at all.
        self._encoded = torch.zeros((1, 1, 1), dtype=model.dtype, device=model.device)
        self._sources = sources
        self._causal = causal
        self._layers = [DynamicLayer() for _ in range(cache.layer_count)]
        self._both = EncoderDecoderCache(cache, Cache(layers=list(self._layers)))
        self._both.is_updated = dict.fromkeys(range(cache.layer_count), True)

    def encode(self, sources: list[list[int]], ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """See `Stack.encode`."""
        return self.encoder(sources, ids_BS, lengths_B)

    def store(self, slots_B: Tensor, encoded_BSd: Tensor, lengths_B: Tensor) -> None:
        """See `Stack.store`."""
        computed: Any = first_caches(self._decoder, encoded_BSd, lengths_B).cross_attention_cache
        self._sources.store(slots_B, lengths_B, [(layer.keys, layer.values) for layer in computed.layers])

    def borrow(self, sources: SourceCache) -> None:
        """See `Stack.borrow`."""
        self._sources = sources

    def run(self, window: Window) -> Tensor | None:
        """See `Stack.run`."""
        return None

    def hidden(self, given: Pass, positions_BT: Tensor, branches: Branches | None) -> Tensor:
        """See `Stack.hidden`."""
        extent = given.extent
        sources, source_mask = self._sources.open(extent.rows, extent.sources, given.slots_B)
        for index, layer in enumerate(self._layers):
            layer.keys, layer.values = sources.pair(index)
        output = self._decoder(
            input_ids=given.tokens_BT,
            attention_mask=self._causal.window(positions_BT, extent.length, None, branches),
            encoder_hidden_states=self._encoded,
            encoder_attention_mask=source_mask,
            past_key_values=self._both,
            use_cache=True,
        )
        return cast(Tensor, output.last_hidden_state)


def encode(encoder: Any, ids_BS: Tensor, lengths_B: Tensor, dtype: torch.dtype) -> Tensor:
    """Encoder states (B, S, d) of sources padded to `ids_BS`, by a module of transformers."""
    mask = source_mask(lengths_B, ids_BS.shape[1], dtype)
    return cast(Tensor, encoder(input_ids=ids_BS, attention_mask=mask).last_hidden_state)


def first_caches(decoder: Any, encoded_BSd: Tensor, lengths_B: Tensor) -> EncoderDecoderCache:
    """Run a decoder of transformers over one position, which computes every layer's cross-attention cache.

    That token's id does not matter: cross-attention keys depend on the source alone.
    """
    rows, length, _ = encoded_BSd.shape
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoder(
        input_ids=lengths_B.new_zeros(rows, 1),
        attention_mask=encoded_BSd.new_zeros(rows, 1, 1, 1),
        encoder_hidden_states=encoded_BSd,
        encoder_attention_mask=source_mask(lengths_B, length, encoded_BSd.dtype),
        past_key_values=both,
        use_cache=True,
    )
    return both
