"""The two runners: encoder-decoder and decoder-only, over the same slot cache.

One forward is: positions and mask from the starts, one call of the model's own decoder, its own output layer. The host
reads one number, the longest start. Hidden states end at `_hidden`, so that a later method can hand them out.

Shapes: B rows, T window, V vocabulary, S source length, d model width.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cmasd.runner.cache import Geometry, SlotCache, SourceCache
from cmasd.runner.families import Family, output_head
from cmasd.runner.masks import CausalMask, source_mask


def padded(rows: list[list[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-pad rows of ids to (B, longest); also their lengths (B,)."""
    longest = max(map(len, rows))
    ids = [row + [filler] * (longest - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor([len(row) for row in rows], device=device)


class _SlotRunner:
    """What both kinds share."""

    is_encoder_decoder: bool

    def __init__(self, model: PreTrainedModel, family: Family, geometry: Geometry, slots: int, max_length: int) -> None:
        config: Any = model.config
        self.slots = slots
        self.max_length = max_length
        self.max_positions: int | None = getattr(config, family.positions_key) if family.positions_key else None
        self.max_source_positions = self.max_positions
        self.vocabulary_size: int = cast(Any, model).lm_head.weight.shape[0]
        self.device = geometry.device
        self.dtype = geometry.dtype
        self._filler: int = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
        self._head = output_head(model)
        self._cache = SlotCache(geometry, slots, max_length)
        self._causal = CausalMask.build(max_length, geometry.dtype, geometry.device)
        self._steps_L = torch.arange(max_length, device=geometry.device)

    @torch.no_grad()
    def forward(self, tokens_BT: Tensor, starts_B: Tensor) -> Tensor:
        """See `Runner.forward`."""
        return self._head(self._hidden(tokens_BT, starts_B))

    def _hidden(self, tokens_BT: Tensor, starts_B: Tensor) -> Tensor:
        raise NotImplementedError

    def _open_window(self, tokens_BT: Tensor, starts_B: Tensor) -> tuple[Tensor, int]:
        """Point the cache at this window; return positions (B, T) and the number of keys to read."""
        rows, window = tokens_BT.shape
        read_length = int(starts_B.max()) + window
        assert rows <= self.slots, f"{rows} rows in {self.slots} slots"
        assert read_length <= self.max_length, f"a window ends at {read_length} of {self.max_length} positions"
        starts_B1 = starts_B.to(self.device)[:, None]
        positions_BT = starts_B1 + self._steps_L[:window]
        self._cache.open_window(positions_BT, starts_B1, read_length)
        return positions_BT, read_length


class EncoderDecoderRunner(_SlotRunner):
    """Sources are encoded once per row; the decoder starts empty."""

    is_encoder_decoder = True

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        geometry: Geometry,
        slots: int,
        max_length: int,
        max_source_length: int,
    ) -> None:
        super().__init__(model, family, geometry, slots, max_length)
        self.max_source_length = max_source_length
        self._encoder: Any = model.get_encoder()
        self._decoder: Any = model.get_decoder()
        self._sources = SourceCache(geometry, slots, max_source_length)
        self._both = EncoderDecoderCache(self._cache, self._sources.cache)
        self._both.is_updated = dict.fromkeys(range(geometry.layers), True)
        # Cross-attention reads the stored keys; the decoder only asks whether there are encoder states at all.
        self._encoded = torch.zeros((1, 1, 1), dtype=geometry.dtype, device=geometry.device)

    @torch.no_grad()
    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """See `Runner.prefill`."""
        assert all(0 < len(source) <= self.max_source_length for source in sources), "a source is empty or too long"
        ids_BS, lengths_B = padded(sources, self._filler, self.device)
        computed = encode(self._encoder, self._decoder, ids_BS, lengths_B, self.dtype)
        self._sources.store(torch.tensor(slots, device=self.device), lengths_B, computed.cross_attention_cache)

    def _hidden(self, tokens_BT: Tensor, starts_B: Tensor) -> Tensor:
        positions_BT, read_length = self._open_window(tokens_BT, starts_B)
        output = self._decoder(
            input_ids=tokens_BT,
            attention_mask=self._causal.window(positions_BT, read_length, span=None),
            encoder_hidden_states=self._encoded,
            encoder_attention_mask=self._sources.open(tokens_BT.shape[0]),
            past_key_values=self._both,
            use_cache=True,
        )
        return cast(Tensor, output.last_hidden_state)

    def move(self, source: int, target: int) -> None:
        """See `Runner.move`."""
        self._cache.move(source, target)
        self._sources.move(source, target)


def encode(encoder: Any, decoder: Any, ids_BS: Tensor, lengths_B: Tensor, dtype: torch.dtype) -> EncoderDecoderCache:
    """Encode sources and run the decoder over one position, which computes every layer's cross-attention cache.

    That token's id does not matter: cross-attention keys depend on the source alone.
    """
    mask = source_mask(lengths_B, ids_BS.shape[1], dtype)
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoder(
        input_ids=ids_BS[:, :1],
        attention_mask=torch.zeros((ids_BS.shape[0], 1, 1, 1), dtype=dtype, device=ids_BS.device),
        encoder_hidden_states=encoder(input_ids=ids_BS, attention_mask=mask).last_hidden_state,
        encoder_attention_mask=mask,
        past_key_values=both,
        use_cache=True,
    )
    return both


class DecoderOnlyRunner(_SlotRunner):
    """The prompt lies in the same cache as the output."""

    is_encoder_decoder = False

    def __init__(self, model: PreTrainedModel, family: Family, geometry: Geometry, slots: int, max_length: int) -> None:
        super().__init__(model, family, geometry, slots, max_length)
        self.max_source_length = max_length
        self._decoder: Any = model.base_model
        self._spans = family.spans(model.config)
        self._last_position = self.max_positions - 1 if family.has_position_table and self.max_positions else None

    @torch.no_grad()
    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """See `Runner.prefill`. Rows are right-padded; causality hides the padding."""
        assert all(0 < len(source) <= self.max_length for source in sources), "a prompt is empty or too long"
        if max(map(len, sources)) == 1:
            return
        ids_BT, _ = padded([source[:-1] for source in sources], self._filler, self.device)
        length = ids_BT.shape[1]
        positions_1T = self._steps_L[None, :length]
        self._cache.open_prompt(torch.tensor(slots, device=self.device), positions_1T)
        self._decode(ids_BT, positions_1T, length)

    def _hidden(self, tokens_BT: Tensor, starts_B: Tensor) -> Tensor:
        positions_BT, read_length = self._open_window(tokens_BT, starts_B)
        return self._decode(tokens_BT, positions_BT, read_length)

    def _decode(self, tokens_BT: Tensor, positions_BT: Tensor, read_length: int) -> Tensor:
        mask = self._mask(positions_BT, read_length)
        if self._last_position is not None and read_length > self._last_position:
            positions_BT = positions_BT.clamp(max=self._last_position)
        output = self._decoder(
            input_ids=tokens_BT,
            attention_mask=mask,
            position_ids=positions_BT,
            past_key_values=self._cache,
            use_cache=True,
        )
        return cast(Tensor, output.last_hidden_state)

    def _mask(self, positions_BT: Tensor, read_length: int) -> Tensor | dict[str, Tensor]:
        if not isinstance(self._spans, dict):
            return self._causal.window(positions_BT, read_length, self._spans)
        return {kind: self._causal.window(positions_BT, read_length, span) for kind, span in self._spans.items()}

    def move(self, source: int, target: int) -> None:
        """See `Runner.move`."""
        self._cache.move(source, target)
