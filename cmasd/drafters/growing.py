"""Trees that are grown level by level of logits, by a drafter that is asked what may follow its latest tokens.

In C where there is a compiler (`cmasd.kernels.trees`), else by `Forest`, to which the first is held by a test: the
same trees either way. All of it is work of the host; logits may be anywhere.

Shapes: B rows, F tokens that are gone on from, Q of a window, n ways behind one, K draft, M moves, V vocabulary.
"""

from abc import ABC, abstractmethod
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cmasd.core import Draft
from cmasd.drafters.base import Context
from cmasd.drafters.forest import Forest, ranked, walk
from cmasd.kernels import Kernels, PackedForest, TreeRule, kernels
from cmasd.policies import EDGE, Rule
from cmasd.window import Window

Ways = tuple[Tensor, Tensor, Tensor]
"""Tokens, shares of the first one's probability, and log-probabilities (F, n each)."""


class Growing(ABC):
    """A tree for each row, of one iteration."""

    @property
    @abstractmethod
    def asked(self) -> int:
        """Tokens that are to be gone on from, the rows' last ones at first; 0 when the trees are grown."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Tokens behind a row's last, those included."""

    @abstractmethod
    def grow(self, ways: Ways, confidence_F: Tensor, components_F3: Tensor, probs_FV: Tensor | None = None) -> None:
        """What may follow each of the latest tokens. Confidence and components are of the first way behind it.

        `probs_FV`: what they were drawn from.
        """

    @abstractmethod
    def latest(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of what is to be gone on from: the rows (F,), and the tokens (F,), which are 0 at depth 0."""

    @abstractmethod
    def window(self, context: Context) -> tuple[Window, Tensor]:
        """All that was gone on from in the rows that go on, and where the latest of it is in the list (Q,)."""

    @abstractmethod
    def draft(self, device: torch.device) -> Draft:
        """The likeliest tokens of each row, along the likeliest path first."""

    @abstractmethod
    def path(self, context: Context, accepted_B: Tensor) -> tuple[Tensor, Tensor]:
        """Of the tokens that each row accepted, how many a cache holds that was fed the windows (B,); and how to make
        them contiguous there: (M, 3) row, from, to.
        """


def growing(rule: Rule, room_B: Tensor, eos_ids: Tensor, ways: int) -> Growing:
    """Trees as deep as each row has room, with so many ways behind a token at most."""
    found = kernels(torch.float32)
    return InPython(rule, room_B, eos_ids) if found is None else InC(found, rule, room_B, eos_ids, ways)


class InC(Growing):
    """One call for a level."""

    def __init__(self, found: Kernels, rule: Rule, room_B: Tensor, eos_ids: Tensor, ways: int) -> None:
        self._probs: list[Tensor] = []
        known = None
        if rule.slope is not None and rule.offsets_K is not None:
            known = rule.slope, rule.offsets_K, EDGE
        plain = TreeRule(rule.go_on_K, rule.keep_K, rule.statistic == "mean", rule.nodes, known, rule.weights_2)
        self._forest = PackedForest(found, plain, room_B.tolist(), eos_ids, ways)

    @property
    def asked(self) -> int:
        """See `Growing`."""
        return self._forest.asked

    @property
    def depth(self) -> int:
        """See `Growing`."""
        return self._forest.depth

    def grow(self, ways: Ways, confidence_F: Tensor, components_F3: Tensor, probs_FV: Tensor | None = None) -> None:
        """See `Growing`."""
        self._forest.grow(*ways, confidence_F, components_F3)
        if probs_FV is not None:
            self._probs.append(probs_FV)

    def latest(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """See `Growing`."""
        if self.depth:
            row_F, token_F = self._forest.latest_tokens()
        else:
            row_F = np.flatnonzero(self._forest.latest)
            token_F = np.zeros_like(row_F)
        return torch.from_numpy(row_F).to(device), torch.from_numpy(token_F).to(device)

    def window(self, context: Context) -> tuple[Window, Tensor]:
        """See `Growing`."""
        found, device = self._forest.window(), context.lengths_B.device
        longest = int(np.diff(found[1]).max())
        rows_R, firsts_R1, tokens_N, parents_N, asked_Q = (torch.from_numpy(one).to(device) for one in found)
        starts_R = context.lengths_B[rows_R]
        return Window(tokens_N, rows_R, starts_R, firsts_R1, longest, parents_N=parents_N), asked_Q

    def draft(self, device: torch.device) -> Draft:
        """See `Growing`."""
        whole, real = self._forest.draft()
        tokens_BK, parents_BK, drawn_BK, lengths_B = (torch.from_numpy(one).to(device) for one in whole)
        confidence_BK, logprobs_BK, components_BK3 = (torch.from_numpy(one).to(device) for one in real)
        return Draft(
            tokens_BK=tokens_BK,
            lengths_B=lengths_B,
            confidence_BK=confidence_BK,
            components_BK3=components_BK3,
            probs_BKV=torch.cat(self._probs)[drawn_BK] if self._probs else None,
            parents_BK=parents_BK,
            logprob_BK=logprobs_BK,
        )

    def path(self, context: Context, accepted_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `Growing`."""
        held_B, moves_M3 = self._forest.path(context.tokens_BL, context.lengths_B, accepted_B)
        return held_B.to(accepted_B.device), moves_M3.to(accepted_B.device)


class InPython(Growing):
    """By `Forest`."""

    def __init__(self, rule: Rule, room_B: Tensor, eos_ids: Tensor) -> None:
        self._forest = Forest(rule, room_B, eos_ids)
        self._fed: dict[int, list[int]] = {}
        """Of each row, the tokens that were gone on from, by their numbers in the forest."""

    @property
    def asked(self) -> int:
        """See `Growing`."""
        return len(self._forest.frontier.rows)

    @property
    def depth(self) -> int:
        """See `Growing`."""
        return self._forest.frontier.depth

    def grow(self, ways: Ways, confidence_F: Tensor, components_F3: Tensor, probs_FV: Tensor | None = None) -> None:
        """See `Growing`."""
        lists = (part.tolist() for part in (*ways, confidence_F, components_F3))
        self._forest.add([list(ranked(*parts)) for parts in zip(*lists, strict=True)], probs_FV)
        numbers, rows, _ = self._forest.frontier
        for number, row in zip(numbers, rows, strict=True):
            self._fed.setdefault(row, []).append(number)

    def latest(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """See `Growing`."""
        numbers, rows, depth = self._forest.frontier
        tokens = [self._forest.nodes[number].way.token if depth else 0 for number in numbers]
        return torch.tensor(rows, device=device), torch.tensor(tokens, device=device)

    def window(self, context: Context) -> tuple[Window, Tensor]:
        """See `Growing`."""
        numbers, rows, _ = self._forest.frontier
        rows = list(dict.fromkeys(rows))
        trees = [self._forest.tree(self._fed[row]) for row in rows]
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

    def draft(self, device: torch.device) -> Draft:
        """See `Growing`."""
        return self._forest.draft(device)

    def path(self, context: Context, accepted_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `Growing`."""
        held_B, accepted = torch.zeros_like(accepted_B), accepted_B.tolist()
        moves: list[tuple[int, int, int]] = []
        for row, numbers in self._fed.items():
            length = int(context.lengths_B[row])
            said = context.tokens_BL[row, length : length + accepted[row]].tolist()
            path = walk(*self._forest.tree(numbers), said)
            held_B[row] = len(path)
            moves += [(row, length + place, length + depth) for depth, place in enumerate(path) if place != depth]
        return held_B, torch.tensor(moves, dtype=torch.int64, device=accepted_B.device).view(-1, 3)
