"""n-gram copy from the source and the row's own output: no model, no cost worth naming.

The longest suffix of the row (up to `max_ngram` tokens) that occurs earlier in source + output is
found, and the tokens after it are the draft: after its latest occurrence in the output, or else its
first in the source, which opens with what a summary says. Confidence is the share of
judged tokens that were accepted after suffixes of that length, with PRIOR assumed beforehand; old
evidence fades, so that a length which a policy has given up is tried again. Entropy and margins do
not exist and are NaN.

Shapes: B rows, C context = source + own tokens, n suffix length, N suffix lengths, K draft.
"""

import torch
from torch import Tensor

from cmasd.core import Draft
from cmasd.drafters.base import Context
from cmasd.policies import Rule
from cmasd.runner.base import Extent

PRIOR_ACCEPTED, PRIOR_JUDGED = 4.0, 5.0
"""Assumed before the first draft; hopeful, because a policy that never drafts never learns."""
FADE = 0.99
"""Weight that evidence keeps per iteration."""


class LookupDrafter:
    """Strong where output repeats input: summarisation, editing, names and numbers."""

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self._accepted_N = torch.zeros(max_ngram + 1)
        self._judged_N = torch.zeros(max_ngram + 1)
        self._sent: tuple[Tensor, Tensor] | None = None

    caught_up = True
    one_pass = True

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """Nothing to do: everything is read from the context."""

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> None:
        """Nothing to time."""

    def move(self, source: int, target: int) -> None:
        """Nothing to do."""

    def reserve(self, extent: Extent) -> bool:
        """It always looks: as far as the longest row goes, and no further."""
        return False

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """Copy what followed the longest suffix that occurs before."""
        most = min(rule.most, int(room_B.max()))
        context_BC, ends_B = self._context(context)
        found_B, start_B = self._match(context_BC, ends_B, ends_B - context.lengths_B + context.prompt_lengths_B)
        where_BK = start_B[:, None] + torch.arange(most, device=start_B.device)
        tokens_BK = context_BC.gather(1, where_BK.clamp_max(context_BC.shape[1] - 1))
        real_BK = (where_BK < ends_B[:, None]) & (tokens_BK >= 0) & (found_B > 0)[:, None]
        drafted_B = real_BK.long().cumprod(-1).sum(-1).minimum(room_B)
        confidence_BK = self._rates(found_B)[:, None].expand(-1, most)
        lengths_B = rule.lengths(confidence_BK, drafted_B)
        self._sent = (found_B, lengths_B)
        none_BK3 = confidence_BK.new_full((*tokens_BK.shape, 3), torch.nan)
        return Draft(tokens_BK.clamp_min(0), lengths_B, confidence_BK, none_BK3, made_B=drafted_B)

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """Update the acceptance rate of each suffix length."""
        if self._sent is None:
            return
        found_B, lengths_B = self._sent
        self._sent = None
        judged_B = (accepted_B + 1).minimum(lengths_B)
        self._accepted_N += self._per_length(found_B, accepted_B)
        self._judged_N += self._per_length(found_B, judged_B)

    def _per_length(self, found_B: Tensor, counts_B: Tensor) -> Tensor:
        return torch.bincount(found_B, counts_B.float(), self.max_ngram + 1)

    def _rates(self, found_B: Tensor) -> Tensor:
        """(B,) acceptance rate of each row's suffix length, after a step of fading."""
        self._accepted_N = self._accepted_N.to(found_B.device) * FADE
        self._judged_N = self._judged_N.to(found_B.device) * FADE
        return ((self._accepted_N + PRIOR_ACCEPTED) / (self._judged_N + PRIOR_JUDGED))[found_B]

    @staticmethod
    def _context(context: Context) -> tuple[Tensor, Tensor]:
        """Source and own tokens in one row, -1 elsewhere; and where each row ends."""
        longest = int(context.lengths_B.max())
        own_BL = context.tokens_BL[:, :longest]
        position_L = torch.arange(longest, device=own_BL.device)
        own_BL = own_BL.masked_fill(position_L >= context.lengths_B[:, None], -1)
        joined_BC = torch.cat([context.source_BS, torch.full_like(own_BL[:, :1], -1), own_BL], dim=1)
        return joined_BC, context.lengths_B + context.source_BS.shape[1] + 1

    def _match(self, context_BC: Tensor, ends_B: Tensor, output_B: Tensor) -> tuple[Tensor, Tensor]:
        """Suffix length found (B,), 0 for none; and where the tokens to copy begin. The output begins at `output_B`."""
        found_B, start_B = torch.zeros_like(ends_B), torch.zeros_like(ends_B)
        for n in range(1, min(self.max_ngram, context_BC.shape[1] - 1) + 1):
            tail_Bn = ends_B[:, None] - n + torch.arange(n, device=ends_B.device)
            suffix_Bn = context_BC.gather(1, tail_Bn.clamp_min(0))
            equal_BC = (context_BC.unfold(1, n, 1) == suffix_Bn[:, None]).all(-1)
            after_C = torch.arange(equal_BC.shape[1], device=ends_B.device) + n
            follows_BC = equal_BC & (after_C < ends_B[:, None]) & (suffix_Bn >= 0).all(-1)[:, None]
            follows_BC = follows_BC & (
                context_BC.gather(1, after_C.clamp_max(context_BC.shape[1] - 1).expand_as(equal_BC)) >= 0
            )
            latest_B = (follows_BC * after_C).amax(-1)
            first_B = after_C.where(follows_BC, context_BC.shape[1]).amin(-1)
            found_B = torch.where(latest_B > 0, n, found_B)
            start_B = torch.where(latest_B > 0, torch.where(latest_B >= output_B, latest_B, first_B), start_B)
        return found_B, start_B
