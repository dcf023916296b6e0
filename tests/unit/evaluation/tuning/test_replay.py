"""A replay is what the engine does: the same iterations, rows in them, drafts and acceptances, policy by policy."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Engine
from cmasd.evaluation.tuning.iteration_times import forward_seconds, lengths_of
from cmasd.evaluation.tuning.replay import Lengths, Recording, Walk, decode, record, schedule
from cmasd.policies import Observation, Policy
from cmasd.policies.costs import StepTable
from tests.unit.engine.pairs import decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of

K_MAX = 6
CASES = [("marian", "model"), ("t5", "model"), ("llama", "model"), ("marian", "parallel"), ("llama", "parallel")]
SETTINGS: list[tuple[int, float, list[float]]] = [
    (6, 5.0, [0.34, 0.33, 0.33]),
    (6, 2.6, [1.0, 0.0, 0.0]),
    (4, 1.7, [0.0, 1.0, 0.0]),
    (3, 3.0, [0.2, 0.1, 0.7]),
    (1, 1.0, [0.0, 0.0, 1.0]),
]
"""k_max, alpha, weights."""


def configured(kind: str, k_max: int = K_MAX, alpha: float = 1.0, **confidence: Any) -> Config:
    return tiny_config(
        drafter={"kind": kind, "max_draft_tokens": k_max},
        policy={"kind": "paper", "alpha": alpha},
        confidence={"kind": "ensemble", **confidence},
    )


def requests() -> list[Request]:
    return ragged_requests(17, seed=5)


@cache
def recorded(family: str, kind: str) -> Recording:
    return record(shared_pair(family), configured(kind), requests())


def eavesdropped(family: str, config: Config) -> tuple[Engine, list[Lengths]]:
    """An engine that has decoded the requests, and the shapes of its iterations."""
    engine = Engine(shared_pair(family), config)
    shapes: list[Lengths] = []
    own = engine.policy.observe

    def observe(self: Policy, observation: Observation) -> None:
        shapes.append(lengths_of(observation))
        own(observation)

    engine.policy.observe = observe.__get__(engine.policy)  # type: ignore[method-assign]
    list(engine.decode(requests()))
    return engine, shapes


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_recording_holds_the_output_of_plain_decoding(family: str, kind: str) -> None:
    found = recorded(family, kind)
    assert found.outputs == tokens_of(decode_plain(shared_pair(family), requests()))
    assert len(found.drafted_N) == sum(map(len, found.outputs.values()))
    assert int(found.drafted_N.max()) == K_MAX
    assert bool((found.accepted_N <= found.drafted_N).all())


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize(("k_max", "alpha", "weights"), SETTINGS)
def test_a_replay_is_what_the_engine_does(
    family: str, kind: str, k_max: int, alpha: float, weights: list[float]
) -> None:
    config = configured(kind, k_max, alpha, weights=weights)
    walks = recorded(family, kind).walks(config)
    engine, shapes = eavesdropped(family, config)
    assert schedule(walks, slots=3).shapes == shapes
    stats = engine.stats
    assert sum(sum(walk.drafted) for walk in walks) == stats.drafted_tokens
    assert sum(sum(walk.accepted) for walk in walks) == stats.accepted_tokens
    assert sum(len(walk.drafted) for walk in walks) == stats.row_iterations
    assert sum(walk.output_tokens for walk in walks) == stats.output_tokens
    if k_max > 1:
        assert 0 < stats.accepted_tokens < stats.drafted_tokens, "a drafter that is right now and then"


def test_settings_differ() -> None:
    """Else the test above would say little."""
    shapes = [
        tuple(schedule(recorded("marian", "model").walks(configured("model", k, alpha, weights=weights)), 3).shapes)
        for k, alpha, weights in SETTINGS
    ]
    assert len(set(shapes)) == len(SETTINGS)


def test_fixed_and_plain_are_replayed_too() -> None:
    config = configured("model", 4)
    fixed = replace(config, policy=replace(config.policy, kind="fixed"))
    plain = replace(config, policy=replace(config.policy, kind="plain"))
    found = recorded("marian", "model")
    assert schedule(found.walks(fixed), 3).shapes == eavesdropped("marian", fixed)[1]
    assert schedule(found.plain(), 3).shapes == eavesdropped("marian", plain)[1]


def test_telemetry_of_a_decoded_row_is_its_walk() -> None:
    """Lossy, decoded in two parts: their schedule is that of all rows at once."""
    config = configured("model", 4, 2.0)
    rule = replace(config.verification, kind="modulated", beta=64, tau_base=1.0, gamma=2.0)
    config = replace(config, verification=rule)
    parts = [decode(shared_pair("marian"), config, some) for some in (requests()[:6], requests()[6:])]
    walks = [Walk.of(result) for part in parts for result in part]
    assert schedule(walks, 3).shapes == eavesdropped("marian", config)[1]
    assert sum(result.mean_gap_nats for part in parts for result in part) > 0


def test_seconds_follow_from_the_table() -> None:
    walks = [Walk(0, 5, [2, 0], [1, 0], 3), Walk(1, 9, [3], [3], 4), Walk(2, 9, [1, 1, 1], [0, 0, 0], 3)]
    found = schedule(walks, slots=2)
    assert found.shapes == [(3, 1), (2, 1), (1, 0)]
    assert found.output_tokens == 10
    assert found.seconds(lambda lengths: len(lengths) + sum(lengths) / 10) == pytest.approx(6.8)


@pytest.mark.parametrize(("one_pass", "drafting"), [(False, 0.25 + 0.2 + 0.2), (True, 0.4)])
def test_an_iteration_pays_for_the_tokens_that_there_are(one_pass: bool, drafting: float) -> None:
    """Four rows send 3, 1, 0 and 0 tokens: eight are verified, and two, one and one rows are drafted for."""
    table = StepTable((1, 2, 3, 4), ((1.0, 2.0),) * 4, (0.2, 0.25, 0.3, 0.4), one_pass)
    assert forward_seconds(table, (3, 1, 0, 0)) == pytest.approx(2.0 + drafting)
