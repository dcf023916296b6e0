"""A smaller model that drafts token by token with its own ragged cache.

`cached_B` says how many of a row's tokens its cache holds. The first forward of an iteration feeds
whatever is missing: one token after a rejection, two after a fully accepted draft (the bonus token
was never fed), more after plain iterations in which the drafter was skipped.

Shapes: B rows, T window, V vocabulary, J drafted so far.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cmasd.confidence import Confidence, Scores
from cmasd.core import Draft
from cmasd.drafters.base import Context, until_end
from cmasd.drafters.choice import Choice
from cmasd.policies import Policy
from cmasd.runner.base import Extent, Runner
from cmasd.runner.constraints import Constraints


class ModelDrafter:
    """Autoregressive drafting: greedy, or sampling at a temperature."""

    one_pass = False

    def __init__(
        self,
        runner: Runner,
        policy: Policy,
        confidence: Confidence,
        constraints: Constraints,
        choose: Choice,
        eos_ids: Tensor,
        shares_encoder: bool = False,
    ) -> None:
        """`shares_encoder`: rows are prefilled at once, since their sources have just been encoded for the verifier."""
        self.runner = runner
        self.shares_encoder = shares_encoder
        self.policy = policy
        self.confidence = confidence
        self.constraints = constraints
        self.eos_ids = eos_ids
        self.choose = choose
        self.vocabulary_size = choose.vocabulary_size
        # With a shortlist columns are not ids; there a draft that breaks the verifier's rules is rejected.
        self._follows_rules = runner.shortlist is None
        self._cached = torch.zeros(runner.slots, dtype=torch.int64, device=runner.device)
        self._fed = 0
        self._later: dict[int, list[int]] = {}
        self.caught_up = True

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """Encode sources, or run prompts up to their last token."""
        if later and not self.shares_encoder:
            self._later.update(zip(slots, sources, strict=True))
            return
        for slot in slots:
            self._later.pop(slot, None)
        self.runner.prefill(slots, sources)
        held = [0 if self.runner.is_encoder_decoder else len(source) - 1 for source in sources]
        self._cached[slots] = torch.tensor(held, device=self._cached.device)

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> Callable[[Tensor], None]:
        """One token for each row."""
        self.runner.prefill(slots, sources)

        def forward(starts_B: Tensor) -> None:
            self.runner.forward(torch.zeros_like(starts_B)[:, None], starts_B)[:, 0].argmax(-1).tolist()

        return forward

    def move(self, source: int, target: int) -> None:
        """Copy the row's cache as far as it is filled."""
        self._later.pop(target, None)
        if source in self._later:
            self._later[target] = self._later.pop(source)
            return
        self.runner.move(source, target)
        self._cached[target] = self._cached[source]

    def reserve(self, extent: Extent) -> bool:
        """Rows that were left for later make up for it in a draft that may look."""
        self.runner.extent(extent.rows, 0, extent.length)
        return not any(slot < extent.rows for slot in self._later)

    def draft(self, context: Context, room_B: Tensor, extent: Extent | None = None) -> Draft:
        """Draft until the policy stops every row, or as far as the longest room goes."""
        lengths_B = context.lengths_B
        late = [slot for slot in self._later if slot < len(lengths_B)] if extent is None else []
        if late:
            self.prefill(late, [self._later[slot] for slot in late])
        logits_BV = self._catch_up(context, extent)
        self.caught_up = self.caught_up and not late
        most = min(self.policy.max_draft_tokens, int(room_B.max())) if extent is None else extent.window - 1
        tokens, confidences, scored, probs = [], [], [], []
        going_B, asked_B = None, room_B.clamp_max(1)
        for j in range(most):
            if self._follows_rules:
                logits_BV = self._constrain(logits_BV, context, lengths_B + (j - 1))
            confidence_B, scores = self.confidence(logits_BV)
            token_B, prob_BV = self.choose(logits_BV, scores.token)
            tokens.append(token_B)
            confidences.append(confidence_B)
            scored.append(scores)
            probs.append(prob_BV)
            if self._follows_rules:
                context.tokens_BL.scatter_(1, lengths_B[:, None] + j, token_B[:, None])
            if j + 1 == most:
                break
            if self.policy.looks:
                answer_B = self.policy.go_on(torch.stack(confidences, -1))
                going_B = answer_B if going_B is None else going_B & answer_B
                asked_B = asked_B + going_B
                if extent is None and not going_B.any():
                    break
            logits_BV = self._forward(token_B[:, None], lengths_B + j, extent=extent)[:, -1]
        self._fed = len(tokens) - 1
        tokens_BK, confidence_BK = torch.stack(tokens, -1), torch.stack(confidences, -1)
        drafted_B = until_end(tokens_BK, self.eos_ids, room_B.minimum(asked_B) if self.policy.looks else room_B)
        return Draft(
            tokens_BK=tokens_BK,
            lengths_B=self.policy.keep(confidence_BK, drafted_B),
            confidence_BK=confidence_BK,
            components_BK3=Scores.stack(scored).components,
            probs_BKV=torch.stack([p for p in probs if p is not None], 1) if self.choose.samples else None,
        )

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """The last drafted token was never fed, so at most drafted - 1 of them are in the cache."""
        self._cached[: len(accepted_B)] += accepted_B.clamp_max(self._fed)

    def _catch_up(self, context: Context, extent: Extent | None) -> Tensor:
        """Feed every token that the cache lacks, for good; returns the logits (B, V) after the last one.

        Where the host may not look at how many those are, it is the last two of every row, one of them perhaps again.
        """
        cached_B = self._cached[: len(context.lengths_B)]
        starts_B = cached_B if extent is None else (context.lengths_B - 2).clamp_min(0)
        missing_B = context.lengths_B - starts_B
        most = int(missing_B.max()) if extent is None else 2
        self.caught_up = most <= 2
        if most == 1:
            logits_BV = self._forward(context.tokens_BL.gather(1, starts_B[:, None]), starts_B)[:, 0]
        else:
            offset_T = torch.arange(most, device=cached_B.device)
            where_BT = (starts_B[:, None] + offset_T).minimum(context.lengths_B[:, None] - 1)
            logits_BV = self._forward(context.tokens_BL.gather(1, where_BT), starts_B, missing_B - 1, extent)[:, 0]
        cached_B.copy_(context.lengths_B)
        return logits_BV

    def _forward(
        self, tokens_BT: Tensor, starts_B: Tensor, only_B: Tensor | None = None, extent: Extent | None = None
    ) -> Tensor:
        """Logits over the verifier's vocabulary; an id that this model lacks is read as its last one."""
        own = self.runner.vocabulary_size
        if own < self.vocabulary_size:
            tokens_BT = tokens_BT.clamp_max(own - 1)
        logits_BTV = self.runner.forward(tokens_BT, starts_B, only_B, extent)
        if own == self.vocabulary_size or self.runner.shortlist is not None:
            return logits_BTV
        return torch.nn.functional.pad(logits_BTV, (0, self.vocabulary_size - own), value=-torch.inf)

    def _constrain(self, logits_BV: Tensor, context: Context, starts_B: Tensor) -> Tensor:
        limits_B, last_B1 = context.limits_B, context.tokens_BL.gather(1, starts_B[:, None])
        return self.constraints.apply(
            logits_BV[:, None], context.tokens_BL, starts_B, context.prompt_lengths_B, limits_B, last_B1
        )[:, 0]
