"""What a drafter is asked, and what it is told.

A drafter follows the engine's slots: rows are prefilled into a slot, moved between slots, drafted
for while they are live (slots 0..B-1), and told after each verification what was accepted.

Shapes: B live rows, L token buffer, S source buffer.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cmasd.core import Draft


@dataclass(frozen=True)
class Context:
    """The live rows as tensors; all are views that the engine owns."""

    tokens_BL: Tensor
    """(B, L) int64 decoder tokens; the drafter may scribble past a row's length."""
    lengths_B: Tensor
    """(B,) int64 known tokens, the latest one not yet in any cache included."""
    prompt_lengths_B: Tensor
    """(B,) int64 leading tokens that were not generated."""
    limits_B: Tensor
    """(B,) int64 length at which a row must stop."""
    source_BS: Tensor
    """(B, S) int64 encoder input; -1 pads; S = 0 for decoder-only models."""


class Drafter(Protocol):
    """Proposes up to `policy.max_draft_tokens` tokens per row."""

    caught_up: bool
    """Whether the latest draft began right behind the iteration before, with nothing to catch up on."""

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """New rows enter these slots; `later` leaves the work until they are first drafted for, if ever."""
        ...

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` is now in slot `target`."""
        ...

    def draft(self, context: Context, room_B: Tensor) -> Draft:
        """Propose at most room_B (B,) tokens per row."""
        ...

    def commit(self, accepted_B: Tensor) -> None:
        """(B,) tokens of the latest draft were accepted; the rest is rolled back."""
        ...
