"""Draft on while the whole draft is likely to survive: prod_{i<=j} c_i >= threshold.

SpecDec++ (arXiv 2405.19715) and the confidence threshold of assisted generation are cases of it.
The token that falls under the threshold was drafted but is not sent to the verifier.
"""

from torch import Tensor

from cmasd.policies.base import Policy


class SurvivalPolicy(Policy):
    """Stops at the first j whose survival probability is under the threshold."""

    def __init__(self, threshold: float, max_draft_tokens: int) -> None:
        self.threshold = threshold
        self.max_draft_tokens = max_draft_tokens

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        """While the product of all confidences so far is at or above the threshold."""
        return confidence_BJ.prod(-1) >= self.threshold

    def keep(self, confidence_BJ: Tensor, drafted_B: Tensor) -> Tensor:
        """The leading tokens whose survival is at or above the threshold."""
        return (confidence_BJ.cumprod(-1) >= self.threshold).sum(-1).minimum(drafted_B)
