"""Costs of a forward: every shape is there, and a wider window of a wide model costs more."""

from dataclasses import replace

import pytest

from cmasd.evaluation.speed.steps import step_costs
from tests.unit.engine.pairs import ragged_requests, shared_pair, tiny_config

CONFIG = tiny_config()
SOURCES = [request.source for request in ragged_requests(3, seed=3)]


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_every_shape_of_both_models(family: str) -> None:
    costs = step_costs(shared_pair(family), CONFIG, SOURCES, [1, 4], seconds=0.1, query_tokens=(1, 3))
    shapes = [(cost.model, cost.rows, cost.query_tokens) for cost in costs]
    assert shapes == [
        (model, rows, window)
        for rows in (1, 4)
        for model, windows in (("verifier", (1, 3)), ("drafter", (1,)))
        for window in windows
    ]
    for cost in costs:
        one = next(c for c in costs if (c.model, c.rows, c.query_tokens) == (cost.model, cost.rows, 1))
        assert 0 < cost.low <= cost.milliseconds <= cost.high
        assert cost.ratio_to_one == pytest.approx(cost.milliseconds / one.milliseconds)


def test_work_shows_in_the_cost() -> None:
    """A window of 4,096 query tokens against one of 64."""
    costs = step_costs(shared_pair("marian"), CONFIG, SOURCES, [64], seconds=0.1, query_tokens=(1, 64))
    assert costs[1].ratio_to_one > 2


def test_a_pair_without_a_drafter() -> None:
    pair = replace(shared_pair("marian"), drafter=None, parallel=None)
    assert {cost.model for cost in step_costs(pair, CONFIG, SOURCES, [1], seconds=0.0, query_tokens=(1,))} == {
        "verifier"
    }


def test_a_drafter_of_one_pass_drafts_all_at_once() -> None:
    config = tiny_config(drafter={"kind": "parallel", "max_draft_tokens": 3})
    costs = step_costs(shared_pair("marian"), config, SOURCES, [2], seconds=0.0, query_tokens=(1, 2))
    assert [(cost.model, cost.query_tokens) for cost in costs] == [("verifier", 1), ("verifier", 2), ("drafter", 3)]
