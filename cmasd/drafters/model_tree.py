"""Trees that a model drafts: a forward for each level, of the tokens that are gone on from.

The model's cache holds a row's tree behind its text, in the order in which it was gone on from; the path that the
verifier took is made contiguous when that is known.

Shapes: F tokens that are gone on from, Q tokens asked for, V vocabulary.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmasd.core import Draft
from cmasd.drafters.base import Context
from cmasd.drafters.forest import Candidates, Forest, Frontier, walk
from cmasd.policies import Rule
from cmasd.runner.branches import constrain_tree
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
        drafter = self._drafter
        forest = Forest(rule, room_B, drafter.eos_ids)
        self._forest, self._fed = forest, {}
        window = drafter.missing(context, torch.from_numpy(forest.frontier.rows_F).to(room_B.device))
        forest.add(self._behind(drafter.behind(window), context, window, window.firsts_R1[1:] - 1))
        while len(forest.frontier.rows_F):
            window, asked_Q = self._window(forest, forest.frontier, context)
            forest.add(self._behind(drafter.behind(window, asked_Q), context, window, asked_Q))
        return forest.draft(room_B.device)

    def commit(self, context: Context, accepted_B: Tensor) -> Tensor:
        """(B,) how many tokens of each row the cache holds behind its text, of those that were accepted."""
        held_B, accepted = torch.zeros_like(accepted_B), accepted_B.tolist()
        forest, fed, self._fed = self._forest, self._fed, {}
        moves: list[tuple[int, int, int]] = []
        for row, numbers in fed.items():
            assert forest is not None, "it was grown"
            length = int(context.lengths_B[row])
            said = context.tokens_BL[row, length : length + accepted[row]].tolist()
            path = walk(forest.tokens_M[numbers].tolist(), _inside(forest, numbers), said)
            held_B[row] = len(path)
            moves += [(row, length + place, length + depth) for depth, place in enumerate(path) if place != depth]
        if moves:
            self._drafter.runner.carry(*torch.tensor(moves, device=accepted_B.device).unbind(1))
        return held_B

    def _window(self, forest: Forest, frontier: Frontier, context: Context) -> tuple[Window, Tensor]:
        """All that was gone on from in these rows, and where the latest of it is in the list."""
        for number, row in zip(frontier.numbers_F.tolist(), frontier.rows_F.tolist(), strict=True):
            self._fed.setdefault(row, []).append(number)
        rows = sorted(set(frontier.rows_F.tolist()))
        numbers = [number for row in rows for number in self._fed[row]]
        parents = [parent for row in rows for parent in _inside(forest, self._fed[row])]
        sizes = torch.tensor([len(self._fed[row]) for row in rows])
        latest = set(frontier.numbers_F.tolist())
        device = context.lengths_B.device
        rows_R = torch.tensor(rows, device=device)
        window = Window(
            torch.from_numpy(forest.tokens_M[numbers]).to(device),
            rows_R,
            context.lengths_B[rows_R],
            torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(device),
            int(sizes.max()),
            parents_N=torch.tensor(parents, device=device),
        )
        asked = {number: place for place, number in enumerate(numbers) if number in latest}
        return window, torch.tensor([asked[number] for number in frontier.numbers_F.tolist()], device=device)

    def _behind(self, logits_FV: Tensor, context: Context, window: Window, asked_Q: Tensor) -> Candidates:
        """What may follow each."""
        drafter = self._drafter
        if drafter.follows_rules:
            if window.parents_N is None:
                window = replace(window, parents_N=window.steps_N - 1)
            about = context.tokens_BL, context.prompt_lengths_B, context.limits_B
            logits_FV = constrain_tree(drafter.constraints, logits_FV, window, asked_Q, *about)
        confidence_F, scores = drafter.confidence(logits_FV)
        tokens_Fn, shares_Fn, probs_FV = drafter.choose.several(logits_FV, self._branching)
        return Candidates.ranked(
            tokens_Fn.cpu().numpy(),
            shares_Fn.double().cpu().numpy(),
            confidence_F.double().cpu().numpy(),
            scores.components.float().cpu().numpy(),
            probs_FV,
        )


def _inside(forest: Forest, numbers: list[int]) -> list[int]:
    """The parent of each of these tokens among them, -1 where it is the row's last."""
    places = {number: place for place, number in enumerate(numbers)}
    return [places.get(parent, -1) for parent in forest.parents_M[numbers].tolist()]
