"""What a policy decides, in the order in which the engine asks.

A policy sees confidences only up to the token it decides about (non-anticipating), so speculative
sampling stays lossless under every policy.

Shapes: B rows, J tokens drafted so far.
"""

from typing import Protocol

from torch import Tensor


class Policy(Protocol):
    """Draft lengths of all live rows."""

    max_draft_tokens: int
    """No row ever drafts more; 0: the drafter is never called."""

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        """(B,) bool: should the row draft token J + 1, given its J confidences?"""
        ...

    def keep(self, confidence_BJ: Tensor, drafted_B: Tensor) -> Tensor:
        """(B,) int64 <= drafted_B: how many of the drafted tokens go to the verifier."""
        ...
