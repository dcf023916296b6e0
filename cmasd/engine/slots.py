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

from cmasd.drafters import Context

TOKEN_CHANNELS = ("source", "confidence", "entropy", "margin", "softmax", "tau", "gap_nats", "verifier_logprob")
ITERATION_CHANNELS = ("draft_length", "accepted", "confidence", "entropy", "margin", "softmax")
COUNTERS = ("iterations", "drafted", "accepted", "drafting", "rollbacks")


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

    def __init__(self, shape: SlotShape, level: str, device: torch.device) -> None:
        def whole(*size: int) -> Tensor:
            return torch.zeros(shape.capacity, *size, dtype=torch.int64, device=device)

        def real(*size: int) -> Tensor:
            return torch.zeros(shape.capacity, *size, dtype=torch.float32, device=device)

        steps = shape.max_new_tokens + shape.window
        self.keys: list[int] = [-1] * shape.capacity
        self.tokens = whole(shape.length)
        self.lengths = whole()
        self.prompt_lengths = whole()
        self.limits = whole()
        self.source = whole(shape.max_source) - 1
        self.source_lengths = whole()
        self.counters = whole(len(COUNTERS))
        self.confidence_sum = real()
        self.gap_sum = real()
        self.token_trace = real(steps, len(TOKEN_CHANNELS)) if level == "token" else None
        self.iteration_trace = real(steps, len(ITERATION_CHANNELS)) if level != "none" else None

    @property
    def _tensors(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` continues in slot `target`."""
        self.keys[target] = self.keys[source]
        for tensor in self._tensors:
            tensor[target] = tensor[source]

    def enter(self, slot: int, key: int, prompt: list[int], source: list[int], limit: int) -> None:
        """A new row; `prompt` is its decoder start, `source` its encoder input."""
        self.keys[slot] = key
        self.tokens[slot, : len(prompt)] = torch.tensor(prompt)
        self.lengths[slot] = self.prompt_lengths[slot] = len(prompt)
        self.limits[slot] = limit
        self.source[slot] = -1
        self.source[slot, : len(source)] = torch.tensor(source, dtype=torch.int64)
        self.source_lengths[slot] = len(source) or len(prompt)
        self.counters[slot] = 0
        self.confidence_sum[slot] = 0
        self.gap_sum[slot] = 0

    def context(self, live: int) -> Context:
        """Views of the live rows."""
        return Context(
            tokens_BL=self.tokens[:live],
            lengths_B=self.lengths[:live],
            prompt_lengths_B=self.prompt_lengths[:live],
            limits_B=self.limits[:live],
            source_BS=self.source[:live],
        )
