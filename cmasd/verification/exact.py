"""Accept a draft token exactly when it is the verifier's argmax: the output equals greedy AR."""

from torch import Tensor

from cmasd.core import Draft, Verdict
from cmasd.verification.base import pick, prefix_length


class ExactVerification:
    """Lossless, token for token."""

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """One argmax per position; no tolerance."""
        best_BT = logits_BTV.argmax(-1)
        accepted_B = prefix_length(draft.tokens_BK == best_BT[:, :-1], draft.lengths_B)
        return Verdict(accepted_B, pick(best_BT, accepted_B), draft.confidence_BK.new_zeros(draft.confidence_BK.shape))
