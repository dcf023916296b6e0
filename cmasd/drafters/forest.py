"""Drafts that are trees: the likeliest ways to go on behind every row, grown level by level by whoever can say.

Best first: a token's chance is the product of the acceptances on its path; a row keeps its likeliest tokens up to a
budget, and only these are gone on from. The rule ends every path as it ends a row's single way. A place among its
siblings has its chance whatever token stands there, so that a tree of drawn tokens has a shape that these do not decide
(speculative sampling stays lossless). On the host: it decides by numbers that are few.

Shapes: B rows, F tokens that are gone on from, C candidates behind them, n ways behind one, V vocabulary, K draft.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.core import Draft
from cmasd.policies import Rule
from cmasd.policies.base import Float64, Int64

Float32 = NDArray[np.float32]


class Frontier(NamedTuple):
    """Tokens that are gone on from."""

    numbers_F: Int64
    """In the forest, -1 for a row's last."""
    rows_F: Int64
    tokens_F: Int64
    """-1 for a row's last."""
    depth: int
    """Tokens behind the row's last, these included."""


class Candidates(NamedTuple):
    """What may follow them, siblings in the order of their chance."""

    of_C: Int64
    """Which token of the frontier each one follows."""
    tokens_C: Int64
    confidence_C: Float64
    """Of siblings no more than 1 together."""
    components_C3: Float32
    """Entropy, margin and softmax where the token is the likeliest, else NaN."""
    source_C: Int64 | None = None
    """See `Draft.source_BK`."""
    probs_FV: Tensor | None = None
    """What the ways behind each token of the frontier were drawn from."""

    @classmethod
    def ranked(
        cls,
        tokens_Fn: Int64,
        shares_Fn: Float64,
        confidence_F: Float64,
        components_F3: Float32,
        probs_FV: Tensor | None,
    ) -> "Candidates":
        """The likeliest have a confidence and its components, the others as much of it as their share of that one's.

        A share of 0 is no way to go on.
        """
        count, ways = tokens_Fn.shape
        confidence_Fn = np.nan_to_num(confidence_F, nan=0.5)[:, None] * shares_Fn
        before_Fn = np.concatenate([np.zeros((count, 1)), confidence_Fn.cumsum(1)[:, :-1]], axis=1)
        confidence_Fn = np.minimum(confidence_Fn, np.maximum(1.0 - before_Fn, 0.0))
        components_Fn3 = np.full((count, ways, 3), np.nan, dtype=np.float32)
        components_Fn3[:, 0] = components_F3
        at_C = (shares_Fn > 0).ravel().nonzero()[0]
        flat = tokens_Fn.ravel()[at_C], confidence_Fn.ravel()[at_C], components_Fn3.reshape(-1, 3)[at_C]
        return cls(at_C // ways, *flat, None, probs_FV)


class Forest:
    """A tree for each row."""

    def __init__(self, rule: Rule, room_B: Tensor, eos_ids: Tensor) -> None:
        """`room_B`: how deep each row's tree may be."""
        self._rule = rule
        self._room_B = np.minimum(room_B.cpu().numpy(), rule.most)
        self._eos_ids = eos_ids.cpu().numpy()
        self._first = 0.0 if rule.statistic == "mean" else 1.0
        none = np.zeros(0, dtype=np.int64)
        self.rows_M, self.tokens_M, self.parents_M, self.depths_M, self.source_M = none, none, none, none, none
        self.drawn_M = none
        """Which distribution each token was drawn from."""
        self.confidence_M, self.chance_M, self._statistic_M = np.zeros(0), np.zeros(0), np.zeros(0)
        self.components_M3 = np.zeros((0, 3), dtype=np.float32)
        self._has_source = False
        self._probs: list[Tensor] = []
        self._spent_B = np.zeros(len(self._room_B), dtype=np.int64)
        """Tokens of each row that were gone on from."""
        rows_F = (self._room_B > 0).nonzero()[0]
        self.frontier = Frontier(np.full(len(rows_F), -1), rows_F, np.full(len(rows_F), -1), 0)
        """To be gone on from next; empty when the trees are grown."""

    def add(self, found: Candidates) -> NDArray[np.bool_]:
        """What may follow the tokens of the frontier; gives which the rule lets be (C,)."""
        numbers_F, rows_F, _, depth = self.frontier
        parents_C, rows_C = numbers_F[found.of_C], rows_F[found.of_C]
        share_C = self._rule.acceptance(found.confidence_C[:, None], depth)[:, 0]
        chance_C, before_C = (
            self._of(self.chance_M, parents_C, 1.0),
            self._of(self._statistic_M, parents_C, self._first),
        )
        is_mean = self._rule.statistic == "mean"
        statistic_C = (before_C * depth + share_C) / (depth + 1) if is_mean else before_C * share_C
        fine_C: NDArray[np.bool_] = statistic_C >= self._rule.keep_K[depth]
        first = len(self.rows_M)
        drawn_C = found.of_C + sum(map(len, self._probs))
        source_C = np.zeros(len(rows_C), dtype=np.int64) if found.source_C is None else found.source_C
        self._has_source |= found.source_C is not None
        for name, values in (
            *(("rows_M", rows_C), ("tokens_M", found.tokens_C), ("parents_M", parents_C), ("drawn_M", drawn_C)),
            *(("depths_M", np.full(len(rows_C), depth + 1)), ("source_M", source_C), ("chance_M", chance_C * share_C)),
            *(("confidence_M", found.confidence_C), ("_statistic_M", statistic_C)),
            ("components_M3", found.components_C3),
        ):
            setattr(self, name, np.concatenate([getattr(self, name), values[fine_C]]))
        if found.probs_FV is not None:
            self._probs.append(found.probs_FV)
        self.frontier = self._next(first, depth + 1)
        return fine_C

    @staticmethod
    def _of(values_M: Float64, parents_C: Int64, else_: float) -> Float64:
        return np.where(parents_C < 0, else_, np.r_[values_M, else_][parents_C])

    def _next(self, first: int, depth: int) -> Frontier:
        """Those of the tokens from `first` on that the rule, the room and the budget let go on."""
        new = slice(first, None)
        going = ~np.isin(self.tokens_M[new], self._eos_ids) & (depth < self._room_B[self.rows_M[new]])
        if depth < self._rule.most:
            going &= self._statistic_M[new] >= self._rule.go_on_K[depth - 1]
        numbers_F = first + going.nonzero()[0]
        numbers_F = numbers_F[self._ranks()[numbers_F] < self._rule.nodes]
        rows_F = self.rows_M[numbers_F]
        # The likeliest first, so that a row's last steps go to these.
        order_F = np.lexsort((-self.chance_M[numbers_F], rows_F))
        numbers_F, rows_F = numbers_F[order_F], rows_F[order_F]
        place_F = np.arange(len(rows_F)) - np.searchsorted(rows_F, rows_F)
        affordable = place_F < (self._rule.nodes - self._spent_B)[rows_F]
        numbers_F, rows_F = numbers_F[affordable], rows_F[affordable]
        np.add.at(self._spent_B, rows_F, 1)
        return Frontier(numbers_F, rows_F, self.tokens_M[numbers_F], depth)

    def _ranks(self) -> Int64:
        """(M,): how many tokens of its row are likelier; of equals the earlier is."""
        order_M = np.lexsort((-self.chance_M, self.rows_M))
        rows_M = self.rows_M[order_M]
        ranks_M = np.empty(len(order_M), dtype=np.int64)
        ranks_M[order_M] = np.arange(len(order_M)) - np.searchsorted(rows_M, rows_M)
        return ranks_M

    def draft(self, device: torch.device) -> Draft:
        """The likeliest tokens of each row, along the likeliest path first."""
        chosen = self._ranks() < self._rule.nodes
        ways: dict[tuple[int, int], list[int]] = {}
        for number in np.lexsort((-self.chance_M,)).tolist():
            if chosen[number]:
                ways.setdefault((int(self.rows_M[number]), int(self.parents_M[number])), []).append(number)
        rows = [_ordered(ways, row) for row in range(len(self._room_B))]
        most = max(map(len, rows))
        index_BK = np.zeros((len(rows), most), dtype=np.int64)
        parents_BK = np.full((len(rows), most), -1)
        for row, numbers in enumerate(rows):
            places = {number: place for place, number in enumerate(numbers)}
            index_BK[row, : len(numbers)] = numbers
            parents_BK[row, : len(numbers)] = [places.get(int(self.parents_M[number]), -1) for number in numbers]
        lengths_B = np.array([len(numbers) for numbers in rows])
        return self._written(index_BK, parents_BK, lengths_B, device)

    def _written(self, index_BK: Int64, parents_BK: Int64, lengths_B: Int64, device: torch.device) -> Draft:
        is_there_BK = np.arange(index_BK.shape[1]) < lengths_B[:, None]

        def of_tokens(values: NDArray[np.generic], else_: float, dtype: torch.dtype) -> Tensor:
            taken = values[index_BK] if len(values) else np.zeros((*index_BK.shape, *values.shape[1:]))
            mask = is_there_BK.reshape(*is_there_BK.shape, *[1] * (values.ndim - 1))
            return torch.from_numpy(np.where(mask, taken, else_)).to(device, dtype)

        probs_BKV = None
        if self._probs:
            probs_BKV = torch.cat(self._probs)[of_tokens(self.drawn_M, 0, torch.int64)]
        return Draft(
            tokens_BK=of_tokens(self.tokens_M, 0, torch.int64),
            lengths_B=torch.from_numpy(lengths_B).to(device),
            confidence_BK=of_tokens(self.confidence_M, np.nan, torch.float32),
            components_BK3=of_tokens(self.components_M3, np.nan, torch.float32),
            probs_BKV=probs_BKV,
            parents_BK=torch.from_numpy(parents_BK).to(device),
            source_BK=of_tokens(self.source_M, 0, torch.int64) if self._has_source else None,
        )


def _ordered(ways: dict[tuple[int, int], list[int]], row: int) -> list[int]:
    """A row's tokens, each behind its parent and as near as it can be."""
    numbers: list[int] = []
    stack = list(reversed(ways.get((row, -1), [])))
    while stack:
        numbers.append(stack.pop())
        stack += reversed(ways.get((row, numbers[-1]), []))
    return numbers


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
