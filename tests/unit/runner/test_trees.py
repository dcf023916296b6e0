"""A token of a tree gets what it would get behind its ancestors alone, and a path that is kept is as if run alone.

By kernels and, with `graphs`, by tensor operations; with chains beside the trees, at different lengths, in any slots.
"""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmasd.runner import Runner, load_runner
from cmasd.window import Window
from tests.unit.runner.test_parity import Row as Plain
from tests.unit.runner.test_parity import plain_logits
from tests.unit.runner.tiny import FAMILIES, tiny_model

SLOTS, MAX_LENGTH, MAX_SOURCE = 4, 40, 12


class Tree:
    """Tokens behind what a row has, each behind one of those before it."""

    def __init__(self, choose: random.Random, first: int, size: int) -> None:
        self.tokens = [first, *(choose.randrange(4, 64) for _ in range(size - 1))]
        self.parents = [-1, *(choose.randrange(max(0, i - 3), i) for i in range(1, size))]

    def path(self, node: int) -> list[int]:
        """The numbers of a token and its ancestors, the first one first."""
        return [] if node < 0 else [*self.path(self.parents[node]), node]


def window_of(slots: list[int], starts: list[int], trees: list[Tree]) -> Window:
    sizes = torch.tensor([len(tree.tokens) for tree in trees])
    return Window(
        torch.tensor([token for tree in trees for token in tree.tokens]),
        torch.tensor(slots),
        torch.tensor(starts),
        torch.nn.functional.pad(sizes.cumsum(0), (1, 0)),
        int(sizes.max()),
        covers_first=slots == list(range(len(slots))),
        parents_N=torch.tensor([parent for tree in trees for parent in tree.parents]),
    )


def rows_of(model: Any, runner: Runner, choose: random.Random, slots: list[int]) -> list[Plain]:
    """Rows with a few tokens each."""
    rows = [Plain(model, choose.choices(range(4, 64), k=choose.randint(1, MAX_SOURCE))) for _ in slots]
    runner.prefill(slots, [row.source for row in rows])
    for slot, row in zip(slots, rows, strict=True):
        begun = row.window(model, choose, choose.randint(1, 9))
        tokens_1T = torch.tensor([begun])
        whole = Window.prefixes(tokens_1T, torch.tensor([len(begun)]), torch.tensor([slot]))
        runner.run(replace(whole, starts_R=torch.tensor([len(row.history)])))
        row.history = row.history + begun
    return rows


def worst_of(model: Any, row: Plain, tree: Tree, logits_TV: Tensor) -> float:
    paths = [[tree.tokens[node] for node in tree.path(last)] for last in range(len(tree.tokens))]
    apart = [plain_logits(model, row, path)[-1] - own_V for path, own_V in zip(paths, logits_TV, strict=True)]
    return float(torch.stack(apart).abs().max())


def walk(model: Any, seed: int, graphs: str = "off") -> float:
    """The largest difference of any logit, of trees and of what follows the paths that were kept of them."""
    choose, slots = random.Random(seed), [[0, 1, 2], [3, 0, 2]][seed % 2]
    runner: Any = load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE, graphs=graphs)  # type: ignore[arg-type]
    rows, worst = rows_of(model, runner, choose, slots), 0.0
    for _ in range(3):
        trees = [Tree(choose, choose.randrange(4, 64), choose.randint(1, 7)) for _ in rows]
        window = window_of(slots, [len(row.history) for row in rows], trees)
        logits_NV, firsts = runner.run(window), window.firsts_R1.tolist()
        chosen = [tree.path(choose.randrange(len(tree.tokens))) for tree in trees]
        for row, tree, path, first in zip(rows, trees, chosen, firsts, strict=False):
            worst = max(worst, worst_of(model, row, tree, logits_NV[first : first + len(tree.tokens)]))
            row.history = row.history + [tree.tokens[node] for node in path]
        numbers = [first + node for first, path in zip(firsts, chosen, strict=False) for node in path]
        runner.settle(torch.tensor(numbers), torch.tensor([len(path) for path in chosen]))
        assert runner.ran[0].tokens_N.tolist() == [
            token for tree, path in zip(trees, chosen, strict=True) for token in (tree.tokens[node] for node in path)
        ]
    return worst


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_of_a_tree_sees_its_ancestors_alone(family: str) -> None:
    for seed in range(4):
        assert walk(tiny_model(family), seed) < 1e-5


@pytest.mark.parametrize("family", ["marian", "m2m100", "t5", "llama", "qwen2-sliding", "gemma3", "gpt2"])
def test_tensor_operations_do_the_same(family: str) -> None:
    for seed in range(2):
        assert walk(tiny_model(family), seed, graphs="on") < 1e-5


@pytest.mark.parametrize("family", ["marian", "llama", "qwen2-sliding"])
def test_kernels_give_a_path_the_bits_that_it_gets_alone(family: str) -> None:
    model, choose = tiny_model(family), random.Random(1)
    runners: list[Any] = [load_runner(model, SLOTS, MAX_LENGTH, MAX_SOURCE) for _ in range(2)]
    for runner in runners:
        runner.prefill([0], [[5, 6, 7, 8]])
    tree = Tree(choose, 9, 7)
    alone = tree.path(6)
    asked = torch.tensor(alone)
    ours_DV = runners[0].run(window_of([0], [3], [tree]), asked)
    chain = Window.rectangle(torch.tensor([[tree.tokens[node] for node in alone]]), torch.tensor([3]))
    assert torch.equal(ours_DV, runners[1].run(chain))
    runners[0].settle(asked, torch.tensor([len(alone)]))
    more = Window.rectangle(torch.tensor([[11, 12]]), torch.tensor([3 + len(alone)]))
    assert torch.equal(runners[0].run(more), runners[1].run(more))
