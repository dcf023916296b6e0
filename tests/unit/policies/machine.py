"""A made-up machine that decodes with a policy: its true costs, noise and acceptance are known."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from cmasd.policies.base import Float64, Int64, Observation, Policy, Rule
from cmasd.policies.costs import StepTable

Confidences = Callable[[np.random.Generator, int, int], Float64]
"""(B, K) of B rows."""


def sure_or_not(share: float, sure: float, unsure: float) -> Confidences:
    """Tokens of which that share is as likely to be accepted as the one, and the others as the other."""
    return lambda rng, rows, most: np.where(rng.random((rows, most)) < share, sure, unsure)


@dataclass
class Machine:
    """Changes of its fields take effect with the next iteration."""

    costs: StepTable
    """Seconds that forwards really take."""
    most: int
    """Tokens that a row may draft."""
    confidences: Confidences
    acceptance: Callable[[Float64], Float64] = field(default=lambda confidence_BK: confidence_BK)
    """Of tokens with these confidences."""
    overhead: float = 0.0
    """Seconds of an iteration that no forward takes."""
    noise: float = 0.05
    outliers: float = 0.01
    """Share of iterations that take three to twenty times as long."""
    long: float = 0.0
    """How much more iterations of half as many rows as ever take than by the costs: what is left of a list is long."""
    cold: float = 0.0
    """How much longer the first iteration takes that drafts where the one before did not, or the other way round; half
    of that two iterations later, and so on."""
    wander: float = 0.0
    """Deviation of the log of the machine's load, which changes within a hundred iterations."""
    beside: float = 0.0
    """Seconds that the drafter needs before an iteration that drafts, for the sources of new rows."""
    known: float = 1.0
    """Share of iterations in which the drafter knows anything, of all that it is asked in."""
    asking: float = 0.0
    """Seconds that it takes to ask."""
    seed: int = 0
    told: list[tuple[int, int, int, float]] = field(default_factory=list)
    """Of each iteration: rows, tokens drafted, tokens made, seconds without noise."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self._drafted_last = False
        self._alike = 0
        self._load = 0.0
        self._most_rows = 1

    def run(self, policy: Policy, iterations: int, rows: int = 8) -> "Machine":
        """Iterations of so many rows."""
        self._most_rows = max(rows, self._most_rows)
        for _ in range(iterations):
            rule = policy.plan(rows)
            seen = self.iteration(rule, rows)
            policy.observe(seen)
            made = rows + int(seen.accepted_B.sum())
            self.told.append((rows, int(seen.drafted_B.sum()), made, self._quiet))
        return self

    def iteration(self, rule: Rule | None, rows: int) -> Observation:
        """One, as it goes."""
        zeros_B = np.zeros(rows, dtype=np.int64)
        self._alike = self._alike + 1 if self._drafted_last == (rule is not None) else 0
        if rule is None or (self.known < 1 and self.rng.random() >= self.known):
            self._drafted_last, asked = False, rule is not None
            seconds = self._taken(self.costs.verify_seconds(rows, rows) + self.asking * asked, rows)
            return Observation(zeros_B, zeros_B, np.zeros((rows, 0)), zeros_B, seconds, is_typical=True, asked=asked)
        confidence_BK = self.confidences(self.rng, rows, self.most)
        drafted_B, lengths_B = followed(rule, confidence_BK, self.costs.one_pass)
        taken_BK = self.rng.random(confidence_BK.shape) < self.acceptance(confidence_BK)
        accepted_B = np.minimum(np.logical_and.accumulate(taken_BK, axis=1).sum(1), lengths_B)
        seconds = self.asking + self.costs.verify_seconds(rows, rows + int(lengths_B.sum()))
        forwards = 1 if self.costs.one_pass else int(drafted_B.max())
        seconds += sum(self.costs.draft_seconds(int((drafted_B > place).sum())) for place in range(forwards))
        catches_up = not self._drafted_last
        if catches_up:
            seconds += 2 * self.costs.draft_seconds(rows)
        self._drafted_last = True
        taken = self._taken(seconds, rows)
        self._quiet += self.beside
        return Observation(lengths_B, accepted_B, confidence_BK, drafted_B, taken, not catches_up, beside=self.beside)

    def speed(self, latest: int = 0) -> float:
        """Tokens of a row per second, over plain decoding without noise."""
        told = np.array(self.told[-latest:])
        return float((told[:, 2] / told[:, 0] * self._plain(told[:, 0])).sum() / told[:, 3].sum())

    def drafting(self, latest: int = 0) -> float:
        """Share of iterations."""
        return float((np.array(self.told[-latest:])[:, 1] > 0).mean())

    def _plain(self, rows_I: Float64) -> Float64:
        known = {int(rows): self.costs.verify_seconds(int(rows), rows) + self.overhead for rows in set(rows_I)}
        return np.array([known[int(rows)] * (1 + self.long * 2 * (1 - rows / self._most_rows)) for rows in rows_I])

    def _taken(self, seconds: float, rows: int) -> float:
        self._quiet = (seconds + self.overhead) * (1 + self.long * 2 * (1 - rows / self._most_rows))
        self._quiet *= 1 + self.cold * 0.5 ** (self._alike / 2)
        seconds = self._quiet * float(np.exp(self._load + self.rng.normal(0, self.noise)))
        self._load = 0.99 * self._load + 0.14 * self.wander * float(self.rng.normal())
        return seconds * float(self.rng.uniform(3, 20)) if self.rng.random() < self.outliers else seconds


def followed(rule: Rule, confidence_BK: Float64, one_pass: bool) -> tuple[Int64, Int64]:
    """Tokens that each row drafts and sends."""
    s_BK = rule.statistics(confidence_BK[:, : rule.most])
    going_BK = np.logical_and.accumulate(s_BK[:, :-1] >= rule.go_on_K[:-1], axis=1)
    sent_BK = s_BK >= rule.keep_K
    sent_BK[:, 1:] &= going_BK
    drafted_B = np.full(len(s_BK), confidence_BK.shape[1]) if one_pass else 1 + going_BK.sum(1)
    return drafted_B, np.logical_and.accumulate(sent_BK, axis=1).sum(1)


MS = 1e-3
"""Seconds."""


def in_milliseconds(
    rows: tuple[int, ...], verify: tuple[tuple[float, ...], ...], draft: tuple[float, ...]
) -> StepTable:
    """Seconds of what is given in milliseconds."""
    return StepTable(
        rows, tuple(tuple(MS * one for one in window) for window in verify), tuple(MS * one for one in draft)
    )


MODEL = in_milliseconds(
    rows=(1, 8, 32),
    verify=((1, 1.07, 1.095, 1.12, 1.29, 1.46), (3, 4.02, 5.48, 6.93, 8.26, 9.6), (9, 15.1, 20.7, 26.4, 32.1, 37.9)),
    draft=(0.48, 1.17, 2.7),
)
"""The bundled pair on two cores."""
HEADS = replace(MODEL, draft=(0.05 * MS, 0.15 * MS, 0.45 * MS), one_pass=True)
