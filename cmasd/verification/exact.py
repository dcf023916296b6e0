"""Accept a draft token exactly when it is the verifier's argmax: the output equals greedy AR."""

import torch
from torch import Tensor

from cmasd.confidence.largest import argmax
from cmasd.core import Draft, Verdict
from cmasd.kernels import kernels_for
from cmasd.verification.base import pick, prefix_length


class ExactVerification:
    """Lossless, token for token."""

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """One argmax per position; no tolerance."""
        best_BT = argmax(logits_BTV)
        if draft.tokens_BK.shape[1] == 0:
            return Verdict(draft.lengths_B, best_BT[:, 0], draft.confidence_BK)
        tau_BK = torch.zeros((), device=best_BT.device).expand(draft.tokens_BK.shape)
        kernels = kernels_for(logits_BTV)
        if kernels is not None:
            return Verdict(*kernels.accept(draft.tokens_BK, draft.lengths_B, best_BT), tau_BK)
        accepted_B = prefix_length(draft.tokens_BK == best_BT[:, :-1], draft.lengths_B)
        return Verdict(accepted_B, pick(best_BT, accepted_B), tau_BK)
