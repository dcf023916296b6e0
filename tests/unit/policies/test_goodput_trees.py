"""Goodput decodes by trees where these are measured to be faster, and rows are few."""

from dataclasses import replace

import numpy as np
import pytest

from cmasd.policies import GoodputPolicy, Observation, Rule
from cmasd.policies.costs import StepTable
from tests.unit.policies.machine import Machine, sure_or_not

MOST, NODES = 4, 12
IDLE = StepTable(rows=(1, 32), verify=((1.0, 1.02, 1.04, 1.06, 1.08), (3.0, 3.1, 3.2, 3.3, 3.4)), draft=(0.1, 0.2))
"""A verifier that looks at more tokens for little."""


class TreeMachine(Machine):
    """Ways beside the likeliest one double the chance of those that it refuses; they cost as chosen."""

    dear = 0.0
    """Seconds of a tree beyond those of a chain."""

    def iteration(self, rule: Rule | None, rows: int) -> Observation:
        self.nodes = [*getattr(self, "nodes", []), 0 if rule is None else rule.nodes]
        if rule is None or not rule.nodes:
            return super().iteration(rule, rows)
        alone = self.acceptance
        self.acceptance = lambda confidence_BK: 1 - (1 - alone(confidence_BK)) / 2
        seen = super().iteration(rule, rows)
        self.acceptance = alone
        self._quiet += self.dear
        return replace(seen, seconds=seen.seconds + self.dear)


def machine_of(rows: int, dear: float) -> tuple[TreeMachine, int]:
    """After 1,500 iterations; and how many of the last 500 were of trees."""
    policy = GoodputPolicy(MOST, clock=lambda: 0.0, tree_nodes=NODES)
    policy.learn_costs(IDLE)
    machine = TreeMachine(IDLE, MOST, sure_or_not(0.5, 0.7, 0.4), seed=rows)
    machine.dear = dear
    machine.run(policy, 1500, rows)
    return machine, int((np.array(machine.nodes[-500:]) > 0).sum())


@pytest.mark.parametrize(("rows", "nodes"), [(1, 12), (2, 6), (4, 3)])
def test_trees_that_pay_are_found(rows: int, nodes: int) -> None:
    machine, trees = machine_of(rows, dear=0.0)
    assert trees > 400
    assert set(machine.nodes) == {0, nodes}, "rows share what is idle"


def test_trees_that_are_dear_are_given_up() -> None:
    machine, trees = machine_of(1, dear=1.0)
    assert max(machine.nodes) == NODES, "they were looked at"
    assert trees < 50


def test_many_rows_leave_nothing_idle() -> None:
    assert max(machine_of(32, dear=0.0)[0].nodes) == 0
