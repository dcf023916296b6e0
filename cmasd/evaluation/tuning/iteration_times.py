"""Seconds of an iteration by its rows' drafts, for replays: a table of forwards at the engine's level.

The table (`cmasd.engine.measured_costs`) holds forwards alone; what an engine does besides is a factor on it, one for
plain and one for drafting iterations, from rows decoded both ways in turns. A machine that does other work makes
both too long, never too short, and is allowed for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Engine, Pair
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config
from cmasd.evaluation.tuning.replay import Lengths
from cmasd.policies import GoodputPolicy, Observation, Policy, Rule
from cmasd.policies.costs import StepTable

ROUNDS = 2
Iteration = tuple[Lengths, float]
"""The rows' drafts, and seconds."""


@dataclass(frozen=True)
class IterationTimes:
    """Never changes, so that trials are judged alike."""

    table: StepTable
    plain_level: float
    """What iterations took over what their forwards take by the table."""
    drafting_level: float

    def seconds(self, lengths: Lengths) -> float:
        """Of one iteration."""
        level = self.drafting_level if any(lengths) else self.plain_level
        return level * forward_seconds(self.table, lengths)


@lru_cache(maxsize=1 << 16)
def forward_seconds(table: StepTable, lengths: Lengths) -> float:
    """Of the drafter over the rows that still go on, then of the verifier over each row's last token and its draft."""
    rows = len(lengths)
    going = [sum(length > j for length in lengths) for j in range(max(lengths))]
    if table.one_pass:
        going = [rows] if going else []
    return table.verify_seconds(rows, rows + sum(lengths)) + sum(map(table.draft_seconds, going))


def measure_times(pair: Pair, config: Config, requests: Sequence[Request]) -> IterationTimes:
    """For up to `engine.slots` rows and `drafter.max_draft_tokens`; three engines decode the requests in turns."""
    most, slots = config.drafter.max_draft_tokens, config.engine.slots
    assert slots is not None, "resolved"
    exact = replace(config, verification=replace(config.verification, kind="exact"))
    table = enveloped(_table(pair, exact))
    ways = {0: plain_config(exact), 1: _fixed(exact, 1), most: _fixed(exact, most)}
    decoders = {k: EngineDecoder(pair, way) for k, way in ways.items()}
    logs: dict[int, _Log] = {}
    for _ in range(1 + ROUNDS):
        for k, decoder in decoders.items():
            decoder.decode(list(requests))
            if k not in logs:  # the first time warms up
                decoder.engine.policy = logs[k] = _Log(decoder.engine.policy)
    plain = logs[0].iterations
    drafting = [iteration for k, log in logs.items() for iteration in log.iterations if 0 < k == max(iteration[0])]
    levels = [_level(table, iterations) for iterations in (plain, drafting)]
    return IterationTimes(table, *levels)


def enveloped(table: StepTable) -> StepTable:
    """No forward takes longer than one with as many rows and tokens or more: what was measured so was disturbed."""
    verify_RT, draft_R = np.array(table.verify)[::-1, ::-1], np.array(table.draft)[::-1]
    least_RT = np.minimum.accumulate(np.minimum.accumulate(verify_RT, axis=0), axis=1)[::-1, ::-1]
    least_R = np.minimum.accumulate(draft_R)[::-1]
    return replace(table, verify=tuple(map(tuple, least_RT.tolist())), draft=tuple(least_R.tolist()))


def _table(pair: Pair, config: Config) -> StepTable:
    policy = Engine(pair, replace(config, policy=replace(config.policy, kind="goodput"))).policy
    assert isinstance(policy, GoodputPolicy), "the policy that was asked for"
    assert policy.costs is not None, "the engine measures for it"
    return policy.costs


def _fixed(config: Config, k: int) -> Config:
    return replace(
        config,
        policy=replace(config.policy, kind="fixed"),
        drafter=replace(config.drafter, max_draft_tokens=k, min_draft_tokens=1),
    )


def _level(table: StepTable, iterations: Sequence[Iteration]) -> float:
    """The lower quartile: what disturbs an iteration lengthens it."""
    ratios = [seconds / forward_seconds(table, lengths) for lengths, seconds in iterations]
    return float(np.quantile(ratios, 0.25)) if ratios else 1.0


class _Log(Policy):
    """Decides as another policy does, and keeps what the engine tells it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.max_draft_tokens = policy.max_draft_tokens
        self.iterations: list[Iteration] = []

    def plan(self, rows: int) -> Rule | None:
        return self.policy.plan(rows)

    def observe(self, seen: Observation) -> None:
        if seen.is_typical:
            self.iterations.append((lengths_of(seen), seen.seconds))
        self.policy.observe(seen)


def lengths_of(seen: Observation) -> Lengths:
    """What the rows of an iteration sent."""
    return tuple(sorted(seen.lengths_B.tolist(), reverse=True))
