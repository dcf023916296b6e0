"""Seconds of an iteration by live rows and drafted tokens, for replays: a table of forwards at the engine's level.

The table (`cmasd.engine.costs`) holds forwards alone; what an engine does besides is a factor on it, one for plain and
one for drafting iterations, from rows decoded both ways on this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Engine, Pair
from cmasd.evaluation.baseline import EngineDecoder, plain_config
from cmasd.policies import GoodputPolicy, Observation, Policy
from cmasd.policies.costs import StepTable

Iteration = tuple[int, int, float]
"""Live rows, drafted tokens, seconds."""


@dataclass(frozen=True)
class IterationTimes:
    """Never changes, so that trials are judged alike."""

    seconds_RK: tuple[tuple[float, ...], ...]
    """By live rows - 1, and tokens of the longest draft."""
    plain_level: float
    """What iterations took over what their forwards take by the table."""
    drafting_level: float

    def seconds(self, rows: int, drafted: int) -> float:
        """Of one iteration."""
        return self.seconds_RK[rows - 1][drafted]


def measure_times(pair: Pair, config: Config, requests: Sequence[Request]) -> IterationTimes:
    """For up to `engine.slots` rows and `drafter.max_draft_tokens`; decodes the requests six times."""
    most, slots = config.drafter.max_draft_tokens, config.engine.slots
    assert slots is not None, "resolved"
    exact = replace(config, verification=replace(config.verification, kind="exact"))
    table = _table(pair, exact)
    plain = _iterations(pair, plain_config(exact), requests)
    drafting = [
        iteration
        for k in sorted({1, most})
        for iteration in _iterations(pair, _fixed(exact, k), requests)
        if iteration[1] == k
    ]
    levels = [_level(table, iterations) for iterations in (plain, drafting)]
    seconds = tuple(
        tuple(levels[k > 0] * table.seconds(rows, k) for k in range(most + 1)) for rows in range(1, slots + 1)
    )
    return IterationTimes(seconds, *levels)


def _table(pair: Pair, config: Config) -> StepTable:
    policy = Engine(pair, replace(config, policy=replace(config.policy, kind="goodput"))).policy
    assert isinstance(policy, GoodputPolicy), "the policy that was asked for"
    assert policy.costs is not None, "the engine measures for it"
    return policy.costs.table


def _fixed(config: Config, k: int) -> Config:
    return replace(
        config,
        policy=replace(config.policy, kind="fixed", quality_budget_nats_per_token=0.0),
        drafter=replace(config.drafter, max_draft_tokens=k, min_draft_tokens=1),
    )


def _level(table: StepTable, iterations: Sequence[Iteration]) -> float:
    ratios = [seconds / table.seconds(rows, drafted) for rows, drafted, seconds in iterations]
    return median(ratios) if ratios else 1.0


def _iterations(pair: Pair, config: Config, requests: Sequence[Request]) -> Sequence[Iteration]:
    """Of a warm engine."""
    decoder = EngineDecoder(pair, config)
    decoder.decode(list(requests))
    log = _Log(decoder.engine.policy)
    decoder.engine.policy = log
    decoder.decode(list(requests))
    return log.iterations


class _Log(Policy):
    """Decides as another policy does, and keeps what the engine tells it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.max_draft_tokens = policy.max_draft_tokens
        self.iterations: list[Iteration] = []

    def plan(self, rows: int) -> int:
        return self.policy.plan(rows)

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        return self.policy.go_on(confidence_BJ)

    def observe(self, observation: Observation) -> None:
        if observation.is_typical:
            self.iterations.append((*observation.draft.tokens_BK.shape, observation.seconds))
        self.policy.observe(observation)
