"""Drafts that are trees: the likeliest ways to go on behind every row, grown level by level by whoever can say.

Best first: a token's chance is the product of the acceptances on its path; a row keeps its likeliest tokens up to a
budget. Only those are gone on from whose next token would be among them, if the likeliest path goes on as it went so
far; and as many as leave that path to be gone on from to its end, for a level costs a forward. The rule ends every path
as it ends a row's single way. A place among its siblings has its chance whatever token stands there, so that a tree of
drawn tokens has a shape that these do not decide (speculative sampling stays lossless). Plain Python: rows are few
where trees pay, and so are the tokens of a row.

Shapes: B rows, F tokens that are gone on from, n ways behind one, V vocabulary, K draft.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from cmasd.core import Draft
from cmasd.policies import Rule
from cmasd.signals import NAN

UNKNOWN = (NAN, NAN, NAN)
CLOSE = 1 - 1e-9
"""Of a chance: what is computed in another order is no less likely."""


class Continuation(NamedTuple):
    """A token that may follow another."""

    token: int
    confidence: float
    """Of siblings no more than 1 together."""
    components: Sequence[float] = UNKNOWN
    """Entropy, margin and softmax where the token is the likeliest."""
    source: int = 0
    """See `Draft.source_BK`."""
    logprob: float = NAN
    """See `Draft.logprob_BK`."""


class Node(NamedTuple):
    """A token of a tree."""

    row: int
    parent: int
    """Its number in the forest, -1 where that is the row's last token."""
    way: Continuation
    chance: float
    """That it and all before it in the tree are accepted."""
    statistic: float
    """That the rule looks at."""
    drawn: int
    """Which distribution it was drawn from."""


class Frontier(NamedTuple):
    """Tokens that are gone on from, row by row."""

    numbers: list[int]
    """In the forest, -1 for a row's last."""
    rows: list[int]
    depth: int
    """Tokens behind the row's last, these included."""


def ranked(
    tokens: Sequence[int],
    shares: Sequence[float],
    logprobs: Sequence[float],
    confidence: float,
    components: Sequence[float],
) -> Iterator[Continuation]:
    """The likeliest token has a confidence and its components, the others as much as their share of its probability.

    A share of 0 is no way to go on.
    """
    confidence, left = 0.5 if confidence != confidence else confidence, 1.0
    for place, (token, share, logprob) in enumerate(zip(tokens, shares, logprobs, strict=True)):
        if share > 0:
            own = min(confidence * share, left)
            yield Continuation(token, own, UNKNOWN if place else components, logprob=logprob)
            left -= own


class Forest:
    """A tree for each row."""

    def __init__(self, rule: Rule, room_B: Tensor, eos_ids: Tensor) -> None:
        """`room_B`: how deep each row's tree may be."""
        self.nodes: list[Node] = []
        self._rule = rule
        self._is_mean = rule.statistic == "mean"
        self._go_on, self._keep = rule.go_on_K.tolist(), rule.keep_K.tolist()
        self._rooms = [min(room, rule.most) for room in room_B.tolist()]
        self._ends = set(eos_ids.tolist())
        self._probs: list[Tensor] = []
        self._drawn = 0
        self._spent = [0] * len(self._rooms)
        """Tokens of each row that were gone on from."""
        self._chances: list[list[float]] = [[] for _ in self._rooms]
        rows = [row for row, room in enumerate(self._rooms) if room > 0]
        self.frontier = Frontier([-1] * len(rows), rows, 0)
        """To be gone on from next; empty when the trees are grown."""

    def add(self, found: Sequence[Sequence[Continuation]], probs_FV: Tensor | None = None) -> list[list[int]]:
        """What may follow each token of the frontier, siblings in the order of their chance.

        `probs_FV`: what they were drawn from. Gives each way's number in the forest, -1 where the rule lets it not be.
        """
        numbers, rows, depth = self.frontier
        first, keep, added = len(self.nodes), self._keep[depth], []
        for of, (number, row, ways) in enumerate(zip(numbers, rows, found, strict=True)):
            _, _, _, before, statistic, _ = self.nodes[number] if number >= 0 else _root(self._is_mean)
            mine = []
            for way in ways:
                share = self._rule.share(way.confidence, depth, way.components)
                now = (statistic * depth + share) / (depth + 1) if self._is_mean else statistic * share
                mine.append(len(self.nodes) if now >= keep else -1)
                if now >= keep:
                    self.nodes.append(Node(row, number, way, before * share, now, self._drawn + of))
                    self._chances[row].append(before * share)
            added.append(mine)
        if probs_FV is not None:
            self._probs.append(probs_FV)
            self._drawn += len(probs_FV)
        self.frontier = self._next(first, depth + 1)
        return added

    def _next(self, first: int, depth: int) -> Frontier:
        """Those of the tokens from `first` on that the rule, the room and the budget let go on."""
        chosen: list[int] = []
        if depth < self._rule.most:
            for row, new in groupby(range(first, len(self.nodes)), key=lambda number: self.nodes[number].row):
                if depth < self._rooms[row]:
                    going = self._going(row, sorted(new, key=lambda number: -self.nodes[number].chance), depth)
                    self._spent[row] += len(going)
                    chosen += going
        return Frontier(chosen, [self.nodes[number].row for number in chosen], depth)

    def _going(self, row: int, new: list[int], depth: int) -> list[int]:
        """Of a row's latest tokens, the likeliest first."""
        budget, levels = self._rule.nodes, self._rooms[row] - depth
        lead = self.nodes[new[0]].chance
        step = lead ** (1 / depth)
        ahead = [lead * step**level for level in range(1, levels + 1)]
        likeliest = heapq.nlargest(budget, [*self._chances[row], *ahead])
        bar = likeliest[-1] * CLOSE if len(likeliest) == budget else 0.0
        least = self._go_on[depth - 1]
        going = [one for one in new if self.nodes[one].chance * step >= bar and self._may_go_on(self.nodes[one], least)]
        left = budget - self._spent[row]
        spare = left - (min(self._rooms[row], budget) - depth - 1)
        return going[: min(max(spare, 1), left)]

    def _may_go_on(self, node: Node, least: float) -> bool:
        return node.statistic >= least and node.way.token not in self._ends

    def draft(self, device: torch.device) -> Draft:
        """The likeliest tokens of each row, along the likeliest path first."""
        rows = [self._ordered(row) for row in range(len(self._rooms))]
        most = max(map(len, rows))
        parents = [self._inside(numbers) + [-1] * (most - len(numbers)) for numbers in rows]
        nodes = [[self.nodes[number] for number in numbers] for numbers in rows]

        def of_tokens(values: list[list[float]] | list[list[int]], filler: float, dtype: torch.dtype) -> Tensor:
            padded = [mine + [filler] * (most - len(mine)) for mine in values]
            return torch.tensor(padded, dtype=dtype, device=device).view(len(rows), most)

        components = [[list(node.way.components) for node in mine] for mine in nodes]
        components = [mine + [list(UNKNOWN)] * (most - len(mine)) for mine in components]
        probs_BKV = None
        if self._probs:
            drawn_BK = of_tokens([[node.drawn for node in mine] for mine in nodes], 0, torch.int64)
            probs_BKV = torch.cat(self._probs)[drawn_BK]
        sources = [[node.way.source for node in mine] for mine in nodes]
        return Draft(
            tokens_BK=of_tokens([[node.way.token for node in mine] for mine in nodes], 0, torch.int64),
            lengths_B=torch.tensor([len(numbers) for numbers in rows], device=device),
            confidence_BK=of_tokens([[node.way.confidence for node in mine] for mine in nodes], NAN, torch.float32),
            components_BK3=torch.tensor(components, dtype=torch.float32, device=device).view(len(rows), most, 3),
            probs_BKV=probs_BKV,
            parents_BK=torch.tensor(parents, dtype=torch.int64, device=device).view(len(rows), most),
            logprob_BK=of_tokens([[node.way.logprob for node in mine] for mine in nodes], NAN, torch.float32),
            source_BK=of_tokens(sources, 0, torch.int64) if any(map(any, sources)) else None,
        )

    def _ordered(self, row: int) -> list[int]:
        """The likeliest of a row, each behind its parent and as near as it can be; of equals the earlier."""
        mine = [number for number, node in enumerate(self.nodes) if node.row == row]
        mine.sort(key=lambda number: -self.nodes[number].chance)
        ways: dict[int, list[int]] = {}
        for number in mine[: self._rule.nodes]:
            ways.setdefault(self.nodes[number].parent, []).append(number)
        numbers: list[int] = []
        stack = ways.get(-1, [])[::-1]
        while stack:
            numbers.append(stack.pop())
            stack += ways.get(numbers[-1], [])[::-1]
        return numbers

    def _inside(self, numbers: list[int]) -> list[int]:
        """The place of each one's parent among these, -1 where it is the row's last token."""
        places = {number: place for place, number in enumerate(numbers)}
        return [places.get(self.nodes[number].parent, -1) for number in numbers]

    def tree(self, numbers: list[int]) -> tuple[list[int], list[int]]:
        """Tokens and parents of some tokens of one row, by their places among these."""
        return [self.nodes[number].way.token for number in numbers], self._inside(numbers)


def _root(is_mean: bool) -> tuple[int, int, None, float, float, int]:
    return -1, -1, None, 1.0, 0.0 if is_mean else 1.0, -1


def walk(tokens: Sequence[int], parents: Sequence[int], said: Sequence[int]) -> list[int]:
    """Which tokens of a tree lie on the path that says this, as far as there is one."""
    ways = {(parent, token): number for number, (token, parent) in enumerate(zip(tokens, parents, strict=True))}
    path: list[int] = []
    for token in said:
        number = ways.get((path[-1] if path else -1, token))
        if number is None:
            break
        path.append(number)
    return path
