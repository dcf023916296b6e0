"""Accept a draft token exactly when it is the verifier's argmax: the output equals greedy AR."""

from collections.abc import Sequence
from typing import Self

import torch

from cmasd.confidence.largest import argmax
from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits, Verdict
from cmasd.kernels import kernels_for
from cmasd.verification.base import Verification, pick, prefix_length

NO_TOLERANCE = torch.zeros(())


class ExactVerification(Verification):
    """Lossless, token for token."""

    needs_host = False

    @classmethod
    def of(cls, config: VerificationConfig, eos_ids: Sequence[int]) -> Self:
        """It has no settings."""
        return cls()

    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """The argmax of each position, as far as the draft agrees; no tolerance."""
        kernels, is_plain = kernels_for(logits.values_NV), draft.tokens_BK.shape[1] == 0
        if kernels is not None:
            judged = kernels.accept(logits.values_NV, logits.firsts_B1, draft.tokens_BK, draft.lengths_B)
            return Verdict(*judged, draft.confidence_BK if is_plain else NO_TOLERANCE.expand(draft.tokens_BK.shape))
        best_BT = logits.by_row(argmax(logits.values_NV))
        if is_plain:
            return Verdict(draft.lengths_B, best_BT[:, 0], draft.confidence_BK)
        accepted_B = prefix_length(draft.tokens_BK == best_BT[:, :-1], draft.lengths_B)
        tau_BK = torch.zeros((), device=best_BT.device).expand(draft.tokens_BK.shape)
        return Verdict(accepted_B, pick(best_BT, accepted_B), tau_BK)
