"""What runners share, and the one of encoder-decoder models (`decoder_only.py` has the other), over a slot cache.

A window runs as it is where the kernels know the model, in one call; else as a rectangle: positions and mask from the
starts, one call of the model's own decoder. Its own output layer follows. The host reads the starts, unless the caller
gives the extent; `_hidden` reads nothing, and can be captured.

Shapes: B rows, T window, V vocabulary, S source length, d model width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cmasd.core import Sound
from cmasd.kernels import Bits
from cmasd.models.bart import BartDecoder, BartEncoder
from cmasd.models.families import Family, Words, output_head, output_layer
from cmasd.models.masks import Branches, CausalMask
from cmasd.models.sound_encoder import SoundEncoder
from cmasd.runner.base import Extent, Guesser, Pass
from cmasd.runner.cache import Geometry, SlotCache, SourceCache
from cmasd.runner.graphs import Graphs, GraphsMode, uses_graphs
from cmasd.runner.stacks import BartStack, Stack, StockStack
from cmasd.window import Window


def padded(rows: list[list[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-pad rows of ids to (B, longest); also their lengths (B,)."""
    longest = max(map(len, rows))
    ids = [row + [filler] * (longest - len(row)) for row in rows]
    return uploaded(ids, device), uploaded([len(row) for row in rows], device)


LONG_SOURCE = 256
"""Places of a source from which on a rounded decoder reads halves of them: of Whisper's 1,500 the keys and values are
more bytes than all of its weights in 8 bits."""


def uploaded(numbers: list[int] | list[list[int]], device: torch.device) -> Tensor:
    """A tensor of integers on the device, which is not waited for."""
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class _SlotRunner:
    """What both kinds share."""

    is_encoder_decoder: bool

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        geometry: Geometry,
        slots: int,
        max_length: int,
        max_source_length: int,
        words: Words,
        bits: Bits,
        graphs: GraphsMode,
        origin: PreTrainedModel,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        """`origin`: the model of which `model` is the packed form, or the same. `cache_dtype`: None: the model's."""
        config: Any = model.config
        self._origin = origin
        self.slots = slots
        self.max_length = max_length
        self.max_source_length = max_source_length
        self.max_positions: int | None = getattr(config, family.positions_key) if family.positions_key else None
        self.vocabulary_size: int = output_layer(model).weight.shape[0]
        self.device = geometry.device
        self.dtype = geometry.dtype
        self._head = output_head(model, words, bits)
        self.shortlist = words.tensor(geometry.device)
        bucketed = uses_graphs(graphs, geometry.device)
        kept = replace(geometry, dtype=cache_dtype or geometry.dtype)
        self._cache = SlotCache(kept, slots, max_length, spare=bucketed)
        self._causal = CausalMask.build(max_length, geometry.dtype, geometry.device)
        self._steps_L = torch.arange(max_length, device=geometry.device)
        self.wants_all = bucketed
        self.wants_states = False
        self.ran: tuple[Window, Tensor] | None = None
        self.hidden_BTd: Tensor | None = None
        self.encoded_BSd: Tensor | None = None
        most = Extent(slots, max_length, max_length, max_source_length)
        self.graphs = Graphs(self._hidden, most, geometry.device, insist=graphs == "on") if bucketed else None
        """Replays forwards of a shape that recurs; None where forwards run one by one."""
        self._take(model, family, geometry, bits)
        self.rows_alone = self._head.packed is not None and self._is_whole()

    def _is_whole(self) -> bool:
        """Whether all layers run in the kernels, which sum each row alone."""
        return False

    def _take(self, model: PreTrainedModel, family: Family, geometry: Geometry, bits: Bits) -> None:
        """What this kind of runner needs of the model."""
        raise NotImplementedError

    def share_weights(self, other: "_SlotRunner") -> None:
        """Use what `other` made of its model's weights; this model is the beginning of that one (`early_exit`)."""
        self._head = other._head

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Runner.logits`."""
        return self._head(hidden)

    @torch.no_grad()
    def output_rows(self, columns: Tensor) -> Tensor:
        """See `Runner.output_rows`."""
        return self._head.rows(columns)

    @torch.no_grad()
    def run(self, window: Window, asked_Q: Tensor | None = None) -> Tensor:
        """See `Runner.run`."""
        slots = None if window.covers_first else window.slots_R.tolist()
        longest_start = max(window.starts_R.tolist())
        if longest_start + window.longest > self.max_length and not window.is_rectangle:
            # A short run may begin where the longest would not fit any more: its padding lands in the last place.
            longest_start = max((window.starts_R + window.firsts_R1.diff()).tolist()) - window.longest
        extent = self.extent(len(window.slots_R), window.longest, longest_start, slots)
        hidden_Nd = self._flat(window)
        if hidden_Nd is None:
            hidden_Nd = window.flat(self._rectangle(window, extent))
        self.ran = window, hidden_Nd
        return self._head(hidden_Nd if asked_Q is None else hidden_Nd[asked_Q])

    def _rectangle(self, window: Window, extent: Extent) -> Tensor:
        """(R, T, d): what a run's padding writes behind its end is overwritten before it can be seen."""
        tokens_RT, starts_R = window.padded(window.tokens_N), window.starts_R.to(self.device)
        if window.parents_N is not None:
            return self._hidden(Pass(tokens_RT, starts_R, extent, slots_B=window.slots_R, window=window))
        if not window.covers_first:
            return self._hidden(Pass(tokens_RT, starts_R, extent, slots_B=window.slots_R))
        return (self.graphs or self._hidden)(Pass(tokens_RT, starts_R, extent))

    def _flat(self, window: Window) -> Tensor | None:
        """(N, d) where this kind runs windows as they are, else None."""
        return None

    @torch.no_grad()
    def forward(
        self, tokens_BT: Tensor, starts_B: Tensor, only_B: Tensor | None = None, extent: Extent | None = None
    ) -> Tensor:
        """See `Runner.forward`."""
        if extent is None:
            rows, length = tokens_BT.shape
            window = Window.rectangle(tokens_BT, starts_B)
            asked = None if only_B is None else window.firsts_R1[:-1] + only_B
            logits_QV = self.run(window, asked)
            self.hidden_BTd = None if self.ran is None else self.ran[1].view(rows, length, -1)
            return logits_QV.view(rows, -1, logits_QV.shape[1])
        hidden_BTd = self._hidden(Pass(tokens_BT, starts_B, extent._replace(window=tokens_BT.shape[1])))
        self.ran, self.hidden_BTd = None, hidden_BTd
        if only_B is not None:
            hidden_BTd = hidden_BTd.take_along_dim(only_B[:, None, None], dim=1)
        return self._head(hidden_BTd)

    def extent(self, rows: int, window: int, longest: int, slots: list[int] | None = None) -> Extent:
        """See `Runner.extent`."""
        length, owners = longest + window, slots or slice(0, rows)
        assert rows <= self.slots, f"{rows} rows in {self.slots} slots"
        assert length <= self.max_length, f"a window ends at {length} of {self.max_length} positions"
        return Extent(rows, window, self._cache.extend(owners, length), self._longest_source(owners))

    def guesser(self, eos_ids: Tensor) -> Guesser | None:
        """See `Runner.guesser`."""
        return None

    @torch.no_grad()
    def settle(self, chosen_M: Tensor, counts_R: Tensor) -> None:
        """See `Runner.settle`."""
        assert self.ran is not None, "a window was run"
        window, hidden_Nd = self.ran
        path = window.along(chosen_M, counts_R)
        self.ran = path, hidden_Nd[chosen_M]
        from_M, to_M = window.places_N[chosen_M], path.places_N
        moved = (from_M != to_M).nonzero().squeeze(1)
        if len(moved):
            self.carry(path.slots_N[moved], from_M[moved], to_M[moved])

    @torch.no_grad()
    def carry(self, slots_M: Tensor, from_M: Tensor, to_M: Tensor) -> None:
        """See `Runner.carry`."""
        self._cache.carry(slots_M, from_M, to_M)

    def made_up(self, length: int) -> list[int]:
        """See `Runner.made_up`."""
        return [0] * length

    def move(self, source: int, target: int) -> None:
        """See `Runner.move`."""
        self._cache.move(source, target)

    def leave(self, slots: list[int]) -> None:
        """See `Runner.leave`."""
        self._cache.leave(slots)

    def _longest_source(self, slots: slice | list[int]) -> int:
        """Source tokens to read; 0 without an encoder."""
        return 0

    def _hidden(self, given: Pass) -> Tensor:
        """The device's part: (B, T, d)."""
        raise NotImplementedError

    def _open_window(self, given: Pass) -> tuple[Tensor, Branches | None]:
        """Point the cache at this window; return its positions (B, T), and how its tokens see each other in trees."""
        starts_B1, window, length = given.starts_B[:, None], given.window, given.extent.length
        places_BT = (starts_B1 + self._steps_L[: given.extent.window]).clamp_max(self.max_length - 1)
        if window is None:
            self._cache.open_window(places_BT, starts_B1, length, given.live, given.slots_B)
            return places_BT, None
        positions_BT = starts_B1 + window.padded(window.depths_N)
        self._cache.open_window(positions_BT, starts_B1, length, given.live, given.slots_B, places_BT)
        return positions_BT, Branches(places_BT, window.sees_RTT)


class EncoderDecoderRunner(_SlotRunner):
    """Sources are encoded once per row; the decoder starts empty."""

    is_encoder_decoder = True

    def _take(self, model: PreTrainedModel, family: Family, geometry: Geometry, bits: Bits) -> None:
        self._sources = SourceCache(geometry, self.slots, self.max_source_length)
        self._lender: SourceCache | None = None
        """Of another runner, which was prefilled before: these sources are its own, or the halves of them."""
        self._stack: Stack
        if family.is_bart:
            kind = SoundEncoder if family.hears else BartEncoder
            encoder = kind(model.get_encoder(), self.max_source_length, bits)
            decoder = BartDecoder(model.get_decoder(), self.max_length, bits)
            self._stack = BartStack(encoder, decoder, self._cache, self._sources, self._causal)
        else:
            self._stack = StockStack(model, self._cache, self._sources, self._causal, self._origin.get_encoder())

    @torch.no_grad()
    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """See `Runner.prefill`."""
        self.ran = self.hidden_BTd = None
        if self._lender is not None:
            if self._sources is not self._lender:
                self._sources.take(self._lender, slots)
            return
        if isinstance(sources[0], Sound):  # silence is encoded like any sound
            ids_BS = lengths_B = uploaded([self.max_source_length] * len(sources), self.device)
        else:
            assert all(0 < len(source) <= self.max_source_length for source in sources), "a source is empty or too long"
            ids_BS, lengths_B = padded(sources, 0, self.device)
        self.encoded_BSd = self._stack.encode(sources, ids_BS, lengths_B)
        self._stack.store(torch.tensor(slots, device=self.device), self.encoded_BSd, lengths_B)

    def _is_whole(self) -> bool:
        return isinstance(self._stack, BartStack) and self._stack.is_whole

    def _longest_source(self, slots: slice | list[int]) -> int:
        return self._sources.longest(slots)

    def _flat(self, window: Window) -> Tensor | None:
        return self._stack.run(window)

    def _hidden(self, given: Pass) -> Tensor:
        return self._stack.hidden(given, *self._open_window(given))

    def made_up(self, length: int) -> list[int]:
        """See `Runner.made_up`."""
        encoder = self._stack.encoder
        return encoder.silence() if isinstance(encoder, SoundEncoder) else super().made_up(length)

    def move(self, source: int, target: int) -> None:
        """See `Runner.move`."""
        super().move(source, target)
        if self._lender is None:
            self._sources.move(source, target)

    def leave(self, slots: list[int]) -> None:
        """See `Runner.leave`."""
        super().leave(slots)
        if self._lender is None:
            self._sources.leave(slots)

    def guesser(self, eos_ids: Tensor) -> Guesser | None:
        """See `Runner.guesser`."""
        return self._stack.guesser(self._head, self.shortlist, eos_ids) if isinstance(self._stack, BartStack) else None

    def share_weights(self, other: _SlotRunner) -> None:
        """See `_SlotRunner.share_weights`."""
        super().share_weights(other)
        assert isinstance(other, EncoderDecoderRunner), "a model and its beginning are of one kind"
        if isinstance(self._stack, BartStack) and isinstance(other._stack, BartStack):
            self._stack.share_weights(other._stack)

    def share_sources(self, other: "EncoderDecoderRunner", may_round: bool) -> None:
        """Read what `other` keeps of sources, whose decoder begins with the layers of this one, rounded or not.

        Of long ones, where that may be, the halves: reading them takes longer then than reading rounded weights.
        """
        if not self._sources.is_like(other._sources):
            return
        self._sources = self._lender = other._sources
        is_long = self.max_source_length >= LONG_SOURCE
        if may_round and is_long and self.dtype == torch.float32 and self._sources.where_S is not None:
            self._sources = self._lender.in_halves()
        self._stack.borrow(self._sources)

    def share_encoder(self, other: "EncoderDecoderRunner") -> bool:
        """Use the encoder of `other` where it has the same weights, so that a batch is encoded once for both."""
        mine, theirs = self._stack, other._stack
        if isinstance(mine, StockStack) and isinstance(theirs, StockStack):
            if mine.encoder.origin is not theirs.encoder.origin:
                return False
            mine.encoder = theirs.encoder
            return True
        if not (isinstance(mine, BartStack) and isinstance(theirs, BartStack) and mine.encoder.equals(theirs.encoder)):
            return False
        mine.encoder = theirs.encoder
        if isinstance(mine.encoder, SoundEncoder):
            mine.encoder.kept = other.slots
        return True
