"""What a policy decides, in the order in which the engine asks: plan, go_on after each token, keep; then it is told.

A policy sees confidences only up to the token it decides about (non-anticipating), so speculative
sampling stays lossless under every policy.

Shapes: B rows, J tokens drafted so far, K draft.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from cmasd.core import Draft, Verdict


@dataclass(frozen=True)
class Observation:
    """One iteration as it went."""

    draft: Draft
    verdict: Verdict
    seconds: float
    """Drafting, verifying and committing; prefill of new rows not included."""
    is_typical: bool
    """False when the drafter had to catch up on more than the last iteration, which costs extra."""


class Policy(ABC):
    """Draft lengths of all live rows."""

    max_draft_tokens: int
    """No row ever drafts more; 0: the drafter is never called."""
    looks: bool = True
    """Whether `go_on` depends on confidences; where not, nobody asks while a draft is made."""
    plans_ahead: bool = False
    """Whether `plan` alone can say how long a draft is, so that nobody need look at it while it is made."""

    def plan(self, rows: int) -> int:
        """Most tokens to draft in this iteration of `rows` live rows; 0 skips the drafter."""
        return self.max_draft_tokens

    @abstractmethod
    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        """(B,) bool: should the row draft token J + 1, given its J confidences?"""

    def goes_on(self, confidence_BJ: Tensor) -> bool | None:
        """`go_on`, where it is the same for all rows whatever they hold; None where it is not."""
        return None

    def cut(self, confidence_BK: Tensor, drafted_B: Tensor) -> Tensor:
        """(B,) int64 <= drafted_B: what goes to the verifier of a draft that was made in one pass.

        Where the policy would have stopped a drafter that goes token by token: no later confidence is looked at.
        """
        if not self.looks:
            return self.keep(confidence_BK, drafted_B)
        asked_B = drafted_B.clamp_max(1)
        going_B = drafted_B > 1
        for j in range(1, confidence_BK.shape[1]):
            going_B = going_B & self.go_on(confidence_BK[:, :j]) & (drafted_B > j)
            asked_B = asked_B + going_B
        return self.keep(confidence_BK, asked_B)

    def keep(self, confidence_BJ: Tensor, drafted_B: Tensor) -> Tensor:
        """(B,) int64 <= drafted_B: how many of the drafted tokens go to the verifier."""
        return drafted_B

    def observe(self, observation: Observation) -> None:
        """Told after every iteration; a policy may learn from it, and most do not."""
        return
