"""What a drafter is asked, and what it is told.

A drafter follows the engine's slots: rows enter a slot, are moved between slots, drafted for while they are live
(slots 0..B-1), and told after each verification what was accepted.

Shapes: B live rows, L token buffer, S source buffer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cmasd.core import Draft, Request, Result
from cmasd.kernels import kernels_for
from cmasd.policies import Rule
from cmasd.runner.base import Extent


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
    """(B,) int64 length at which a row must stop; 0 once it has ended before."""
    source_BS: Tensor
    """(B, S) int64 encoder input; -1 pads; S = 0 for decoder-only models."""


class Drafter(ABC):
    """Proposes tokens, for each row as many as a rule lets it.

    The life of a row: it enters a slot, may be moved to another, is drafted for and told of in every iteration, and
    leaves. A drafter that keeps nothing of rows has only `draft` to say.
    """

    one_pass: bool = True
    """Whether all tokens of a draft come of one forward, or each of its own."""
    needs_host: bool = True
    """Whether it must look at rows before it drafts for them: then nothing is launched before it has."""
    caught_up: bool = True
    """Whether the latest draft began right behind the iteration before, with nothing to catch up on."""

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """New rows are in these slots, where the verifier was prefilled just before; told again where that failed.

        With `later` the work, if it is any, may be left until they are first drafted for.
        """
        return

    def follow(self) -> None:
        """The verifier has just read the first tokens of rows that entered, all but their last."""
        return

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` is now in slot `target`."""
        return

    @abstractmethod
    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """Propose at most room_B (B,) tokens for each row, as far as the rule lets it; rows that stop cost no more.

        With an `extent`, which was reserved, the drafter looks at nothing that the device computes: it always drafts
        one token less than the window, and rows that have fewer are cut.
        """

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """The verifier has seen the rows: (B,) tokens of the draft were accepted, 0 where nothing was drafted.

        Called after every iteration, those without a draft included, before lengths advance; what was not accepted is
        rolled back.
        """
        return

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """The rows in these slots are done."""
        return

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> Callable[[Tensor], None] | None:
        """Made-up rows enter these slots; returns one forward for those that have `starts_B` (B,) tokens, to be timed.

        None where drafting has no cost worth naming.
        """
        return None

    def reserve(self, extent: Extent) -> bool:
        """The host's part of an iteration of this extent; whether it may draft, with no more to catch up on than the
        iteration before.
        """
        return False


def empty_draft(context: Context) -> Draft:
    """Nothing drafted for any row: K = 0."""
    none_B0 = context.tokens_BL[:, :0]
    real_B0 = none_B0.float()
    return Draft(none_B0, torch.zeros_like(context.lengths_B), real_B0, real_B0[..., None].expand(-1, -1, 3))


def until_end(tokens_BK: Tensor, eos_ids: Tensor, room_B: Tensor) -> Tensor:
    """(B,) int64 <= room_B: how much of a draft counts; what lies behind an end of sequence does not."""
    kernels = kernels_for(tokens_BK)
    if kernels is not None:
        return kernels.until_end(tokens_BK, eos_ids, room_B)
    open_BK = ~is_one_of(tokens_BK, eos_ids)
    return (open_BK.long().cumprod(-1).sum(-1) + 1).minimum(room_B).clamp_max(tokens_BK.shape[1])


def is_sent(draft: Draft) -> Tensor:
    """(B, K) bool: the tokens of a draft that go to the verifier."""
    position_K = torch.arange(draft.tokens_BK.shape[1], device=draft.tokens_BK.device)
    return position_K < draft.lengths_B[:, None]


def is_one_of(tokens: Tensor, ids: Tensor) -> Tensor:
    """Where tokens are one of `ids`, of which there mostly is one."""
    return tokens == ids if len(ids) == 1 else torch.isin(tokens, ids)
