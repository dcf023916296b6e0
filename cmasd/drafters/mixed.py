"""Free drafts, and a drafting model for the rows that have none from which more is expected than it costs to ask.

What the model's drafts bring is known from those lately; of that, as much is counted as is left when its own forwards
are paid. The model sees only those rows; what it missed of the others it catches up on when it is asked for them.

Shapes: B rows, K draft, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cmasd.core import Draft, Request, Result
from cmasd.drafters.base import Context, Drafter, is_sent
from cmasd.drafters.free import FreeDrafter
from cmasd.policies import Rule
from cmasd.runner.base import Extent
from cmasd.signals import FROM_DRAFT

WORTH_ONE_PASS, WORTH = 0.9, 0.5
"""Share of a model's accepted tokens that is left when its drafting is paid: of one pass, and of one for each token."""
FADE = 0.98
"""Weight that evidence keeps per draft of the model."""


class MixedDrafter(Drafter):
    """Both; the host looks at texts."""

    def __init__(self, free: FreeDrafter, model: Drafter, model_most: int, recycles: bool = False) -> None:
        """`model_most`: tokens that the model drafts at most; `recycles`: whether what it said may come again."""
        self.free = free
        self.model = model
        self._most = model_most
        self._recycles = recycles
        self.one_pass = model.one_pass
        self._worth = WORTH_ONE_PASS if model.one_pass else WORTH
        self._accepted = self._asked = 0.0
        """Tokens that the model's drafts brought, and rows that it drafted for, lately."""
        self._of_model: tuple[Draft, Tensor] | None = None
        """Its latest draft, and the rows for which it was made."""

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> Callable[[Tensor], None] | None:
        """Of the model, which alone costs anything."""
        return self.model.rehearse(slots, sources)

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """In both."""
        self.free.enter(slots, requests)
        self.model.enter(slots, requests, later)

    def follow(self) -> None:
        """The model does."""
        self.model.follow()

    def move(self, source: int, target: int) -> None:
        """In both."""
        self.free.move(source, target)
        self.model.move(source, target)

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """What they said is remembered."""
        self.free.leave(slots, results)
        self.model.leave(slots, results)

    def forget(self) -> None:
        """All that rows before have said."""
        self.free.forget()

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """A free draft that the rule lets go, unless more is expected of the model; or else the model's."""
        free = self.free.draft(context, room_B, rule)
        is_free_B = free.lengths_B > 0
        if self._asked:
            is_free_B &= expected(free) >= self._worth * room_B.clamp_max(self._accepted / self._asked)
        left_B = room_B.masked_fill(is_free_B, 0).clamp_max(self._most)
        if not left_B.any():
            return free
        self.free.give_way(is_free_B)
        model = self.model.draft(context, left_B, rule)
        self.caught_up = self.model.caught_up  # free drafts have nothing to catch up on
        self._of_model = None if rule.nodes else (model, ~is_free_B & (model.drafted_B > 0))
        return merged(free, model, is_free_B)

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """Both have their own rows in mind."""
        self.free.commit(context, accepted_B)
        self.model.commit(context, accepted_B)
        if self._of_model is None:
            return
        draft, is_of_model_B = self._of_model
        self._of_model = None
        rows = int(is_of_model_B.sum())
        if rows:
            kept = FADE**rows
            self._accepted = kept * self._accepted + int((accepted_B * is_of_model_B).sum())
            self._asked = kept * self._asked + rows
            if self._recycles:
                self.free.recycle(draft, is_of_model_B, accepted_B)


def expected(draft: Draft) -> Tensor:
    """(B,) tokens of what is sent that will be accepted, by its confidence."""
    return draft.confidence_BK.cumprod(1).masked_fill(~is_sent(draft), 0.0).sum(1)


def merged(free: Draft, model: Draft, is_free_B: Tensor) -> Draft:
    """Row by row one of two drafts."""
    most = max(free.tokens_BK.shape[1], model.tokens_BK.shape[1])

    def either(one: Tensor, other: Tensor) -> Tensor:
        if one.dim() > 1:
            one, other = _padded(one, most), _padded(other, most)
        return torch.where(is_free_B.view(-1, *[1] * (one.dim() - 1)), one, other)

    source_B = free.lengths_B.new_full(free.lengths_B.shape, FROM_DRAFT)
    parents_BK = source_BK = None
    if free.parents_BK is not None and model.parents_BK is not None:
        parents_BK = either(free.parents_BK, model.parents_BK)
    if free.source_BK is not None:
        source_BK = either(free.source_BK, model.tokens_BK.new_full(model.tokens_BK.shape, FROM_DRAFT))
    return Draft(
        tokens_BK=either(free.tokens_BK, model.tokens_BK),
        lengths_B=either(free.lengths_B, model.lengths_B),
        confidence_BK=either(free.confidence_BK, model.confidence_BK.float()),
        components_BK3=either(free.components_BK3, model.components_BK3.float()),
        probs_BKV=None if model.probs_BKV is None else either(certain(free, model.probs_BKV), model.probs_BKV),
        made_B=either(free.drafted_B, model.drafted_B),
        source_B=source_B if free.source_B is None else either(free.source_B, source_B),
        logprob_BK=None if model.logprob_BK is None else either(_unknown(free), model.logprob_BK),
        parents_BK=parents_BK,
        source_BK=source_BK,
    )


def _unknown(draft: Draft) -> Tensor:
    """(B, K) log-probabilities of texts."""
    return torch.full_like(draft.confidence_BK, torch.nan)


def certain(draft: Draft, like_BKV: Tensor) -> Tensor:
    """(B, K, V): all of the probability on the token of a draft without a distribution."""
    shape = *draft.tokens_BK.shape, like_BKV.shape[-1]
    return like_BKV.new_zeros(shape).scatter_(-1, draft.tokens_BK[..., None], 1.0)


def _padded(values: Tensor, most: int) -> Tensor:
    """(B, most, ...)"""
    return torch.nn.functional.pad(values, (*[0, 0] * (values.dim() - 2), 0, most - values.shape[1]))
