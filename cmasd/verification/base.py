"""What a verification rule answers, and the part that all rules share.

Shapes: B rows, K draft positions, T = K + 1 verified positions, V vocabulary. Of a row's logits, number j judges
draft token j, and number l_r gives the bonus token after a fully accepted draft of l_r tokens.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from cmasd.core import Draft, Logits, Verdict


class Verification(ABC):
    """A rule; `exact` is the only one whose output equals greedy AR token for token."""

    needs_host: ClassVar[bool] = True
    """Whether it reads what the device computes, or draws: then no iteration is launched before the last one ended."""

    @abstractmethod
    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """Judge a draft by the verifier's logits, constraints already applied; K is the longest length."""


def prefix_length(acceptable_BK: Tensor, lengths_B: Tensor) -> Tensor:
    """(B,) int64: how many leading draft tokens are acceptable, within each row's length."""
    position_K = torch.arange(acceptable_BK.shape[1], device=acceptable_BK.device)
    good_BK = acceptable_BK & (position_K < lengths_B[:, None])
    return good_BK.long().cumprod(-1).sum(-1)


def pick(values_BT: Tensor, where_B: Tensor) -> Tensor:
    """(B,): values_BT[r, where_B[r]]."""
    return values_BT.gather(1, where_B[:, None]).squeeze(1)
