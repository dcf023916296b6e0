"""Trees that a model drafts: a forward for each level, of the tokens that are gone on from.

The model's cache holds a row's tree behind its text, in the order in which it was gone on from; the path that the
verifier took is made contiguous when that is known.

Shapes: F tokens that are gone on from, Q tokens asked for, V vocabulary.
"""

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmasd.confidence.scores import Scores
from cmasd.core import Draft
from cmasd.drafters.base import Context
from cmasd.drafters.choice import Choice
from cmasd.drafters.forest import Continuation, Forest, ranked, walk
from cmasd.generation.branches import constrain_tree
from cmasd.policies import Rule
from cmasd.window import Window

if TYPE_CHECKING:
    from cmasd.drafters.model import ModelDrafter


class ModelTrees:
    """Of one iteration after the other."""

    def __init__(self, drafter: "ModelDrafter", branching: int) -> None:
        """`branching`: most ways to go on behind a token."""
        self._drafter = drafter
        self._branching = branching
        self._fed: dict[int, list[int]] = {}
        """Of each row that the cache holds a tree of, the tokens' numbers in the forest."""
        self._forest: Forest | None = None

    def draft(self, context: Context, room_B: Tensor, rule: Rule) -> Draft:
        """Until no row has a token that is worth going on from."""
        drafter, device = self._drafter, room_B.device
        forest = Forest(rule, room_B, drafter.eos_ids)
        self._forest, self._fed = forest, {}
        window = drafter.missing(context, torch.tensor(forest.frontier.rows, device=device))
        self._go_on(forest, context, window, window.firsts_R1[1:] - 1)
        while forest.frontier.rows:
            self._go_on(forest, context, *self._window(forest, context))
        return forest.draft(device)

    def commit(self, context: Context, accepted_B: Tensor) -> Tensor:
        """(B,) how many tokens of each row the cache holds behind its text, of those that were accepted."""
        held_B, accepted = torch.zeros_like(accepted_B), accepted_B.tolist()
        forest, fed, self._fed = self._forest, self._fed, {}
        moves: list[tuple[int, int, int]] = []
        for row, numbers in fed.items():
            assert forest is not None, "it was grown"
            length = int(context.lengths_B[row])
            path = walk(*forest.tree(numbers), context.tokens_BL[row, length : length + accepted[row]].tolist())
            held_B[row] = len(path)
            moves += [(row, length + place, length + depth) for depth, place in enumerate(path) if place != depth]
        if moves:
            self._drafter.runner.carry(*torch.tensor(moves, device=accepted_B.device).unbind(1))
        return held_B

    def _window(self, forest: Forest, context: Context) -> tuple[Window, Tensor]:
        """All that was gone on from in the frontier's rows, and where the latest of it is in the list."""
        numbers, rows, _ = forest.frontier
        for number, row in zip(numbers, rows, strict=True):
            self._fed.setdefault(row, []).append(number)
        rows = list(dict.fromkeys(rows))
        trees = [forest.tree(self._fed[row]) for row in rows]
        firsts = [0, *accumulate(len(tokens) for tokens, _ in trees)]
        device = context.lengths_B.device
        rows_R = torch.tensor(rows, device=device)
        window = Window(
            torch.tensor([token for tokens, _ in trees for token in tokens], device=device),
            rows_R,
            context.lengths_B[rows_R],
            torch.tensor(firsts, device=device),
            max(len(tokens) for tokens, _ in trees),
            parents_N=torch.tensor([parent for _, parents in trees for parent in parents], device=device),
        )
        latest, fed = set(numbers), (number for row in rows for number in self._fed[row])
        return window, torch.tensor([place for place, number in enumerate(fed) if number in latest], device=device)

    def _go_on(self, forest: Forest, context: Context, window: Window, asked_Q: Tensor) -> None:
        """From each token of the frontier."""
        drafter = self._drafter
        logits_FV = drafter.behind(window, asked_Q)
        if drafter.follows_rules:
            if window.parents_N is None:
                window = replace(window, parents_N=window.steps_N - 1)
            about = context.tokens_BL, context.prompt_lengths_B, context.limits_B
            logits_FV = constrain_tree(drafter.constraints, logits_FV, window, asked_Q, *about)
        confidence_F, scores = drafter.confidence(logits_FV)
        forest.add(*ways_of(drafter.choose, self._branching, logits_FV, confidence_F, scores))


def ways_of(
    choose: Choice, branching: int, logits_FV: Tensor, confidence_F: Tensor, scores: Scores
) -> tuple[list[list[Continuation]], Tensor | None]:
    """The ways behind each token by the logits there, and what they were drawn from."""
    tokens_Fn, shares_Fn, probs_FV = choose.several(logits_FV, branching)
    if probs_FV is None:
        logprobs_Fn = (shares_Fn * scores.max_prob.float()[:, None]).log()
    else:
        logprobs_Fn = probs_FV.gather(1, tokens_Fn).log()
    lists = (part.tolist() for part in (tokens_Fn, shares_Fn, logprobs_Fn, confidence_F, scores.components))
    return [list(ranked(*parts)) for parts in zip(*lists, strict=True)], probs_FV
