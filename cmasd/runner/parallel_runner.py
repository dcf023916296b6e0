"""A parallel drafter over the slots of its verifier: what it knows of each row, and one pass over it.

    place            0      1    ...   c = length - 1    c + 1 ...
    token            start  x1         latest            to be drafted
    hidden state     -      h0         h(c-1)            said the token; of the verifier
    keys and values  of both, fused, in a cache of its own

Hidden states are kept as they come; keys and values are made of them when the row is drafted for, so that iterations
without a draft cost a copy alone. Rolling back is not to count what a rejected token left behind.

Shapes: B rows, T window, M places to catch up on, L token buffer, d width, H heads, D head width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.config.tree import KEPT_PLACES
from cmasd.core import Sound
from cmasd.kernels import Caches, give_back, kernels_for
from cmasd.models.attention import Attend, NativeReading, TensorReading
from cmasd.models.masks import CausalMask
from cmasd.models.parallel_kernel import packed_drafter
from cmasd.models.parallel_network import ParallelModel, States
from cmasd.runner.base import Extent, Runner
from cmasd.runner.cache import Geometry, SlotCache, SourceCache
from cmasd.runner.graphs import GraphsMode, uses_graphs
from cmasd.runner.runners import padded
from cmasd.runner.stacks import encode


class ParallelRunner:
    """Slots follow the verifier's: prefilled, moved, and told of each window after the verifier has run it."""

    def __init__(
        self, model: ParallelModel, verifier: Runner, graphs: GraphsMode = "off", ids_S: Tensor | None = None
    ) -> None:
        """Allocates as many slots as the verifier has; `ids_S` are the tokens that are drafted, None for all."""
        shape, slots, length, device = model.shape, verifier.slots, verifier.max_length, verifier.device
        geometry = Geometry(shape.layers, shape.heads, shape.head_width, verifier.dtype, device)
        self.model = model
        self.verifier = verifier
        verifier.wants_states = True
        self._cache = SlotCache(geometry, slots, length)
        self._sources = SourceCache(geometry, slots, verifier.max_source_length) if shape.has_source else None
        self._causal = CausalMask.build(length, verifier.dtype, device)
        self._kernels = None if uses_graphs(graphs, device) else kernels_for(self._causal.visible)
        self._packed = None if self._kernels is None else packed_drafter(model, ids_S)
        self._seen_SLd = geometry.zeros(slots, length + 1, shape.width)
        self._seen_SLd[:, 0] = model.start_d
        self._first_line_S1 = torch.arange(slots, device=device)[:, None] * (length + 1)
        self._steps_L = torch.arange(length + 1, device=device)
        self._stored_S = torch.zeros(slots, dtype=torch.int64, device=device)
        self._written_S = np.zeros(slots, dtype=np.int64)

    @property
    def is_one_call(self) -> bool:
        """Whether there is a kernel for a whole pass."""
        return self._packed is not None

    @torch.no_grad()
    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """Right after the verifier's own prefill of the same rows."""
        slots_B, device = torch.tensor(slots, device=self.verifier.device), self.verifier.device
        run_B = torch.zeros_like(slots_B)
        if self._sources is not None:
            if isinstance(sources[0], Sound):
                ids_BS = lengths_B = torch.full_like(slots_B, self.verifier.max_source_length)
            else:
                ids_BS, lengths_B = padded(sources, 0, device)
            encoded_BSd = self.verifier.encoded_BSd
            if self.model.encoder is not None:
                encoded_BSd = encode(self.model.encoder, ids_BS, lengths_B, self.verifier.dtype)
            assert encoded_BSd is not None, "the verifier has an encoder, and was prefilled"
            self._sources.store(slots_B, lengths_B, self.model.forward.source_pairs(encoded_BSd))
        elif self.verifier.hidden_BTd is not None:
            tokens_BT, run_B = padded([source[:-1] for source in sources], 0, device)
            self._read_prompts(slots_B, tokens_BT, self.verifier.hidden_BTd)
        self._stored_S[slots_B] = run_B
        for slot, source in zip(slots, sources, strict=True):
            self._written_S[slot] = 0 if self._sources is not None else len(source)

    def _read_prompts(self, slots_B: Tensor, tokens_BT: Tensor, hidden_BTd: Tensor) -> None:
        """Every place of the prompts but the last, whose token is the first to be fed."""
        length = tokens_BT.shape[1]
        self._seen_SLd[slots_B, 1 : length + 1] = hidden_BTd
        places_BT = self._steps_L[:length].expand(len(slots_B), -1)
        features_BTd = self.model.features(self._seen_SLd[slots_B, :length], tokens_BT, places_BT)
        self._cache.open_prompt(slots_B, self._steps_L[None, :length])
        self._store(features_BTd)

    def rewind(self, run_B: Tensor, places: int) -> None:
        """As if slots 0..B-1 had run `run_B` (B,) tokens and the last `places` of them were new: to measure costs."""
        self._stored_S[: len(run_B)] = (run_B + 1 - places).clamp_min(0)

    def reserve(self, extent: Extent) -> None:
        """The host's part of an iteration of this extent."""
        self._cache.extend(slice(extent.rows), extent.length)
        np.maximum(self._written_S[: extent.rows], extent.length, out=self._written_S[: extent.rows])

    def follow(self, lengths_B: Tensor) -> None:
        """The verifier has run a window over slots 0..B-1, of whose tokens `lengths_B` (B,) were known before."""
        if self.verifier.ran is None:
            self._follow_rectangle(lengths_B)
            return
        window, hidden_Nd = self.verifier.ran
        slots_R, starts_R, firsts_R1 = (
            part.cpu().numpy() for part in (window.slots_R, window.starts_R, window.firsts_R1)
        )
        np.maximum.at(self._written_S, slots_R, starts_R + np.diff(firsts_R1))
        if self._kernels is not None:
            self._kernels.remember(hidden_Nd, window, self._seen_SLd)
            return
        lines_N = self._first_line_S1[window.slots_N, 0] + window.places_N + 1
        self._seen_SLd.view(-1, hidden_Nd.shape[1]).index_copy_(0, lines_N, hidden_Nd)

    def _follow_rectangle(self, lengths_B: Tensor) -> None:
        """What was run is of a shape decided beforehand."""
        hidden_BTd = self.verifier.hidden_BTd
        assert hidden_BTd is not None, "a window was run"
        rows, window, width = hidden_BTd.shape
        self._written_S[:rows] += window
        lines_BT = self._first_line_S1[:rows] + lengths_B[:, None] + self._steps_L[:window]
        self._seen_SLd.view(-1, width).index_copy_(0, lines_BT.view(-1), hidden_BTd.reshape(-1, width))

    @torch.no_grad()
    def forward(
        self, tokens_BL: Tensor, lengths_B: Tensor, queries: int, extent: Extent | None = None
    ) -> tuple[States, int]:
        """One pass for slots 0..B-1, of whose tokens `lengths_B` (B,) are known; also the most places caught up on.

        With an `extent` nothing waits; its window is as many places as there can be to catch up on.
        """
        rows = len(lengths_B)
        stored_B, last_B1 = self._stored_S[:rows], lengths_B[:, None] - 1
        if extent is None:
            most, longest = torch.stack([(lengths_B - stored_B).amax(), lengths_B.amax()]).tolist()
            sources = 0 if self._sources is None else self._sources.longest(slice(rows))
            extent = Extent(rows, max(most, 1), self._cache.extend(slice(rows), longest), sources)
        places_BM = (stored_B[:, None] + self._steps_L[: extent.window]).minimum(last_B1)
        seen_BMd = F.embedding(self._first_line_S1[:rows] + places_BM, self._seen_SLd.flatten(0, 1))
        features_BMd = self.model.features(seen_BMd, tokens_BL.gather(1, places_BM), places_BM)
        self._cache.open_window(places_BM, stored_B[:, None], extent.length)
        self._store(features_BMd)
        stored_B.copy_(lengths_B)
        history, source = self._history(lengths_B, extent.length), self._source(extent)
        return self.model(features_BMd[:, -1], queries, history, source), extent.window

    def propose(self, tokens_BL: Tensor, lengths_B: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """The same in one call, where `is_one_call`: greedy tokens (B, count), their statistics (B, count, 6) and
        predicted acceptance (B, count), and the most places caught up on.
        """
        assert self._kernels is not None, "there are kernels"
        assert self._packed is not None, "and they know all that is to be done"
        self._cache.extend(slice(len(lengths_B)), max(lengths_B.tolist()))
        sources = self._sources
        source = (None, None) if sources is None else (sources.buffer_KSHLP, sources.counts_S)
        caches = Caches(self._cache.buffer_KSHLP, *source)
        return self._kernels.propose(self._packed, tokens_BL, lengths_B, self._stored_S, count, self._seen_SLd, caches)

    def _store(self, features_BMd: Tensor) -> None:
        """Keys and values of places, where the cache is open."""
        features_Nd = features_BMd.flatten(0, 1)
        for i, layer in enumerate(self.model.forward.layers):
            self._cache.write(i, layer.history.store(features_Nd))

    def _history(self, lengths_B: Tensor, read: int) -> Attend:
        if self._kernels is not None:
            return NativeReading(self._kernels, self._cache.layers_SHLP, len(lengths_B), lengths_B.contiguous())
        assert self._cache.view is not None, "a window is open"
        mask = self._causal.window(lengths_B[:, None] - 1, read, span=None)
        return TensorReading.of(self._cache.view.product, mask, self.model.shape.heads)

    def _source(self, extent: Extent) -> Attend | None:
        sources = self._sources
        if sources is None:
            return None
        if self._kernels is not None:
            return NativeReading(self._kernels, sources.layers_SHLP, extent.rows, sources.counts_S)
        view, mask = sources.open(extent.rows, extent.sources)
        return TensorReading.of(view.product, mask, self.model.shape.heads)

    def move(self, source: int, target: int) -> None:
        """All that is known of a row is in another slot from now on."""
        self.leave([target])
        self._cache.move(source, target)
        if self._sources is not None:
            self._sources.move(source, target)
        written = self._written_S[target] = self._written_S[source]
        self._seen_SLd[target, : written + 1] = self._seen_SLd[source, : written + 1]
        self._stored_S[target] = self._stored_S[source]
        self.leave([source])

    def leave(self, slots: list[int]) -> None:
        """See `Runner.leave`."""
        self._cache.leave(slots)
        if self._sources is not None:
            self._sources.leave(slots)
        for slot in slots:
            give_back(self._seen_SLd[slot, KEPT_PLACES : self._written_S[slot] + 1])
