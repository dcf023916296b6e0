"""A smaller model that drafts token by token with its own ragged cache.

`cached_B` says how many of a row's tokens its cache holds. The first forward of an iteration feeds
whatever is missing: one token after a rejection, two after a fully accepted draft (the bonus token
was never fed), more after plain iterations in which the drafter was skipped.

Shapes: B rows, T window, V vocabulary, J drafted so far.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cmasd.confidence import Confidence, Scores
from cmasd.confidence.largest import Statistics
from cmasd.confidence.scores import scores_of
from cmasd.core import Draft
from cmasd.drafters.base import Context, until_end
from cmasd.drafters.choice import Choice
from cmasd.kernels import kernels_for
from cmasd.policies import Policy
from cmasd.runner.base import Extent, Guesser, Runner
from cmasd.runner.constraints import Constraints


class Window(NamedTuple):
    """What is fed to all rows."""

    tokens_BT: Tensor
    """(B, T) int64, padded behind each row's last."""
    starts_B: Tensor
    """(B,) int64"""
    only_B: Tensor | None
    """(B,) int64: the place of each row's last token; None for T = 1."""


class Guesses(NamedTuple):
    """See `Draft`."""

    tokens_BK: Tensor
    confidence_BK: Tensor
    components_BK3: Tensor
    asked_B: Tensor | None
    """(B,) int64: as far as the policy let each row draft; None where it was not asked."""
    probs_BKV: Tensor | None = None


class Stop:
    """Asks the policy after each token, and remembers how far it let each row draft."""

    def __init__(self, policy: Policy) -> None:
        self.asks = policy.looks
        self.asked_B: Tensor | None = None
        self._policy = policy
        self._going_B: Tensor | None = None

    def __call__(self, confidence_BJ: Tensor, waits: bool) -> bool:
        """Whether no row goes on; where nobody may wait for the device, no."""
        goes_on = self._policy.goes_on(confidence_BJ)
        if goes_on is not None:
            return waits and not goes_on
        answer_B = self._policy.go_on(confidence_BJ)
        self._going_B = answer_B if self._going_B is None else self._going_B & answer_B
        self.asked_B = self._going_B + (1 if self.asked_B is None else self.asked_B)
        return waits and not bool(self._going_B.any())


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
    ) -> None:
        self.runner = runner
        self.policy = policy
        self.confidence = confidence
        self.constraints = constraints
        self.eos_ids = eos_ids
        self.choose = choose
        self.vocabulary_size = choose.vocabulary_size
        # With a shortlist columns are not ids; there a draft that breaks the verifier's rules is rejected.
        self._follows_rules = runner.shortlist is None and not constraints.is_free
        is_simple = not (self._follows_rules or choose.samples) and runner.vocabulary_size == choose.vocabulary_size
        self._native = runner.guesser() if is_simple else None
        self.drafts_at_once = self._native is not None
        self._cached = torch.zeros(runner.slots, dtype=torch.int64, device=runner.device)
        self._fed = 0
        self._later: dict[int, list[int]] = {}
        self.caught_up = True

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """Encode sources, or run prompts up to their last token."""
        if later:
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
            tokens_B1 = torch.zeros_like(starts_B)[:, None]
            if self._native is None:
                self.runner.forward(tokens_B1, starts_B)[:, 0].argmax(-1).tolist()
            else:
                self.runner.extent(len(starts_B), 1, int(starts_B.max()))
                self._native(tokens_B1[:, 0], starts_B, 1)

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
        late = [slot for slot in self._later if slot < len(room_B)] if extent is None else []
        if late:
            self.prefill(late, [self._later[slot] for slot in late])
        most = min(self.policy.max_draft_tokens, max(room_B.tolist())) if extent is None else extent.window - 1
        if self._native is not None and extent is None:
            guesses = self._guess_natively(self._native, context, most)
        else:
            guesses = self._guess(context, self._missing(context, extent), most, extent)
        self.caught_up = self.caught_up and not late
        self._fed = guesses.tokens_BK.shape[1] - 1
        drafted_B = until_end(guesses.tokens_BK, self.eos_ids, room_B)
        if guesses.asked_B is not None:
            drafted_B = drafted_B.minimum(guesses.asked_B)
        return Draft(
            tokens_BK=guesses.tokens_BK,
            lengths_B=self.policy.keep(guesses.confidence_BK, drafted_B),
            confidence_BK=guesses.confidence_BK,
            components_BK3=guesses.components_BK3,
            probs_BKV=guesses.probs_BKV,
        )

    def _guess(self, context: Context, window: Window, most: int, extent: Extent | None) -> Guesses:
        """Up to `most` tokens behind the window; fewer where the policy stops all rows."""
        tokens, confidences, scored, probs = [], [], [], []
        stop = Stop(self.policy)
        logits_BV = self._forward(*window, extent=extent)[:, 0]
        for j in range(most):
            if self._follows_rules:
                logits_BV = self._constrain(logits_BV, context, context.lengths_B + (j - 1))
            confidence_B, scores = self.confidence(logits_BV)
            token_B, prob_BV = self.choose(logits_BV, scores.token)
            tokens.append(token_B)
            confidences.append(confidence_B)
            scored.append(scores)
            probs.append(prob_BV)
            if self._follows_rules:
                context.tokens_BL.scatter_(1, context.lengths_B[:, None] + j, token_B[:, None])
            if j + 1 == most or (stop.asks and stop(torch.stack(confidences, -1), waits=extent is None)):
                break
            logits_BV = self._forward(token_B[:, None], context.lengths_B + j, extent=extent)[:, -1]
        return Guesses(
            tokens_BK=torch.stack(tokens, -1),
            confidence_BK=torch.stack(confidences, -1),
            components_BK3=Scores.stack(scored).components,
            asked_B=stop.asked_B,
            probs_BKV=torch.stack([p for p in probs if p is not None], 1) if self.choose.samples else None,
        )

    def _guess_natively(self, guesser: Guesser, context: Context, most: int) -> Guesses:
        """All tokens in one call, or one by one where the policy looks at each."""
        stop, lengths_B = Stop(self.policy), context.lengths_B
        cached_B = self._cached[: len(lengths_B)]
        count = 1 if stop.asks else most
        self.runner.extent(len(lengths_B), most - 1, max(lengths_B.tolist()))
        tokens_BK, numbers_BK6, missing = guesser.catch_up(context.tokens_BL, lengths_B, cached_B, count)
        self.caught_up = missing <= 2
        while True:
            scores = scores_of(Statistics(tokens_BK, numbers_BK6.float()), self.confidence.margin_form)
            confidence_BK = self.confidence.combine(scores)
            drafted = tokens_BK.shape[1]
            if drafted == most or stop(confidence_BK, waits=True):
                return Guesses(tokens_BK, confidence_BK, scores.components, stop.asked_B)
            found_B1, numbers_B16 = guesser(tokens_BK[:, -1], lengths_B + (drafted - 1), 1)
            tokens_BK = torch.cat([tokens_BK, found_B1], dim=1)
            numbers_BK6 = torch.cat([numbers_BK6, numbers_B16], dim=1)

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """The last drafted token was never fed, so at most drafted - 1 of them are in the cache."""
        if self._fed == 0:
            return
        kernels = kernels_for(accepted_B)
        if kernels is not None:
            kernels.keep(self._cached, accepted_B, self._fed)
        else:
            self._cached[: len(accepted_B)] += accepted_B.clamp_max(self._fed)
        self._fed = 0

    def _missing(self, context: Context, extent: Extent | None) -> Window:
        """Every token that the cache lacks, to be fed for good.

        Where the host may not look at how many those are, it is the last two of every row, one of them perhaps again.
        """
        cached_B = self._cached[: len(context.lengths_B)]
        starts_B = cached_B.clone() if extent is None else (context.lengths_B - 2).clamp_min(0)
        missing_B = context.lengths_B - starts_B
        most = int(missing_B.max()) if extent is None else 2
        self.caught_up = most <= 2
        cached_B.copy_(context.lengths_B)
        if most == 1:
            return Window(context.tokens_BL.gather(1, starts_B[:, None]), starts_B, None)
        offset_T = torch.arange(most, device=cached_B.device)
        where_BT = (starts_B[:, None] + offset_T).minimum(context.lengths_B[:, None] - 1)
        return Window(context.tokens_BL.gather(1, where_BT), starts_B, missing_B - 1)

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
