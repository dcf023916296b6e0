"""What a verification rule answers, and the part that all rules share.

Shapes: B rows, K draft positions, T = K + 1 verified positions, V vocabulary. `logits_BTV[:, j]`
judges draft token j; `logits_BTV[r, l_r]` gives the bonus token after a fully accepted draft.
"""

from typing import Protocol

import torch
from torch import Tensor

from cmasd.core import Draft, Verdict


class Verification(Protocol):
    """A rule; `exact` is the only one whose output equals greedy AR token for token."""

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """Judge a draft; (B, K + 1, V) logits of the verifier, constraints already applied."""
        ...


def prefix_length(acceptable_BK: Tensor, lengths_B: Tensor) -> Tensor:
    """(B,) int64: how many leading draft tokens are acceptable, within each row's length."""
    position_K = torch.arange(acceptable_BK.shape[1], device=acceptable_BK.device)
    good_BK = acceptable_BK & (position_K < lengths_B[:, None])
    return good_BK.long().cumprod(-1).sum(-1)


def pick(values_BT: Tensor, where_B: Tensor) -> Tensor:
    """(B,): values_BT[r, where_B[r]]."""
    return values_BT.gather(1, where_B[:, None]).squeeze(1)
