"""The tensors of all rows: tokens, lengths, counters, traces.

    slots     0 ........ live ...... slots | slots ........ capacity
              live rows  | free            | staged rows: prefilled, waiting

Live rows are always slots 0..live-1, so that every tensor of the hot loop is a view. A row enters
through the staging area, where a batch of rows is prefilled at once, and is moved into a hole when
a live row ends. What a row's buffers hold past its length is scratch.

Shapes: C capacity, L decoder positions, S source, N new tokens.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmasd.core import Draft
from cmasd.drafters import Context
from cmasd.kernels import kernels_for
from cmasd.runner.runners import padded, uploaded
from cmasd.signals import COUNTERS, IterationTrace, RowNumbers, TokenTrace
from cmasd.window import Window

LEAST_STAGED = 8
"""Rows prefilled at once, however few slots there are: encoding one by one is several times slower."""
FIRST_COUNTER = COUNTERS[0].place


class NewRow(NamedTuple):
    """What a row begins with."""

    key: int
    prompt: list[int]
    """Its decoder start."""
    source: list[int]
    """Its encoder input; empty for decoder-only models."""
    limit: int


@dataclass(frozen=True)
class SlotShape:
    """How much the buffers hold."""

    slots: int
    staging: int
    max_prompt: int
    """Decoder tokens a row starts with at most: 1 for encoder-decoder models that read texts."""
    max_new_tokens: int
    max_source: int
    """Encoder tokens; 0 for decoder-only models, and those that hear."""
    window: int
    """Most tokens fed per forward: k_max + 1."""
    heard: int = 0
    """Places of an encoder that takes no tokens but sound, in any row."""

    @property
    def capacity(self) -> int:
        """Slots that every buffer has."""
        return self.slots + self.staging

    @property
    def length(self) -> int:
        """Decoder positions per slot, with room for one window past the limit."""
        return self.max_prompt + self.max_new_tokens + self.window

    @property
    def encoded(self) -> int:
        """Places that an encoder has for a source at most; 0 without one."""
        return self.max_source + self.heard

    @property
    def places(self) -> int:
        """Of the longest row, its source included."""
        return self.length + self.encoded

    def places_of(self, prompt: int, new_tokens: int, source: int) -> int:
        """The same of a row: with room for one window past its limit."""
        return prompt + new_tokens + self.window + source + self.heard


class SlotState:
    """Everything the engine knows of its rows, one slot per index of dimension 0."""

    def __init__(self, shape: SlotShape, level: str, device: torch.device, teacher_top_k: int = 0) -> None:
        steps = shape.max_new_tokens + shape.window

        def whole(*size: int) -> Tensor:
            return torch.zeros(shape.capacity, *size, dtype=torch.int64, device=device)

        def real(*size: int) -> Tensor:
            return torch.zeros(shape.capacity, *size, dtype=torch.float32, device=device)

        self.keys: list[int] = [-1] * shape.capacity
        self.reach = np.ones(shape.capacity, dtype=np.int64)
        """What the host knows of lengths without waiting for the device: none is above this."""
        self.tokens = whole(shape.length)
        self.source = whole(shape.max_source) - 1
        self._kernels = kernels_for(self.tokens)
        self._contexts: dict[int, Context] = {}
        self.numbers = whole(RowNumbers.width())
        """(C, 9), see `RowNumbers`."""
        self.lengths, self.limits, self.prompt_lengths, self.input_tokens = self.numbers[:, :FIRST_COUNTER].unbind(1)
        self.lengths_and_limits = self.numbers[:, : RowNumbers.limit.place + 1]
        """A row is open while its length is below its limit; an end of sequence makes that 0."""
        self._vacant = torch.tensor([1, 0, 1], device=device)
        self.close(slice(None))
        self.counters = self.numbers[:, FIRST_COUNTER:]
        self._sums = real(2)
        self.confidence_sum, self.gap_sum = self._sums.unbind(1)
        self.token_trace = real(steps, TokenTrace.width()) if level == "token" else None
        self.iteration_trace = real(steps, IterationTrace.width()) if level != "none" else None
        self.lengths_2K = torch.zeros(2, shape.window, dtype=torch.int64, device=device)
        """(2, k + 1) row-iterations that had a draft, by tokens drafted, and by tokens accepted; since the start."""
        self.top = (whole(steps, teacher_top_k), real(steps, teacher_top_k)) if teacher_top_k else None
        """Ids and log-probabilities of the verifier's likeliest tokens, by output token."""
        self.plain_token = torch.tensor(TokenTrace.without_draft(), device=device)
        """Trace of a token that nobody drafted; gap and log-probability to be filled in."""
        self._plain_iteration = torch.tensor(IterationTrace.without_draft(), device=device)
        """Of an iteration without a draft; a row's trace begins with these, so that plain decoding writes none."""

    def move(self, sources: list[int], targets: list[int]) -> None:
        """The rows in slots `sources` continue in slots `targets`; no slot is in both."""
        for source, target in zip(sources, targets, strict=True):
            self.keys[target] = self.keys[source]
        self.reach[targets] = self.reach[sources]
        traces = (self.token_trace, self.iteration_trace, *(self.top or ()))
        whole = [one for one in (self.tokens, self.source, self.numbers, self._sums, *traces) if one is not None]
        if self.tokens.device.type == "cpu":  # where numpy's calls take a fifth of the time of torch's
            for tensor in whole:
                values = tensor.numpy()
                values[targets] = values[sources]
            return
        from_M, to_M = uploaded([sources, targets], self.tokens.device)
        for tensor in whole:
            tensor.index_copy_(0, to_M, tensor.index_select(0, from_M))

    def enter(self, first: int, rows: list[NewRow]) -> None:
        """New rows, in the slots from `first` on."""
        slots, device = slice(first, first + len(rows)), self.tokens.device
        lengths = [len(row.prompt) for row in rows]
        self.keys[slots] = [row.key for row in rows]
        self.reach[slots] = lengths
        self.counters[slots], self._sums[slots], self.source[slots] = 0, 0, -1
        self.numbers[slots, :FIRST_COUNTER] = uploaded(
            [[len(row.prompt), row.limit, len(row.prompt), len(row.source) or len(row.prompt)] for row in rows], device
        )
        self.tokens[slots, : max(lengths)] = padded([row.prompt for row in rows], 0, device)[0]
        if self.source.shape[1]:
            sources_BS = padded([row.source for row in rows], -1, device)[0]
            self.source[slots, : sources_BS.shape[1]] = sources_BS
        if self.iteration_trace is not None:
            self.iteration_trace[slots] = self._plain_iteration

    def close(self, slots: slice) -> None:
        """No row is in these slots any more: iterations that run over them leave them as they are."""
        self.numbers[slots, :3] = self._vacant

    def context(self, live: int) -> Context:
        """Views of the live rows, made once for each number of them."""
        if live not in self._contexts:
            self._contexts[live] = Context(
                tokens_BL=self.tokens[:live],
                lengths_B=self.lengths[:live],
                prompt_lengths_B=self.prompt_lengths[:live],
                limits_B=self.limits[:live],
                source_BS=self.source[:live],
            )
        return self._contexts[live]

    def room(self, live: int, most: int) -> Tensor:
        """How many tokens each live row may draft (B,), `most` at most.

        The verifier's own token takes one place, so a row near its limit drafts less, or nothing.
        """
        if self._kernels is not None:
            return self._kernels.room(self.numbers, live, most)
        return (self.limits[:live] - self.lengths[:live] - 1).clamp(0, most)

    def window(self, draft: Draft) -> Window:
        """What the verifier is fed: a run for each live row, its last token and as much of its draft as is sent."""
        _rows, drafted = draft.tokens_BK.shape
        if self._kernels is not None:
            parts = self._kernels.show(self.numbers, self.tokens, draft.tokens_BK, draft.lengths_B)
            return Window(*parts, drafted + 1, covers_first=True)
        tokens_BT, starts_B = self.rectangle(draft)
        if drafted == 0:
            return Window.rectangle(tokens_BT, starts_B)
        window = Window.prefixes(tokens_BT, draft.lengths_B + 1)
        return replace(window, starts_R=starts_B, covers_first=True)

    def rectangle(self, draft: Draft) -> tuple[Tensor, Tensor]:
        """Every live row's last token and its draft (B, K + 1), whatever is sent of it; and where that begins (B,)."""
        starts_B = self.lengths[: len(draft.tokens_BK)] - 1
        last_B1 = self.tokens[: len(starts_B)].gather(1, starts_B[:, None])
        return torch.cat([last_B1, draft.tokens_BK], dim=1), starts_B

    def grow(self, count_B: Tensor, ended_B: Tensor) -> None:
        """Rows have gained so many tokens (B,), and some have ended (B,)."""
        self.lengths[: len(count_B)].add_(count_B)
        self.limits[: len(count_B)].masked_fill_(ended_B, 0)

    def advance(self, count_B: Tensor, ended_B: Tensor) -> list[int]:
        """As `grow`; gives the slots of rows that are finished. The host waits here for the device."""
        if self._kernels is not None:
            return self._kernels.advance(self.numbers, count_B, ended_B)
        self.grow(count_B, ended_B)
        done_B = self.lengths[: len(count_B)] >= self.limits[: len(count_B)]
        done: list[int] = done_B.nonzero().squeeze(1).tolist()
        return done
