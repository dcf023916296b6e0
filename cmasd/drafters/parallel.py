"""A drafter of one pass over what the verifier keeps anyway (`cmasd.runner.parallel`).

It has no cache, so there is nothing to prefill, to catch up on or to roll back: between two iterations it remembers
one vector of each row, the verifier's hidden state from which the row's latest token was said. All tokens of a draft
are computed at once; the policy then cuts it where it would have stopped a drafter that goes token by token, and sees
no confidence behind the cut.

Shapes: B rows, K draft, d width, r rank, S shortlist, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cmasd.confidence import Confidence
from cmasd.confidence.largest import argmax
from cmasd.core import Draft
from cmasd.drafters.base import Context
from cmasd.drafters.choice import Choice
from cmasd.policies import Policy
from cmasd.runner.base import Runner
from cmasd.runner.parallel import ParallelModel


class ParallelDrafter:
    """Greedy, or sampling at a temperature."""

    def __init__(
        self,
        model: ParallelModel,
        verifier: Runner,
        policy: Policy,
        confidence: Confidence,
        choose: Choice,
        eos_ids: Tensor,
    ) -> None:
        self.model = model
        self.verifier = verifier
        self.policy = policy
        self.confidence = confidence
        self.choose = choose
        self.eos_ids = eos_ids
        self._seen_Sd = torch.zeros(verifier.slots, model.shape.width, dtype=verifier.dtype, device=verifier.device)

    caught_up = True
    one_pass = True

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """Follows the verifier's own prefill of the same rows: take what it saw of a prompt."""
        if self.verifier.hidden_BTd is not None:
            self._seen_Sd[slots] = self.verifier.hidden_BTd[:, 0]

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> Callable[[Tensor], None]:
        """The whole draft, of as many tokens as the policy allows."""

        def forward(starts_B: Tensor) -> None:
            proposal = self._propose(torch.zeros_like(starts_B), starts_B, self.policy.max_draft_tokens)
            proposal.confidence_BK.tolist()

        return forward

    def move(self, source: int, target: int) -> None:
        """Copy the row's vector."""
        self._seen_Sd[target] = self._seen_Sd[source]

    def draft(self, context: Context, room_B: Tensor) -> Draft:
        """One pass, then the Markov head from token to token."""
        cached_B = context.lengths_B - 1
        latest_B = context.tokens_BL.gather(1, cached_B[:, None]).squeeze(1)
        most = min(self.policy.max_draft_tokens, int(room_B.max()))
        proposal = self._propose(latest_B, cached_B, most)
        drafted_B = self._until_end(proposal.tokens_BK, room_B)
        return replace(proposal, lengths_B=self.policy.cut(proposal.confidence_BK, drafted_B))

    def _propose(self, latest_B: Tensor, cached_B: Tensor, most: int) -> Draft:
        """`most` tokens for every row."""
        rows = len(cached_B)
        memory = self.verifier.memory(cached_B, self.model.shape.layers)
        states = self.model(self._seen_Sd[:rows], latest_B, cached_B, memory, most)
        tokens, logits, probs = [], [], []
        for j in range(most):
            logits_BS = states.logits(j, latest_B)
            latest_B, prob_BV = self.choose(logits_BS, argmax(logits_BS))
            tokens.append(latest_B)
            logits.append(logits_BS)
            probs.append(prob_BV)
        judged_N, scores = self.confidence(torch.stack(logits, 1).flatten(0, 1), states.judged())
        components_N3 = torch.stack([scores.entropy, scores.margin, scores.softmax], dim=-1)
        return Draft(
            tokens_BK=torch.stack(tokens, -1),
            lengths_B=torch.full_like(cached_B, most),
            confidence_BK=judged_N.view(rows, most),
            components_BK3=components_N3.view(rows, most, 3),
            probs_BKV=torch.stack([prob for prob in probs if prob is not None], 1) if self.choose.samples else None,
        )

    def commit(self, accepted_B: Tensor) -> None:
        """Remember the hidden state behind the last accepted token: the verifier said the row's latest token there."""
        hidden_BTd = self.verifier.hidden_BTd
        assert hidden_BTd is not None, "commit follows a forward"
        if hidden_BTd.shape[1] == 1:
            self._seen_Sd[: len(accepted_B)] = hidden_BTd[:, 0]
        else:
            self._seen_Sd[: len(accepted_B)] = hidden_BTd.take_along_dim(accepted_B[:, None, None], dim=1)[:, 0]

    def _until_end(self, tokens_BK: Tensor, room_B: Tensor) -> Tensor:
        """(B,): nothing is drafted behind an end of sequence."""
        open_BK = ~torch.isin(tokens_BK, self.eos_ids)
        return (open_BK.long().cumprod(-1).sum(-1) + 1).minimum(room_B)
