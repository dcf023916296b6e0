"""When Whisper may say timestamps: in pairs, never backwards, one at the beginning, and wherever they are likelier
together than any word.

Equals `WhisperTimeStampLogitsProcessor` of transformers at every position of a verify window at once; a test compares
the two. A row whose start ends with the token that forbids timestamps has no such rules.

Shapes: B rows, T window, V vocabulary, L tokens held, N = L + T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_INF = float("inf")


@dataclass(frozen=True)
class Timestamps:
    """Ids of one checkpoint; timestamps are all ids from `first` on."""

    none: int
    """Says that there are none; at the end of a row's start it is believed."""
    first: int
    end: int
    """Of a sequence; words are the ids below it."""
    most_initial: int | None
    """Timestamps behind the first one that may begin a row; None: all."""
    by_likelihood: bool = True
    """Whether they are said where they are likelier together than any word."""

    def acts_B(self, tokens_BL: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """(B,) whether rows say timestamps."""
        return tokens_BL.gather(1, prompt_lengths_B[:, None] - 1)[:, 0] != self.none

    def apply(
        self, logits_BTV: Tensor, tokens_BL: Tensor, starts_B: Tensor, prompt_lengths_B: Tensor, window_BT: Tensor
    ) -> None:
        """In place; the arguments are those of `Constraints.apply`."""
        acts_B1 = self.acts_B(tokens_BL, prompt_lengths_B)[:, None]
        if acts_B1.device.type == "cpu" and not acts_B1.any():
            return
        steps_T = torch.arange(window_BT.shape[1], device=starts_B.device)
        row_BN = torch.cat([tokens_BL, torch.zeros_like(window_BT)], dim=1)
        row_BN.scatter_(1, starts_B[:, None] + steps_T, window_BT)
        said_BT = starts_B[:, None] + steps_T + 1 - prompt_lengths_B[:, None]
        self._ban(logits_BTV, row_BN, prompt_lengths_B, said_BT, acts_B1)
        if self.by_likelihood:
            self._prefer(logits_BTV, acts_B1)

    def _ban(
        self, logits_BTV: Tensor, row_BN: Tensor, prompt_lengths_B: Tensor, said_BT: Tensor, acts_B1: Tensor
    ) -> None:
        lengths_BT = said_BT + prompt_lengths_B[:, None]
        last_BT = row_BN.gather(1, lengths_BT - 1)
        before_BT = row_BN.gather(1, (lengths_BT - 2).clamp(min=0))
        is_time_BT = (said_BT >= 1) & (last_BT >= self.first)
        was_time_BT = (said_BT < 2) | (before_BT >= self.first)
        least_BT = self._least(row_BN, prompt_lengths_B, lengths_BT, is_time_BT & ~was_time_BT)
        begins_BT = said_BT == 0
        ids_V = torch.arange(logits_BTV.shape[2], device=row_BN.device)
        times_V, words_V = ids_V >= self.first, ids_V < self.end
        banned_BTV = (times_V & (ids_V < least_BT[..., None])) | (ids_V == self.none)
        banned_BTV |= times_V & (is_time_BT & was_time_BT)[..., None]
        banned_BTV |= words_V & (is_time_BT & ~was_time_BT)[..., None]
        banned_BTV |= ~times_V & begins_BT[..., None]
        if self.most_initial is not None:
            banned_BTV |= (ids_V > self.first + self.most_initial) & begins_BT[..., None]
        logits_BTV.masked_fill_(banned_BTV & acts_B1[..., None], -_INF)

    def _least(self, row_BN: Tensor, prompt_lengths_B: Tensor, lengths_BT: Tensor, may_repeat_BT: Tensor) -> Tensor:
        """(B, T) the lowest timestamp that does not lead back."""
        places_N = torch.arange(row_BN.shape[1], device=row_BN.device)
        said_BN = (row_BN >= self.first) & (places_N >= prompt_lengths_B[:, None])
        latest_BN = places_N.where(said_BN, -1).cummax(dim=1).values
        place_BT = latest_BN.gather(1, lengths_BT - 1)
        latest_BT = row_BN.gather(1, place_BT.clamp(min=0)) + (~may_repeat_BT).long()
        return latest_BT.where(place_BT >= 0, self.first)

    def _prefer(self, logits_BTV: Tensor, acts_B1: Tensor) -> None:
        """Ban words where timestamps are likelier together than any of them."""
        scores_BTV = logits_BTV.float()
        words_BT = scores_BTV[..., : self.first].amax(dim=-1)
        times_BT = scores_BTV[..., self.first :].logsumexp(dim=-1)
        prefers_BT = (times_BT > words_BT) & acts_B1
        logits_BTV[..., : self.first].masked_fill_(prefers_BT[..., None], -_INF)
