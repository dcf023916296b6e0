"""Draft while it raises the expected tokens per second; decode plainly where nothing does.

    Theta(K) = expected tokens of all rows with K drafted tokens each / seconds of that iteration

Before an iteration, Theta is compared over K with the acceptance rates of the latest iterations: where K = 0 wins the
drafter is skipped, and tried again now and then; where it would win even if every token were accepted, not even tried.
While drafting, the next token is drafted as long as some longer draft has a higher Theta, with each row's own
calibrated survival (DSpark, arXiv 2607.05147, whose budget is a number of query tokens; here an iteration pays for its
longest row, as a batch of equal windows does, so all rows draft to one length). The stop depends on confidences already
seen, never on later ones, so speculative sampling stays lossless.

Shapes: B rows, J tokens drafted so far, K draft.
"""

import torch
from torch import Tensor

from cmasd.policies.acceptance import Calibration, Rates
from cmasd.policies.base import Observation, Policy
from cmasd.policies.costs import IterationCosts

TRIAL = 5
"""Drafting iterations that a trial takes at least; the first has to catch up and is not timed."""
FIRST_TRIAL_ROWS, TRIAL_ROWS = (64, 256), (24, 64)
"""Rows, added up over iterations, that a trial takes at least, and where it does not look lost: with one row at a time
five iterations say nothing of acceptance, and little of costs, since a drafter that rested is in no cache (the first
ones take half as long again)."""
REMEMBERED = 64
"""Rows of before a trial, added up over iterations, that still count: acceptance drifts, since rows come sorted by
length (from 1.7 to 2.8 tokens per iteration within one shard of short sentences)."""
NEAR, LOST = 0.9, 0.8
"""Where drafting comes to less than this: a loss that need not be looked at so often; a trial that need not go on."""
SHORTEST_REST, LONGEST_NEAR_REST, LONGEST_REST = 256, 1024, 4096
"""Plain iterations between trials: twice as many after each that fails, because catching up is not free; and four times
after one that was lost."""
LEAST_GAIN, STILL_GAINS = 1.06, 1.04
"""Theta of drafting over that of plain decoding, to be worth a change; and once drafting, to be worth what choosing a
length costs, which is in no iteration's time: with less to gain it came to 0.96 of plain decoding."""
TIMED_EVERY = 8
"""Of so many iterations of a rest one is timed: where a model is small, all of them would cost it a percent."""
LEARNED_EVERY = 4
"""Of so many drafting iterations that nobody looks into one is learned from, outside of trials: all would cost two
percent of an iteration of one row."""
RATES_EVERY = 32
"""Drafting iterations between looks at the acceptance rates, which change slowly."""
PLAIN_EVERY, PLAIN, TIMED = 256, 8, 4
"""Drafting iterations between plain ones that keep the comparison honest, how many of those, and how many are timed:
the last, since the first ones after drafting take up to a fifth longer."""
STALE = 16
"""Plain iterations are looked at that are older than so many drafting ones, where drafting no longer seems to pay, or
seems to with a number of rows that plain ones were never timed with."""


class GoodputPolicy(Policy):
    """One length for all rows, chosen in every iteration; 0 is plain decoding."""

    plans_ahead = True

    def __init__(self, max_draft_tokens: int) -> None:
        self.max_draft_tokens = max_draft_tokens
        self.acceptance = Rates(max_draft_tokens)
        self.calibration = Calibration(max_draft_tokens)
        """Of the confidence, where it is looked at."""
        self.costs: IterationCosts | None = None
        """Set by the engine, which can measure."""
        self.looks = True
        """Whether to look at the confidence of a draft while it is made; else `plan` takes the length that is best by
        the acceptance rates. Set by the engine: iterations of a shape decided beforehand, and drafts that are one call
        of a kernel, gain nothing by stopping.
        """
        self._is_first = self._is_due = True
        """A trial is to be made, or going on."""
        self._is_trying = False
        """Whether it has begun."""
        self._trial_left = self._trial_length = 0
        """Drafting iterations that it takes at least; tokens drafted: the most at first, to see them all, then those
        that seem best."""
        self._trial_rows = self._judged_at = self._trial_most = 0
        """Rows, added up over its iterations: so far, when it is judged, and when it ends."""
        self._pays = False
        """Whether Theta was last found to gain from drafting."""
        self._plain_left = 0
        self._is_rest = False
        """Whether those plain iterations are a rest, or a look at what they cost."""
        self._rest = SHORTEST_REST
        self._since_plain = PLAIN_EVERY
        self._looked_for = 0
        self._since_rates = 0
        self._best = 0, 0
        """For so many rows, the length that was planned last."""
        self._rates: list[float] = []
        self._seconds: list[float] = []

    def goodput(self, rows: int) -> list[float]:
        """Theta(K) in tokens per second for K = 0, 1, ... max_draft_tokens, before anything is drafted."""
        self._look(rows)
        theta, tokens, last = [rows / self._seconds[0]], float(rows), float(rows)
        for rate, seconds in zip(self._rates, self._seconds[1:], strict=True):
            last *= rate
            tokens += last
            theta.append(tokens / seconds)
        return theta

    def _look(self, rows: int) -> None:
        """What is known at the beginning of an iteration, looked up once in it."""
        if self._looked_for == rows:
            return
        assert self.costs is not None, "the engine sets the costs"
        self._looked_for = rows
        if self._since_rates >= RATES_EVERY or not self._rates:
            self._since_rates, self._rates = 0, self.acceptance.rates().tolist()
        self._seconds = [self.costs.seconds(rows, k) for k in range(self.max_draft_tokens + 1)]

    def most_gain(self, rows: int) -> float:
        """Theta of drafting over that of plain decoding if every token were accepted."""
        self._look(rows)
        return max((1 + k) * self._seconds[0] / self._seconds[k] for k in range(1, self.max_draft_tokens + 1))

    def plan(self, rows: int) -> int:
        """The longest draft, or 0 where plain decoding wins and no trial is due."""
        if self._plain_left:
            return 0
        if self._is_due:
            if self.most_gain(rows) <= LEAST_GAIN:
                self._plain_left, self._is_rest = SHORTEST_REST, True
                self._is_due, self._is_trying = not self._is_trying, False
                return 0
            if self._tries(rows):
                return self._trial_length
        if self._best[0] == rows and 0 < self._since_rates < RATES_EVERY and self._since_plain < PLAIN_EVERY:
            return self._best[1]
        assert self.costs is not None, "the engine sets the costs"
        theta = self.goodput(rows)
        gain = max(theta[1:]) / theta[0]
        pays = gain > (STILL_GAINS if self._pays else LEAST_GAIN)
        is_old = self._since_plain >= PLAIN_EVERY or (self._pays and not pays and self._since_plain >= STALE)
        if is_old or (pays and self._since_plain >= STALE and not self.costs.knows(rows, 0)):
            self._plain_left, self._is_rest, self._best = PLAIN, False, (0, 0)
            if is_old:
                self.costs.forget(drafting=False)
            return 0
        self._pays = pays
        if not pays:
            longest = LONGEST_NEAR_REST if gain > NEAR else LONGEST_REST
            self._plain_left = min(self._rest * (4 if gain < LOST else 1), longest)
            self._rest, self._is_rest = 2 * self._plain_left, True
            return 0
        self._rest = SHORTEST_REST
        self._best = rows, self._best_length(theta, rows)
        return self._best[1]

    def _best_length(self, theta: list[float], rows: int) -> int:
        """A neighbour of the best that is near by the table alone comes first: until it is measured."""
        if self.looks:
            return self.max_draft_tokens
        assert self.costs is not None, "the engine sets the costs"
        best = theta.index(max(theta[1:]), 1)
        beside = [k for k in (best - 1, best + 1) if 1 <= k <= self.max_draft_tokens]
        near = [k for k in beside if theta[k] > NEAR * theta[best] and not self.costs.knows(rows, k)]
        return near[0] if near else best

    def _tries(self, rows: int) -> bool:
        """Whether the trial that is due goes on; it begins here."""
        if not self._is_trying:
            self._trial_length, self._trial_rows = self.max_draft_tokens, 0
            self._trial_left = 1 if self._is_first else TRIAL
            self._judged_at, self._trial_most = FIRST_TRIAL_ROWS if self._is_first else TRIAL_ROWS
        elif self._trial_left == 0 and self._judged_at <= self._trial_rows < self._trial_most:
            theta = self.goodput(rows)
            if max(theta[1:]) > LOST * theta[0]:
                self._trial_length = self._best_length(theta, rows)
                self._judged_at = min(self._trial_most, self._trial_rows + RATES_EVERY * rows)
        self._is_due = self._is_trying = self._trial_left > 0 or self._trial_rows < self._judged_at
        self._is_first = self._is_first and self._is_due
        return self._is_due

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        """(B,), the same for all rows."""
        return torch.full((len(confidence_BJ),), self.goes_on(confidence_BJ), device=confidence_BJ.device)

    def goes_on(self, confidence_BJ: Tensor) -> bool:
        """Does a longer draft have a higher Theta?"""
        if not self.looks:
            return True
        self._look(len(confidence_BJ))
        return self._longer_pays(len(confidence_BJ), self.calibration.survival(confidence_BJ).sum(0).tolist())

    def cut(self, confidence_BK: Tensor, drafted_B: Tensor) -> Tensor:
        """See `Policy.cut`; all rows are cut to one length."""
        rows, most = confidence_BK.shape
        if not self.looks:
            return super().cut(confidence_BK, drafted_B)
        self._look(rows)
        survival_K = self.calibration.survival(confidence_BK).sum(0).tolist()
        length = 1
        while length < most and self._longer_pays(rows, survival_K[:length]):
            length += 1
        return self.keep(confidence_BK, drafted_B.clamp_max(length))

    def _longer_pays(self, rows: int, survival_J: list[float]) -> bool:
        """Whether some draft longer than J tokens has a higher Theta; of the tokens to come, past rates are known."""
        drafted = len(survival_J)
        tokens = rows + sum(survival_J)
        now = tokens / self._seconds[drafted]
        last = survival_J[-1]
        for rate, seconds in zip(self._rates[drafted:], self._seconds[drafted + 1 :], strict=True):
            last *= rate
            tokens += last
            if tokens / seconds > now:
                return True
        return False

    def observe(self, observation: Observation) -> None:
        """Learn costs and acceptance; count down to the next trial."""
        if self._plain_left > PLAIN and self._plain_left % TIMED_EVERY:
            self._plain_left -= 1
            return
        self._looked_for = 0
        rows, drafted = observation.draft.tokens_BK.shape
        if drafted and not self._is_due and not self.looks and self._since_plain % LEARNED_EVERY:
            self._since_plain += 1
            self._since_rates += 1
            return
        assert self.costs is not None, "the engine sets the costs"
        if observation.is_typical and not TIMED < self._plain_left <= PLAIN:
            self.costs.observe(rows, drafted, observation.seconds)
        if drafted:
            self.acceptance.observe(observation.draft, observation.verdict)
            if self.looks:
                self.calibration.observe(observation.draft, observation.verdict)
            self._since_plain += 1
            self._trial_rows += rows
            self._trial_left = max(0, self._trial_left - 1)
            self._since_rates = self._since_rates + 1 if self._rates and not self._is_due else RATES_EVERY
            return
        self._since_plain = 0
        if self._plain_left:
            self._plain_left -= 1
            if self._plain_left == 0 and self._is_rest and not self._is_due:
                self._is_due = True
                self.costs.forget(drafting=True)
                self.acceptance.forget(REMEMBERED)
