"""A smaller model that drafts token by token with its own ragged cache.

Its cache holds `held` tokens of each row. The first forward of an iteration feeds whatever is missing: one token after
a rejection, two after a fully accepted draft (the bonus token was never fed), more after plain iterations in which the
drafter was skipped. Each further forward runs only the rows that the rule lets go on.

Shapes: B rows, R rows that go on, T window, V vocabulary, J drafted so far, K the longest draft.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cmasd.confidence import Confidence, Insight
from cmasd.confidence.largest import Statistics
from cmasd.confidence.scores import Scores, scores_of
from cmasd.config.speculation import INSIGHTS
from cmasd.core import Draft, Request, Result
from cmasd.drafters.base import Context, Drafter, is_one_of, until_end
from cmasd.drafters.choice import Choice
from cmasd.drafters.model_tree import ModelTrees
from cmasd.drafters.sheet import Sheet, logprob_of
from cmasd.generation.constraints import Constraints
from cmasd.kernels import PackedRule, kernels_for
from cmasd.policies import EDGE, Rule
from cmasd.runner.base import Extent, Guesser, Runner
from cmasd.window import Window


class ModelDrafter(Drafter):
    """Autoregressive drafting: greedy, or sampling at a temperature."""

    one_pass = False
    needs_host = False

    def __init__(
        self,
        runner: Runner,
        confidence: Confidence,
        constraints: Constraints,
        choose: Choice,
        eos_ids: Tensor,
        branching: int = 1,
    ) -> None:
        """`branching`: of trees, most ways to go on behind a token."""
        self.runner = runner
        self.confidence = confidence
        self.constraints = constraints
        self.eos_ids = eos_ids
        self.choose = choose
        self.vocabulary_size = choose.vocabulary_size
        # With a shortlist columns are not ids; there a draft that breaks the verifier's rules is rejected.
        self.follows_rules = runner.shortlist is None and not constraints.is_free
        self._insight = None
        if confidence.kind in INSIGHTS:
            self._insight = Insight(confidence.kind, runner.output_rows, runner.logits)
        is_simple = not (self.follows_rules or choose.samples) and runner.vocabulary_size == choose.vocabulary_size
        is_simple = is_simple and self._insight is None
        self._native = runner.guesser(eos_ids) if is_simple else None
        self._rule: tuple[Rule, PackedRule | None] | None = None
        self._held = torch.zeros(runner.slots, dtype=torch.int64, device=runner.device)
        self._made_B: Tensor | None = None
        self._states_Fd: Tensor | None = None
        """Last hidden states behind which logits were asked for last, where anyone looks at them."""
        self._trees = ModelTrees(self, branching)
        self._is_tree = False
        self._later: dict[int, list[int]] = {}
        self.caught_up = True

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """Their sources are all that it needs."""
        self.prefill(slots, [request.source for request in requests], later)

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """Encode sources, or run prompts up to their last token."""
        if later:
            self._later.update(zip(slots, sources, strict=True))
            return
        for slot in slots:
            self._later.pop(slot, None)
        self.runner.prefill(slots, sources)
        held = [0 if self.runner.is_encoder_decoder else len(source) - 1 for source in sources]
        self._held[slots] = torch.tensor(held, device=self._held.device)

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> Callable[[Tensor], None]:
        """One token for each row."""
        self.runner.prefill(slots, sources)

        def forward(starts_B: Tensor) -> None:
            window = Window.rectangle(torch.zeros_like(starts_B)[:, None], starts_B)
            if self._native is None:
                self.runner.run(window).argmax(-1).tolist()
            else:
                self.runner.extent(len(starts_B), 1, int(starts_B.max()))
                self._native(window)

        return forward

    def move(self, source: int, target: int) -> None:
        """Copy the row's cache as far as it is filled."""
        self._later.pop(target, None)
        if source in self._later:
            self._later[target] = self._later.pop(source)
            return
        self.runner.move(source, target)
        self._held[target] = self._held[source]

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """Their memory may be given back."""
        self.runner.leave(slots)

    def reserve(self, extent: Extent) -> bool:
        """Rows that were left for later make up for it in a draft that may look."""
        self.runner.extent(extent.rows, 0, extent.length)
        return not any(slot < extent.rows for slot in self._later)

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """Draft until the rule stops every row, or as far as the longest room goes."""
        if extent is not None:
            draft = self._draft_at(context, room_B, rule, extent)
        else:
            late = [slot for slot in self._later if slot < len(room_B)]
            if late:
                self.prefill(late, [self._later[slot] for slot in late])
            most = min(rule.most, max(room_B.tolist()))
            is_packed, packed = self._packed(rule)
            if rule.nodes:
                draft = self._trees.draft(context, room_B, rule)
            elif self._native is not None and is_packed:
                draft = self._draft_natively(self._native, context, room_B, most, packed)
            else:
                draft = self._draft_by_steps(context, room_B, most, rule)
            self.caught_up = self.caught_up and not late
        self._made_B, self._is_tree = draft.made_B, rule.nodes > 0
        return draft

    def _packed(self, rule: Rule) -> tuple[bool, PackedRule | None]:
        """Whether a kernel can follow the rule, and what it is given: None where the rule does not look."""
        linear = self.confidence.linear
        if not rule.looks or linear is None:
            return not rule.looks, None
        if self._rule is None or self._rule[0] is not rule:
            calibration = None
            if rule.slope is not None and rule.offsets_K is not None:
                calibration = (rule.slope, rule.offsets_K, EDGE)
            is_mean, more_2 = rule.statistic == "mean", rule.weights_2
            self._rule = rule, PackedRule(rule.go_on_K, rule.keep_K, is_mean, calibration, *linear, more_2)
        return True, self._rule[1]

    def _draft_natively(
        self, guesser: Guesser, context: Context, room_B: Tensor, most: int, rule: PackedRule | None
    ) -> Draft:
        """All in one call."""
        lengths_B = context.lengths_B
        held_B = self._held[: len(lengths_B)]
        self.runner.extent(len(lengths_B), most - 1, max(lengths_B.tolist()))
        made = guesser.catch_up(context.tokens_BL, lengths_B, held_B, room_B, most, rule)
        self.caught_up = made.missing <= 2
        scores = scores_of(Statistics(made.tokens_BK, made.numbers_BK6.float()), self.confidence.margin_form)
        return Draft(
            tokens_BK=made.tokens_BK,
            lengths_B=made.sent_B,
            confidence_BK=self.confidence.combine(scores),
            components_BK3=scores.components,
            made_B=made.made_B,
            logprob_BK=logprob_of(scores, made.tokens_BK, None),
        )

    def _draft_by_steps(self, context: Context, room_B: Tensor, most: int, rule: Rule) -> Draft:
        """Token by token; where forwards are graphs, which want one shape, rows that stop are run along."""
        sheet = Sheet(len(room_B), most, self.vocabulary_size if self.choose.samples else None, room_B.device)
        window = self._missing(context, room_B)
        rows_R, going_R = window.slots_R, room_B[window.slots_R] > 0
        for j in range(most):
            before_R = context.lengths_B[rows_R] + j
            logits_RV = self.behind(window)
            if self.follows_rules:
                logits_RV = self._constrain(logits_RV, context, rows_R, before_R - 1)
            confidence_R, scores = self.score(logits_RV)
            token_R, prob_RV = self.choose(logits_RV, scores.token)
            sheet.write(rows_R, j, going_R, token_R, confidence_R, scores, prob_RV)
            if self.follows_rules:
                context.tokens_BL[rows_R, before_R] = token_R
            going_R = going_R & (room_B[rows_R] > j + 1) & ~is_one_of(token_R, self.eos_ids)
            if rule.looks:
                going_R &= rule.goes_on(sheet.confidence_BK[rows_R, : j + 1], sheet.components_BK3[rows_R, : j + 1])
            if j + 1 == most or not going_R.any():
                break
            if not self.runner.wants_all:
                rows_R, token_R, before_R = rows_R[going_R], token_R[going_R], before_R[going_R]
                going_R = going_R[going_R]
            window = Window.singles(token_R, rows_R, before_R, covers_first=self.runner.wants_all)
        return sheet.draft(rule)

    def behind(self, window: Window, asked_Q: Tensor | None = None) -> Tensor:
        """(R, V): the logits behind each run, or (Q, V) those that are asked for, over the verifier's vocabulary."""
        own = self.runner.vocabulary_size
        if own < self.vocabulary_size:
            window = replace(window, tokens_N=window.tokens_N.clamp_max(own - 1))  # ids that this model lacks
        asked_Q = window.firsts_R1[1:] - 1 if asked_Q is None else asked_Q
        logits_QV = self.runner.run(window, asked_Q)
        if self._insight is not None and self.runner.ran is not None:
            self._states_Fd = self.runner.ran[1][asked_Q]
        return self._widened(logits_QV)

    def score(self, logits_FV: Tensor) -> tuple[Tensor, Scores]:
        """Confidence (F,), and what is behind it, of the logits that were asked for last."""
        if self._insight is None:
            return self.confidence(logits_FV)
        assert self._states_Fd is not None, "a forward lies behind"
        return self.confidence(logits_FV, self._insight(logits_FV, self._states_Fd))

    def _widened(self, logits: Tensor) -> Tensor:
        """Over the verifier's vocabulary."""
        own = self.runner.vocabulary_size
        if own == self.vocabulary_size or self.runner.shortlist is not None:
            return logits
        return torch.nn.functional.pad(logits, (0, self.vocabulary_size - own), value=-torch.inf)

    def _missing(self, context: Context, room_B: Tensor) -> Window:
        """Of rows with room, or of all where forwards are graphs."""
        wants_all = self.runner.wants_all
        return self.missing(context, ((room_B > 0) | wants_all).nonzero().squeeze(1))

    def missing(self, context: Context, rows_R: Tensor) -> Window:
        """Every token that the cache lacks of these rows, to be fed for good; the latest at least."""
        wants_all = self.runner.wants_all and len(rows_R) == len(context.lengths_B)
        lengths_R = context.lengths_B[rows_R]
        starts_R = self._held[rows_R].minimum(lengths_R - 1)
        self._held[rows_R] = lengths_R
        window = Window.stretch(context.tokens_BL, rows_R, starts_R, lengths_R, covers_first=wants_all)
        self.caught_up = window.longest <= 2
        return window

    def _constrain(self, logits_RV: Tensor, context: Context, rows_R: Tensor | None, starts_R: Tensor) -> Tensor:
        """The verifier's rules, for the token behind `starts_R` of these rows; None: of all."""
        parts = context.tokens_BL, context.prompt_lengths_B, context.limits_B
        tokens_RL, prompts_R, limits_R = parts if rows_R is None else (part[rows_R] for part in parts)
        last_R1 = tokens_RL.gather(1, starts_R[:, None])
        return self.constraints.apply(logits_RV[:, None], tokens_RL, starts_R, prompts_R, limits_R, last_R1)[:, 0]

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """The last drafted token was never fed, so at most drafted - 1 of them are in the cache."""
        if self._is_tree:
            self._held[: len(accepted_B)] += self._trees.commit(context, accepted_B)
            self._is_tree = False
            return
        if self._made_B is None:
            return
        kernels = kernels_for(accepted_B)
        if kernels is not None:
            kernels.keep(self._held, accepted_B, self._made_B)
        else:
            self._held[: len(accepted_B)] += accepted_B.minimum((self._made_B - 1).clamp_min(0))
        self._made_B = None

    def rewind(self, rows_R: Tensor, lengths_R: Tensor) -> None:
        """In place of `commit`: of these rows, what the cache holds from `lengths_R` on is of no use."""
        self._held[rows_R] = self._held[rows_R].minimum(lengths_R)
        self._made_B = None

    # ---------------------------------------------------------------- of a shape decided beforehand

    def _draft_at(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent) -> Draft:
        """As many tokens for every row, and the host looks at nothing: the first forward feeds the last two tokens of
        every row, one of them perhaps again.
        """
        rows, most = len(room_B), extent.window - 1
        tokens, confidences, scored = [], [], []
        starts_B = (context.lengths_B - 2).clamp_min(0)
        where_B2 = torch.stack([starts_B, (starts_B + 1).minimum(context.lengths_B - 1)], dim=1)
        logits_BTV = self._forward_at(
            context.tokens_BL.gather(1, where_B2), starts_B, context.lengths_B - 1 - starts_B, extent
        )
        for j in range(most):
            logits_BV = logits_BTV[:, -1]
            if self.follows_rules:
                logits_BV = self._constrain(logits_BV, context, None, context.lengths_B + (j - 1))
            confidence_B, score = self.score(logits_BV)
            token_B, _ = self.choose(logits_BV, score.token)
            tokens.append(token_B)
            confidences.append(confidence_B)
            scored.append(score)
            if self.follows_rules:
                context.tokens_BL.scatter_(1, context.lengths_B[:, None] + j, token_B[:, None])
            if j + 1 < most:
                logits_BTV = self._forward_at(token_B[:, None], context.lengths_B + j, None, extent)
        self._held[:rows] = context.lengths_B
        self.caught_up = True
        tokens_BK, confidence_BK = torch.stack(tokens, -1), torch.stack(confidences, -1)
        scores = Scores.stack(scored)
        components_BK3 = scores.components
        drafted_B = until_end(tokens_BK, self.eos_ids, room_B)
        return Draft(
            tokens_BK=tokens_BK,
            lengths_B=rule.lengths(confidence_BK, drafted_B, components_BK3),
            confidence_BK=confidence_BK,
            components_BK3=components_BK3,
            made_B=torch.full_like(drafted_B, most),
            logprob_BK=logprob_of(scores, tokens_BK, None),
        )

    def _forward_at(self, tokens_BT: Tensor, starts_B: Tensor, only_B: Tensor | None, extent: Extent) -> Tensor:
        """(B, 1, V): the logits behind each row's last token."""
        if self.runner.vocabulary_size < self.vocabulary_size:
            tokens_BT = tokens_BT.clamp_max(self.runner.vocabulary_size - 1)
        logits_BTV = self.runner.forward(tokens_BT, starts_B, only_B, extent)
        if self._insight is not None and (hidden_BTd := self.runner.hidden_BTd) is not None:
            last_B = torch.zeros_like(starts_B) if only_B is None else only_B
            self._states_Fd = hidden_BTd.take_along_dim(last_B[:, None, None], dim=1)[:, 0]
        return self._widened(logits_BTV)
