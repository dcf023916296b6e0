"""A drafter of one pass over what the verifier made of the text so far (`cmasd.models.parallel_network`).

All tokens of a draft are computed at once; the rule then cuts each row's where it would have stopped a drafter that
goes token by token, and sees no confidence behind the cut. What the drafter knows of each row lies in `ParallelRunner`.

Shapes: B rows, K draft, S shortlist, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cmasd.confidence import Confidence
from cmasd.confidence.largest import Statistics
from cmasd.confidence.scores import Scores, score, scores_of
from cmasd.core import Draft, Request, Result
from cmasd.drafters.base import Context, Drafter, until_end
from cmasd.drafters.choice import Choice
from cmasd.drafters.growing import growing
from cmasd.drafters.model_tree import branch
from cmasd.drafters.sheet import logprob_of
from cmasd.policies import Rule
from cmasd.runner.base import Extent
from cmasd.runner.parallel_runner import ParallelRunner

REHEARSED_PLACES = 2
"""New places of a row in a usual draft: the verifier's token, and one that was accepted."""


class ParallelDrafter(Drafter):
    """Greedy, or sampling at a temperature."""

    def __init__(
        self,
        runner: ParallelRunner,
        max_draft_tokens: int,
        confidence: Confidence,
        choose: Choice,
        eos_ids: Tensor,
        branching: int = 1,
    ) -> None:
        """`branching`: of trees, most ways to go on behind a token."""
        self.runner = runner
        self.max_draft_tokens = max_draft_tokens
        self.confidence = confidence
        self.choose = choose
        self.eos_ids = eos_ids
        self._branching = branching
        self._is_one_call = runner.is_one_call and not choose.samples

    needs_host = False

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """Reads what the verifier's own prefill of the same rows has just computed; never later."""
        self.prefill(slots, [request.source for request in requests])

    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """The same, by sources."""
        self.runner.prefill(slots, sources)

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> Callable[[Tensor], None]:
        """The whole draft, of as many tokens as the policy allows."""
        self.runner.prefill(slots, sources)
        tokens_SL = torch.zeros(len(slots), self.runner.verifier.max_length, dtype=torch.int64)
        tokens_SL = tokens_SL.to(self.runner.verifier.device)

        def forward(starts_B: Tensor) -> None:
            self.runner.rewind(starts_B, REHEARSED_PLACES)
            proposal = self._propose(tokens_SL[: len(starts_B)], starts_B + 1, self.max_draft_tokens)
            proposal.confidence_BK.tolist()

        return forward

    def follow(self) -> None:
        """Keep the hidden states behind a row's first tokens."""
        if self.runner.verifier.ran is not None:
            self.runner.follow(self.eos_ids[:0])

    def move(self, source: int, target: int) -> None:
        """Copy what is known of the row."""
        self.runner.move(source, target)

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """Their memory may be given back."""
        self.runner.leave(slots)

    def reserve(self, extent: Extent) -> bool:
        """Nothing is ever left for later, and an iteration adds no more places than the longest window has."""
        self.runner.reserve(extent)
        return True

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """One pass, then the Markov head from token to token."""
        if rule.nodes:
            return self._grow(context, room_B, rule)
        if extent is None:
            most = min(rule.most, max(room_B.tolist()))
        else:
            most, extent = extent.window - 1, extent._replace(window=self.max_draft_tokens + 1)
        proposal = self._propose(context.tokens_BL, context.lengths_B, most, extent)
        drafted_B = until_end(proposal.tokens_BK, self.eos_ids, room_B)
        sent_B = rule.lengths(proposal.confidence_BK, drafted_B, proposal.components_BK3)
        return replace(proposal, lengths_B=sent_B, made_B=drafted_B)

    def _grow(self, context: Context, room_B: Tensor, rule: Rule) -> Draft:
        """A tree for each row, of one pass; the Markov head goes along every path."""
        trees, device = growing(rule, room_B, self.eos_ids, self._branching), room_B.device
        last_B = context.tokens_BL.gather(1, context.lengths_B[:, None] - 1).squeeze(1)
        most = min(rule.most, self.max_draft_tokens, max(room_B.tolist()))
        states, new_places = self.runner.forward(context.tokens_BL, context.lengths_B, most)
        self.caught_up = new_places <= self.max_draft_tokens + 1
        while trees.asked:
            depth = trees.depth
            rows_F, latest_F = trees.latest(device)
            logits_FS, judged_F = states.branch(depth, rows_F, latest_F if depth else last_B[rows_F])
            scores = score(logits_FS, self.confidence.margin_form)
            confidence_F = self.confidence.combine(scores, judged_F)
            branch(trees, self.choose, self._branching, logits_FS, confidence_F, scores)
        return trees.draft(device)

    def _propose(self, tokens_BL: Tensor, lengths_B: Tensor, most: int, extent: Extent | None = None) -> Draft:
        """`most` tokens for every row."""
        if extent is None and self._is_one_call:
            return self._proposed(*self.runner.propose(tokens_BL, lengths_B, most))
        latest_B = tokens_BL.gather(1, lengths_B[:, None] - 1).squeeze(1)
        states, new_places = self.runner.forward(tokens_BL, lengths_B, most, extent)
        self.caught_up = new_places <= self.max_draft_tokens + 1
        tokens, scored, probs = [], [], []
        for j in range(most):
            logits_BS = states.logits(j, latest_B)
            scored.append(score(logits_BS, self.confidence.margin_form))
            latest_B, prob_BV = self.choose(logits_BS, scored[-1].token)
            tokens.append(latest_B)
            probs.append(prob_BV)
        scores, tokens_BK = Scores.stack(scored), torch.stack(tokens, -1)
        probs_BKV = torch.stack([prob for prob in probs if prob is not None], 1) if self.choose.samples else None
        return Draft(
            tokens_BK=tokens_BK,
            lengths_B=torch.full_like(lengths_B, most),
            confidence_BK=self.confidence.combine(scores, states.judged()),
            components_BK3=scores.components,
            probs_BKV=probs_BKV,
            logprob_BK=logprob_of(scores, tokens_BK, probs_BKV),
        )

    def _proposed(self, tokens_BK: Tensor, numbers_BK6: Tensor, judged_BK: Tensor | None, new_places: int) -> Draft:
        """A pass that was one call."""
        self.caught_up = new_places <= self.max_draft_tokens + 1
        scores = scores_of(Statistics(tokens_BK, numbers_BK6.float()), self.confidence.margin_form)
        return Draft(
            tokens_BK=tokens_BK,
            lengths_B=tokens_BK.new_full((len(tokens_BK),), tokens_BK.shape[1]),
            confidence_BK=self.confidence.combine(scores, judged_BK),
            components_BK3=scores.components,
            logprob_BK=logprob_of(scores, tokens_BK, None),
        )

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """Keep the hidden states of the window."""
        self.runner.follow(context.lengths_B)
