"""What a model drafts token by token, row by row, while it is written.

Shapes: B rows, R some of them, G those of these that go on, K the longest draft, V vocabulary.
"""

import torch
from torch import Tensor

from cmasd.confidence.scores import Scores
from cmasd.core import Draft
from cmasd.policies import Rule
from cmasd.signals import COMPONENTS, LOGIT_SCORES, NAN


class Sheet:
    """All rows' drafts."""

    def __init__(self, rows: int, most: int, vocabulary: int | None, device: torch.device) -> None:
        """`vocabulary` is given where distributions are kept."""
        self.tokens_BK = torch.zeros(rows, most, dtype=torch.int64, device=device)
        self.confidence_BK = torch.full((rows, most), NAN, device=device)
        self.scores_BK4 = torch.full((rows, most, len(LOGIT_SCORES)), NAN, device=device)
        self.logprob_BK = torch.full((rows, most), NAN, device=device)
        self.made_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.probs_BKV = None if vocabulary is None else torch.zeros(rows, most, vocabulary, device=device)

    def write(
        self,
        rows_R: Tensor,
        j: int,
        going_R: Tensor,
        token_R: Tensor,
        confidence_R: Tensor,
        scores: Scores,
        prob_RV: Tensor | None,
    ) -> None:
        """Token j of some rows, where they go on."""
        rows_G = rows_R[going_R]
        self.tokens_BK[rows_G, j] = token_R[going_R]
        self.confidence_BK[rows_G, j] = confidence_R[going_R]
        self.scores_BK4[rows_G, j] = scores.values[going_R].float()
        self.logprob_BK[rows_G, j] = logprob_of(scores, token_R, prob_RV)[going_R]
        self.made_B[rows_G] = j + 1
        if self.probs_BKV is not None and prob_RV is not None:
            self.probs_BKV[rows_G, j] = prob_RV[going_R]

    @property
    def components_BK3(self) -> Tensor:
        """See `Draft`."""
        return self.scores_BK4[..., : len(COMPONENTS)]

    def draft(self, rule: Rule) -> Draft:
        """As far as the rule lets tokens be sent."""
        return Draft(
            tokens_BK=self.tokens_BK,
            lengths_B=rule.lengths(self.confidence_BK, self.made_B, self.components_BK3),
            confidence_BK=self.confidence_BK,
            components_BK3=self.components_BK3,
            probs_BKV=self.probs_BKV,
            logprob_BK=self.logprob_BK,
            made_B=self.made_B,
        )


def logprob_of(scores: Scores, tokens: Tensor, probs_V: Tensor | None) -> Tensor:
    """(...) float32 of tokens: by what they were drawn from (..., V), else of the likeliest."""
    probability = scores.max_prob if probs_V is None else probs_V.gather(-1, tokens[..., None]).squeeze(-1)
    return probability.float().log()
