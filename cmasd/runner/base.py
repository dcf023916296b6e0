"""The runner interface: one model, a fixed number of slots, every row at its own length.

A slot is one row of a preallocated key/value cache. Live rows are always slots 0..B-1, so that the hot path reads a
view of the cache; the caller keeps them compact with `move`. The runner keeps no decoder lengths: the caller says
with every call how many tokens of each row count. Rolling back is saying a smaller number next time.

Shapes: B rows, T window, V vocabulary.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cmasd.kernels import Drafted, PackedRule
from cmasd.window import Window


class Extent(NamedTuple):
    """The shapes of a forward: all that the host decides about it, everything else depends on device tensors."""

    rows: int
    window: int
    """Tokens fed per row."""
    length: int
    """Decoder positions that attention reads."""
    sources: int
    """Source positions that cross-attention reads; 0 without an encoder."""


class Pass(NamedTuple):
    """A rectangle of tokens on its way through a model, as the device sees it."""

    tokens_BT: Tensor
    starts_B: Tensor
    """The place of each row's first token in its slot."""
    extent: Extent
    live: Tensor | None = None
    """() rows from this one on are padding; None: none are."""
    slots_B: Tensor | None = None
    """The slot of each row; None: slots 0..B-1."""
    window: Window | None = None
    """Whose runs the rows are, where these are trees."""


class Guesser(Protocol):
    """Greedy decoding of several tokens in one call of a kernel."""

    def catch_up(
        self,
        tokens_BL: Tensor,
        lengths_B: Tensor,
        held_B: Tensor,
        room_B: Tensor,
        count: int,
        rule: PackedRule | None,
    ) -> Drafted:
        """See `Kernels.catch_up`; the caller has asked `Runner.extent` for all that is fed."""

    def __call__(self, window: Window) -> tuple[Tensor, Tensor]:
        """See `Kernels.guess`."""


class Runner(Protocol):
    """A model over slots. Logits come in the dtype of the model, on its device."""

    slots: int
    """Rows that the cache holds."""
    max_length: int
    """Decoder positions that a slot holds, room for the last window included."""
    max_source_length: int
    """Encoder positions that a slot holds; for a decoder-only model the longest prompt, `max_length`."""
    max_positions: int | None
    """Decoder positions the checkpoint was built for; None when they are unbounded."""
    vocabulary_size: int
    """Columns of the logits, unless there is a shortlist."""
    shortlist: Tensor | None
    """(S,) int64 ids of the logits' columns, where only those are computed; else None."""
    is_encoder_decoder: bool
    """Whether a source is encoded apart from the output."""
    device: torch.device
    """Where the model and its cache live."""
    dtype: torch.dtype
    """Of the logits and the cache."""
    wants_all: bool
    """Whether windows had better have a run for each of slots 0..B-1, whatever is asked of them: graphs want shapes."""
    wants_states: bool
    """Whether a prefill of prompts is to leave `hidden_BTd`: they are large, and for a parallel drafter alone."""
    ran: tuple[Window, Tensor] | None
    """What was run last, and its last hidden states (N, d); None after a forward of another kind. Good until the next
    call."""
    rows_alone: bool
    """Whether a row's numbers are the same to the last bit whatever rows, and how many tokens, are run with it."""
    hidden_BTd: Tensor | None
    """(B, T, d) last hidden states of the latest `forward`, or of a prefill, after each prompt token but the last
    (padded behind) if `wants_states`; None where there are none. Good until the next call."""
    encoded_BSd: Tensor | None
    """(B, S, d) the encoder's states of the latest prefill, padded behind; None without an encoder."""

    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """Take up new rows, one source per slot, in one batch; sources are not empty and may differ in length.

        Encoder-decoder: encodes the sources and stores every layer's cross-attention keys and values; the row's
        start is then 0. Decoder-only: runs over all source tokens but the last; the row's start is then
        `len(source) - 1`, and the last source token is the first one to feed.
        """

    def run(self, window: Window, asked_Q: Tensor | None = None) -> Tensor:
        """Feed a window; return the logits (N, V) after its tokens, or (Q, V) after those that are asked for.

        A token at place p of its slot sees the places 0..p, or in a tree those before the run and its ancestors. What
        a slot holds from a run's start on is overwritten.
        Starts and firsts may be on the host. The logits are the caller's to keep and to change; no gradients are
        recorded.
        """

    def forward(
        self, tokens_BT: Tensor, starts_B: Tensor, only_B: Tensor | None = None, extent: Extent | None = None
    ) -> Tensor:
        """Feed T tokens to each of slots 0..B-1 at positions `starts_B[b] + t`; return logits (B, T, V).

        `only_B` (B,) asks for the logits after one token of each row's window alone: (B, 1, V).

        A query at position p sees the keys at positions 0..p. A row with a shorter window is right-padded by the
        caller with any valid id; what the padding writes is overwritten before it can be seen. `starts_B` may be on
        the host, which spares a wait for the device. The logits are the caller's to keep and to change; no gradients
        are recorded.

        With an `extent` nothing waits, and all of it may be captured: attention reads as far as that says, whatever its
        window, and rows are written to their own slots. The caller has asked `extent` for it, and may have rounded it.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) of last hidden states (..., d)."""

    def output_rows(self, columns: Tensor) -> Tensor:
        """(..., d) weights of the output layer for columns (...) of the logits."""

    def extent(self, rows: int, window: int, longest: int, slots: list[int] | None = None) -> Extent:
        """The host's part of a forward: slots 0..rows-1, or as many others, none of which starts behind `longest`, will
        be written.
        """

    def guesser(self, eos_ids: Tensor) -> Guesser | None:
        """Greedy decoding of several tokens in one call, where there is a kernel for all of it."""

    def settle(self, chosen_M: Tensor, counts_R: Tensor) -> None:
        """Of trees that were run last, keep a path of each: `counts_R` (R,) tokens of the list, `chosen_M` (M,) in all.

        Its keys and values go where they would be had only it been run, and `ran` says that it was.
        """

    def carry(self, slots_M: Tensor, from_M: Tensor, to_M: Tensor) -> None:
        """Of these slots, what was kept of the tokens at some places goes to others, all at once."""

    def made_up(self, length: int) -> list[int]:
        """A source of no meaning, of so many tokens where it is made of tokens."""

    def move(self, source: int, target: int) -> None:
        """The row of slot `source` is in slot `target` from now on."""

    def leave(self, slots: list[int]) -> None:
        """No row is in these slots any more: they may give back memory."""
