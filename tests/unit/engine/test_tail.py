"""The end of a job: where slots run empty, what is known already is drafted further ahead."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.core import Request
from cmasd.engine import Engine
from cmasd.engine.tail import LIKELY, MOST_DRAFTED, Tail, lengthened, most_drafted
from cmasd.policies import GoodputPolicy, Rule
from cmasd.telemetry.stats import EngineStats
from tests.unit.engine.pairs import decode, decode_plain, shared_pair, tiny_config, tokens_of

USUAL, SLOTS = 3, 8


def config_of(kind: Any = "previous", policy: str = "goodput", slots: int = SLOTS) -> Any:
    drafter = {"kind": kind, "max_draft_tokens": USUAL}
    return tiny_config(policy={"kind": policy}, drafter=drafter, engine={"slots": slots})


@pytest.mark.parametrize(("rows", "most"), [(8, 3), (7, 3), (6, 4), (4, 7), (2, 15), (1, 31)])
def test_the_width_that_nobody_uses_is_spent_on_the_rows_that_are_left(rows: int, most: int) -> None:
    """No more tokens than all slots with usual drafts."""
    rule = Tail(config_of(), SLOTS).longer(Rule.always(USUAL), rows)
    assert rule is not None
    assert rule.most == most
    assert rows * (1 + most) <= SLOTS * (1 + USUAL)


def test_there_is_an_end_to_it() -> None:
    rule = Tail(config_of(), 100).longer(Rule.always(USUAL), 1)
    assert rule is not None
    assert rule.most == MOST_DRAFTED


def test_what_a_policy_keeps_short_stays_short() -> None:
    tail = Tail(config_of(), SLOTS)
    assert tail.longer(None, 1) is None
    short = Rule.always(USUAL - 1)
    assert tail.longer(short, 1) is short


def test_the_same_rule_comes_of_the_same() -> None:
    tail, rule = Tail(config_of(), SLOTS), Rule.always(USUAL)
    assert tail.longer(rule, 2) is tail.longer(rule, 2)
    assert tail.longer(rule, 2) is not tail.longer(replace(rule), 2)


@pytest.mark.parametrize("policy", ["goodput", "survival", "fixed", "paper", "plain"])
@pytest.mark.parametrize(("kind", "is_free"), [("previous", True), (["memory", "model"], True), ("model", False)])
def test_only_free_drafts_by_confidence_grow(kind: Any, is_free: bool, policy: str) -> None:
    grows = is_free and policy in ("goodput", "survival")
    assert most_drafted(config_of(kind, policy)) == (MOST_DRAFTED if grows else 0 if policy == "plain" else USUAL)


def test_a_lengthened_rule_is_the_same_up_to_its_end_and_sends_what_is_likely_behind_it() -> None:
    confidence = torch.tensor([[0.9] * 12, [0.9] * 4 + [0.3] * 8, [0.2] * 12])
    drafted = torch.tensor([12, 12, 12])
    always, picky = (
        Rule.always(3),
        Rule(np.array([0.5, 0.5, np.inf]), np.full(3, 0.5), slope=1.0, offsets_K=np.zeros(3)),
    )
    assert lengthened(always, 12).lengths(confidence, drafted).tolist() == [11, 4, 3]
    assert 0.9**11 > LIKELY > 0.9**12
    assert lengthened(picky, 12).lengths(confidence, drafted).tolist() == [6, 4, 0]
    assert 0.9**6 > 0.5 > 0.9**7
    assert lengthened(Rule.always(1), 2).lengths(confidence, drafted).tolist() == [2, 2, 1]


def test_what_was_spared_is_counted() -> None:
    """Half of an iteration's tokens beyond the usual four of a row: half as many iterations more."""
    tail, stats = Tail(config_of(slots=2), 2), EngineStats()
    tail.count(stats, [9, 9], 1.0)
    assert (stats.tail_seconds, stats.tail_saved_seconds) == (0, 0)
    tail.count(stats, [5], 1.0)
    assert (stats.tail_seconds, stats.tail_saved_seconds) == (1.0, 0.5)


@pytest.mark.parametrize("policy", ["goodput", "survival"])
def test_a_long_row_that_is_left_takes_fewer_iterations(policy: str) -> None:
    """And its output is the same."""
    pair = shared_pair("marian", max_new_tokens=40)
    requests = [Request(key, list(range(5 + key, 13 + key)), 3 if key else 40) for key in range(4)]
    plain = decode_plain(pair, requests)
    known = [replace(one, previous=plain[one.key].token_ids.tolist()) for one in requests]

    def run(slots: int) -> tuple[int, EngineStats]:
        engine = Engine(pair, config_of(policy=policy, slots=slots))
        if isinstance(engine.policy, GoodputPolicy):
            engine.policy.plan = lambda rows: Rule.always(USUAL)  # type: ignore[method-assign]
        results = {result.key: result for result in engine.decode(known)}
        assert tokens_of(results) == tokens_of(plain)
        return results[0].num_iterations, engine.stats

    alone, stats = run(slots=1)
    assert alone == 10, "one slot, which is never empty"
    assert stats.tail_seconds == 0
    left, stats = run(slots=4)
    assert left <= 5
    assert stats.tail_saved_seconds > 0


def test_fixed_lengths_stay_as_somebody_chose_them() -> None:
    pair, [request] = shared_pair("marian"), [Request(0, list(range(5, 13)), 24)]
    plain = decode_plain(pair, [request])
    known = [replace(request, previous=plain[0].token_ids.tolist())]
    assert decode(pair, config_of(policy="fixed"), known)[0].num_iterations == 6
