"""The tensors of all rows: tokens, lengths, counters, traces.

    slots     0 ........ live ...... slots | slots ........ capacity
              live rows  | free            | staged rows: prefilled, waiting

Live rows are always slots 0..live-1, so that every tensor of the hot loop is a view. A row enters
through the staging area, where a batch of rows is prefilled at once, and is moved into a hole when
a live row ends. What a row's buffers hold past its length is scratch.

Shapes: C capacity, L decoder positions, S source, N new tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmasd.core import FROM_VERIFIER
from cmasd.drafters import Context

TOKEN_CHANNELS = ("source", "confidence", "entropy", "margin", "softmax", "tau", "gap_nats", "verifier_logprob")
ITERATION_CHANNELS = ("draft_length", "accepted", "confidence", "entropy", "margin", "softmax")
LEAST_STAGED = 8
"""Rows prefilled at once, however few slots there are: encoding one by one is several times slower."""
COUNTERS = ("iterations", "drafted", "accepted", "drafting", "rollbacks")
NAN = float("nan")
PLAIN_TOKEN = (float(FROM_VERIFIER), NAN, NAN, NAN, NAN, 0.0, 0.0, 0.0)
"""Trace of a token that nobody drafted, in the order of TOKEN_CHANNELS; gap and log-probability to be filled in."""
PLAIN_ITERATION = (0.0, 0.0, NAN, NAN, NAN, NAN)
"""Trace of an iteration without a draft; a row's trace begins with these, so that plain decoding writes none."""


@dataclass(frozen=True)
class SlotShape:
    """How much the buffers hold."""

    slots: int
    staging: int
    max_prompt: int
    """Decoder tokens a row starts with: 1 for encoder-decoder models."""
    max_new_tokens: int
    max_source: int
    """Encoder tokens; 0 for decoder-only models."""
    window: int
    """Most tokens fed per forward: k_max + 1."""

    @property
    def capacity(self) -> int:
        """Slots that every buffer has."""
        return self.slots + self.staging

    @property
    def length(self) -> int:
        """Decoder positions per slot, with room for one window past the limit."""
        return self.max_prompt + self.max_new_tokens + self.window


class SlotState:
    """Everything the engine knows of its rows, one slot per index of dimension 0."""

    def __init__(self, shape: SlotShape, level: str, device: torch.device, teacher_top_k: int = 0) -> None:
        steps = shape.max_new_tokens + shape.window

        def whole(*size: int) -> Tensor:
            return torch.zeros(shape.capacity, *size, dtype=torch.int64, device=device)

        def real(*size: int) -> Tensor:
            return torch.zeros(shape.capacity, *size, dtype=torch.float32, device=device)

        self.keys: list[int] = [-1] * shape.capacity
        self.tokens = whole(shape.length)
        self.source = whole(shape.max_source) - 1
        self._whole = whole(4 + len(COUNTERS))
        self.lengths, self.prompt_lengths, self.limits, self.source_lengths = self._whole[:, :4].unbind(1)
        self.counters = self._whole[:, 4:]
        self._sums = real(2)
        self.confidence_sum, self.gap_sum = self._sums.unbind(1)
        self.token_trace = real(steps, len(TOKEN_CHANNELS)) if level == "token" else None
        self.iteration_trace = real(steps, len(ITERATION_CHANNELS)) if level != "none" else None
        self.lengths_2K = torch.zeros(2, shape.window, dtype=torch.int64, device=device)
        """(2, k + 1) row-iterations that had a draft, by tokens drafted, and by tokens accepted; since the start."""
        self.top = (whole(steps, teacher_top_k), real(steps, teacher_top_k)) if teacher_top_k else None
        """Ids and log-probabilities of the verifier's likeliest tokens, by output token."""
        self.plain_token = torch.tensor(PLAIN_TOKEN, device=device)
        self._plain_iteration = torch.tensor(PLAIN_ITERATION, device=device)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """The rows in slots `sources` continue in slots `targets`; no slot is in both."""
        for source, target in zip(sources, targets, strict=True):
            self.keys[target] = self.keys[source]
        from_M, to_M = torch.tensor([sources, targets], device=self.tokens.device)
        traces = (self.token_trace, self.iteration_trace, *(self.top or ()))
        for tensor in (self.tokens, self.source, self._whole, self._sums, *traces):
            if tensor is not None:
                tensor.index_copy_(0, to_M, tensor.index_select(0, from_M))

    def enter(self, slot: int, key: int, prompt: list[int], source: list[int], limit: int) -> None:
        """A new row; `prompt` is its decoder start, `source` its encoder input."""
        self.keys[slot] = key
        self.tokens[slot, : len(prompt)] = torch.tensor(prompt)
        self.source[slot] = -1
        self.source[slot, : len(source)] = torch.tensor(source, dtype=torch.int64)
        numbers = [len(prompt), len(prompt), limit, len(source) or len(prompt)]
        self._whole[slot] = torch.tensor(numbers + [0] * len(COUNTERS))
        self._sums[slot] = 0
        if self.iteration_trace is not None:
            self.iteration_trace[slot] = self._plain_iteration

    def context(self, live: int) -> Context:
        """Views of the live rows."""
        return Context(
            tokens_BL=self.tokens[:live],
            lengths_B=self.lengths[:live],
            prompt_lengths_B=self.prompt_lengths[:live],
            limits_B=self.limits[:live],
            source_BS=self.source[:live],
        )
