"""Trees are judged as the best of their paths would be, each as a draft of its own."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits
from cmasd.verification.trees import judge
from tests.unit.verification.drafts import VOCABULARY, rule_of

ROWS, MOST = 30, 9


@pytest.fixture(params=["in C", "in Python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler, and as without."""
    if request.param == "in Python":
        monkeypatch.setattr("cmasd.verification.trees.kernels_for", lambda tensor: None)


def random_trees(seed: int) -> tuple[Draft, Logits, list[list[int]]]:
    """Trees of tokens that are often likely, the logits behind their tokens, and the parents."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sizes = [choose.randint(0, MOST) for _ in range(ROWS)]
    firsts_B1 = torch.tensor([0, *(1 + size for size in sizes)]).cumsum(0)
    values_NV = 2 * torch.randn(int(firsts_B1[-1]), VOCABULARY, generator=generator, dtype=torch.float64)
    tokens_BK = torch.zeros(ROWS, MOST, dtype=torch.int64)
    parents = [[choose.randrange(-1, number) for number in range(MOST)] for _ in range(ROWS)]
    for row, size in enumerate(sizes):
        taken: dict[int, int] = {}
        for number in range(size):
            parent = parents[row][number]
            rank = taken[parent] = taken.get(parent, choose.choice([-1, 0])) + 1
            tokens_BK[row, number] = values_NV[firsts_B1[row] + 1 + parent].argsort(descending=True)[rank]
    confidence_BK = torch.rand(ROWS, MOST, generator=generator)
    draft = Draft(tokens_BK, torch.tensor(sizes), confidence_BK, torch.zeros(ROWS, MOST, 3))
    return replace(draft, parents_BK=torch.tensor(parents)), Logits(values_NV, firsts_B1, MOST + 1), parents


def paths_of(parents: list[int], size: int) -> list[list[int]]:
    """From the root to every token."""
    paths: list[list[int]] = []
    for number in range(size):
        paths.append([*(paths[parents[number]] if parents[number] >= 0 else []), number])
    return [[], *paths]


KINDS: list[dict[str, Any]] = [{"kind": "exact"}, {"kind": "relaxed", "tau": 1.0, "beta": 3}, {"kind": "typical"}]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["kind"]))
def test_the_verdict_is_that_of_the_path_that_goes_furthest_by_the_likeliest_ways(kind: dict[str, Any]) -> None:
    rule = rule_of(VerificationConfig(**kind))
    branched = 0
    for seed in range(4):
        tree, logits, parents = random_trees(seed)
        judged = judge(rule, tree, logits)
        index_M, counts_B = judged.kept
        kept = index_M.split(counts_B.tolist())
        for row in range(ROWS):
            first, accepted = int(logits.firsts_B1[row]), int(judged.verdict.accepted_B[row])
            outcomes = []
            for path in paths_of(parents[row], int(tree.lengths_B[row])):
                here = torch.tensor(path, dtype=torch.int64)
                alone = Draft(
                    tree.tokens_BK[row, here][None],
                    torch.tensor([len(path)]),
                    tree.confidence_BK[row, here][None],
                    torch.zeros(1, len(path), 3),
                )
                values_TV = logits.values_NV[first + torch.tensor([0, *(number + 1 for number in path)])]
                verdict = rule.verify(alone, Logits.rectangle(values_TV[None]))
                outcomes.append((int(verdict.accepted_B), int(verdict.next_B), path))
            mine = [number - first - 1 for number in kept[row].tolist()[1:]]
            assert (accepted, int(judged.verdict.next_B[row]), mine) in [
                (count, following, path[:count]) for count, following, path in outcomes
            ]
            if kind["kind"] == "exact":
                assert accepted == max(count for count, _, _ in outcomes)
            branched += mine != list(range(accepted))
    assert branched > 5, "some paths are not the first"


def test_of_ways_that_are_as_likely_the_one_that_plain_decoding_takes_is_gone() -> None:
    values_NV = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    tree = Draft(torch.tensor([[2, 1]]), torch.tensor([2]), torch.ones(1, 2), torch.zeros(1, 2, 3))
    tree = replace(tree, parents_BK=torch.tensor([[-1, -1]]))
    judged = judge(rule_of(VerificationConfig()), tree, Logits(values_NV, torch.tensor([0, 3]), 3))
    assert judged.draft.tokens_BK.tolist() == [[1]]
    assert judged.verdict.next_B.tolist() == [1]
