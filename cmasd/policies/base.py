"""What a policy decides before an iteration: whether to draft, by which rule each row ends its own; then it is told.

A rule is plain numbers, so that a kernel can follow it while it drafts. Whether a token is drafted or sent depends on
the confidences of its own row up to it and on nothing later (non-anticipating), so speculative sampling stays lossless
under every policy, and a row's output does not depend on its neighbours.

Shapes: B rows, J tokens drafted so far, K draft.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from cmasd.policies.costs import StepTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
EDGE = 1e-3
"""Confidences are kept this far from 0 and 1 where their odds are taken: beyond, rounding of the drafter decides."""


@dataclass(frozen=True)
class Rule:
    """How far the rows of one iteration draft.

    After j tokens a row has the statistic s_j: the product (its survival), or the mean, of their acceptance p_1 to p_j.
    It drafts another while s_j >= go_on[j - 1], and sends to the verifier the leading tokens with s_j >= keep[j - 1].
    """

    go_on_K: Float64
    """(K,), K the most tokens that a row may draft; the last is never asked. -inf: always, inf: never."""
    keep_K: Float64
    """(K,)"""
    statistic: Literal["product", "mean"] = "product"
    slope: float | None = None
    """p_j = sigmoid(slope * logit(C_j) + offset_j) of the confidence C_j; None: p_j = C_j."""
    offsets_K: Float64 | None = None
    nodes: int = 0
    """Most tokens of a row's tree, whose every path goes by the rule; 0: a row drafts one way to go on."""

    @classmethod
    def always(cls, most: int, nodes: int = 0) -> "Rule":
        """Every row drafts `most` tokens."""
        return cls(np.full(most, -np.inf), np.full(most, -np.inf), nodes=nodes)

    @property
    def most(self) -> int:
        """No row drafts more."""
        return len(self.go_on_K)

    @property
    def looks(self) -> bool:
        """Whether confidences matter; where not, nobody need look at a draft while it is made."""
        return bool((self.go_on_K[:-1] > -np.inf).any() or (self.keep_K > -np.inf).any())

    def share(self, confidence: float, place: int) -> float:
        """p of one token, which stands behind so many of the draft; as `acceptance`."""
        if self.slope is None or self.offsets_K is None:
            return confidence
        known = min(max(confidence, EDGE), 1 - EDGE)
        return 1 / (1 + math.exp(-(self.slope * math.log(known / (1 - known)) + float(self.offsets_K[place]))))

    def acceptance(self, confidence_BJ: Float64) -> Float64:
        """p (B, J); a confidence that nobody knows (NaN) counts as 1/2."""
        known_BJ = np.nan_to_num(confidence_BJ, nan=0.5)
        if self.slope is None or self.offsets_K is None:
            return known_BJ
        known_BJ = known_BJ.clip(EDGE, 1 - EDGE)
        odds_BJ = self.slope * np.log(known_BJ / (1 - known_BJ)) + self.offsets_K[: known_BJ.shape[1]]
        result: Float64 = 1 / (1 + np.exp(-odds_BJ))
        return result

    def statistics(self, confidence_BJ: Float64) -> Float64:
        """s (B, J)"""
        p_BJ = self.acceptance(confidence_BJ)
        if self.statistic == "product":
            return p_BJ.cumprod(1)
        result: Float64 = np.cumsum(p_BJ, axis=1) / np.arange(1, p_BJ.shape[1] + 1)
        return result

    def goes_on(self, confidence_BJ: Tensor) -> Tensor:
        """(B,) bool: which rows draft token J + 1 after J tokens with these confidences, all of which were drafted."""
        drafted = confidence_BJ.shape[1]
        if drafted >= self.most:
            return torch.zeros(len(confidence_BJ), dtype=torch.bool, device=confidence_BJ.device)
        going_B = self.statistics(_host(confidence_BJ))[:, -1] >= self.go_on_K[drafted - 1]
        return torch.from_numpy(going_B).to(confidence_BJ.device)

    def lengths(self, confidence_BK: Tensor, drafted_B: Tensor) -> Tensor:
        """(B,) int64 <= drafted_B: what goes to the verifier.

        Of a draft that was made in one pass, as much as would have been drafted and sent token by token.
        """
        if not self.looks or confidence_BK.shape[1] == 0:
            return drafted_B.clamp_max(self.most)
        kept_BK = self.statistics(_host(confidence_BK))
        width = min(kept_BK.shape[1], self.most)
        kept_BK = kept_BK[:, :width]
        fine_BK = kept_BK >= self.keep_K[:width]
        fine_BK[:, 1:] &= kept_BK[:, :-1] >= self.go_on_K[: width - 1]
        lengths_B = torch.from_numpy(np.logical_and.accumulate(fine_BK, axis=1).sum(1))
        return lengths_B.to(drafted_B.device).minimum(drafted_B)


def _host(confidence: Tensor) -> Float64:
    values: Float64 = confidence.cpu().numpy().astype(np.float64)
    return values


@dataclass(frozen=True)
class Observation:
    """One iteration as it went. The arrays are the policy's to keep: it learns from several at once."""

    lengths_B: Int64
    """Draft tokens sent to the verifier, by row."""
    accepted_B: Int64
    confidence_BK: Float64
    """Of the drafted tokens, also where the rule did not look; what lies behind a row's draft means nothing. K is 0, or
    nothing was drafted, in plain decoding."""
    drafted_B: Int64
    """Tokens that the drafter made for each row, those that were not sent included."""
    seconds: float
    """Drafting, verifying and committing; prefill of new rows not included."""
    is_typical: bool
    """False when the drafter had to catch up on more than the last iteration, which costs extra."""
    nodes_B: Int64 | None = None
    """Of trees, all tokens that were sent; the others are then of the path that was judged."""


class Policy(ABC):
    """Draft lengths of all live rows."""

    needs_host: ClassVar[bool] = True
    """Whether it must see how sure a draft is while it is made; where not, or where it can do without, iterations may
    be launched before the last one ended."""

    wants_costs: ClassVar[bool] = False
    """Whether it must know what forwards cost, which takes seconds to measure."""

    max_draft_tokens: int
    """No row ever drafts more; 0: the drafter is never called."""

    @abstractmethod
    def plan(self, rows: int) -> Rule | None:
        """How an iteration of `rows` live rows drafts; None: not at all, which is plain decoding."""

    def observe(self, seen: Observation) -> None:
        """Told after every iteration; a policy may learn from it, and most do not."""
        return

    def learn_costs(self, table: "StepTable") -> None:
        """What forwards cost; before the first plan, where it is wanted."""
        return

    def look_no_more(self) -> None:
        """From now on nobody may look at a draft while it is made; asked of those that can do without alone."""
        return
