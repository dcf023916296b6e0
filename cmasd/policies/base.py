"""What a policy decides before an iteration: whether to draft, by which rule each row ends its own; then it is told.

A rule is plain numbers, so that a kernel can follow it while it drafts. Whether a token is drafted or sent depends on
the confidences of its own row up to it and on nothing later (non-anticipating), so speculative sampling stays lossless
under every policy, and a row's output does not depend on its neighbours.

Shapes: B rows, J tokens drafted so far, K draft.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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


def log_odds(probability: Float64) -> Float64:
    """Of numbers in [0, 1], away from their edges; NaN stays."""
    inside = probability.clip(EDGE, 1 - EDGE)
    result: Float64 = np.log(inside / (1 - inside))
    return result


def beyond(confidence: Float64, components_3: Float64) -> Float64:
    """(..., 2) log-odds of entropy and softmax margin, less those of a token's confidence; 0 where they are unknown."""
    more: Float64 = np.nan_to_num(log_odds(components_3[..., ::2]) - log_odds(confidence)[..., None])
    return more


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
    weights_2: Float64 | None = None
    """(2,) of what `beyond` C is known, to add to the log-odds of p_j; None: nothing."""

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

    def share(self, confidence: float, place: int, components_3: Sequence[float] | None = None) -> float:
        """p of one token, which stands behind so many of the draft; as `acceptance`."""
        if self.slope is None or self.offsets_K is None:
            return confidence
        known = min(max(confidence, EDGE), 1 - EDGE)
        odds = self.slope * math.log(known / (1 - known)) + float(self.offsets_K[place])
        if self.weights_2 is not None and components_3 is not None:
            odds += float(beyond(np.array(confidence), np.array(components_3)) @ self.weights_2)
        return 1 / (1 + math.exp(-odds))

    def acceptance(self, confidence_BJ: Float64, components_BJ3: Float64 | None = None) -> Float64:
        """p (B, J); a confidence that nobody knows (NaN) counts as 1/2."""
        known_BJ = np.nan_to_num(confidence_BJ, nan=0.5)
        if self.slope is None or self.offsets_K is None:
            return known_BJ
        odds_BJ = self.slope * log_odds(known_BJ) + self.offsets_K[: known_BJ.shape[1]]
        if self.weights_2 is not None and components_BJ3 is not None:
            odds_BJ += beyond(confidence_BJ, components_BJ3) @ self.weights_2
        result: Float64 = 1 / (1 + np.exp(-odds_BJ))
        return result

    def statistics(self, confidence_BJ: Float64, components_BJ3: Float64 | None = None) -> Float64:
        """s (B, J)"""
        p_BJ = self.acceptance(confidence_BJ, components_BJ3)
        if self.statistic == "product":
            return p_BJ.cumprod(1)
        result: Float64 = np.cumsum(p_BJ, axis=1) / np.arange(1, p_BJ.shape[1] + 1)
        return result

    def goes_on(self, confidence_BJ: Tensor, components_BJ3: Tensor | None = None) -> Tensor:
        """(B,) bool: which rows draft token J + 1 after J tokens with these confidences, all of which were drafted."""
        drafted = confidence_BJ.shape[1]
        if drafted >= self.most:
            return torch.zeros(len(confidence_BJ), dtype=torch.bool, device=confidence_BJ.device)
        going_B = self.statistics(*self._seen(confidence_BJ, components_BJ3))[:, -1] >= self.go_on_K[drafted - 1]
        return torch.from_numpy(going_B).to(confidence_BJ.device)

    def lengths(self, confidence_BK: Tensor, drafted_B: Tensor, components_BK3: Tensor | None = None) -> Tensor:
        """(B,) int64 <= drafted_B: what goes to the verifier.

        Of a draft that was made in one pass, as much as would have been drafted and sent token by token.
        """
        if not self.looks or confidence_BK.shape[1] == 0:
            return drafted_B.clamp_max(self.most)
        kept_BK = self.statistics(*self._seen(confidence_BK, components_BK3))
        width = min(kept_BK.shape[1], self.most)
        kept_BK = kept_BK[:, :width]
        fine_BK = kept_BK >= self.keep_K[:width]
        fine_BK[:, 1:] &= kept_BK[:, :-1] >= self.go_on_K[: width - 1]
        lengths_B = torch.from_numpy(np.logical_and.accumulate(fine_BK, axis=1).sum(1))
        return lengths_B.to(drafted_B.device).minimum(drafted_B)

    def _seen(self, confidence: Tensor, components: Tensor | None) -> tuple[Float64, Float64 | None]:
        """What the rule looks at, on the host."""
        return _host(confidence), None if self.weights_2 is None or components is None else _host(components)


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
    components_BK3: Float64 | None = None
    """As `Draft.components_BK3`, of policies that want them."""
    beside: float = 0.0
    """Seconds before the iteration in which the drafter read the sources of new rows."""
    asked: bool = True
    """Whether the drafter was, which it takes its time for where it knows nothing, too."""


class Policy(ABC):
    """Draft lengths of all live rows."""

    needs_host: ClassVar[bool] = True
    """Whether it must see how sure a draft is while it is made; where not, or where it can do without, iterations may
    be launched before the last one ended."""

    wants_signals: bool = False
    """Whether it learns from more than confidences."""

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

    def learned(self) -> dict[str, Any]:
        """What another policy of this kind may begin with, as JSON takes it; empty where there is nothing."""
        return {}

    def begin_with(self, learned: dict[str, Any]) -> None:
        """What was learned before, by a policy of the same settings; raises KeyError, TypeError or ValueError for
        anything else, and is then as it was. Before the first plan, and after `learn_costs`.
        """
        return

    def look_no_more(self) -> None:
        """From now on nobody may look at a draft while it is made; asked of those that can do without alone."""
        return
