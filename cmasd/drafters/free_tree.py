"""Several texts by which a row may go on, merged into one tree: what they have in common is sent once.

Where they part, the second is as likely as it is by itself, provided that the first is wrong.
"""

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from cmasd.core import Draft
from cmasd.drafters.forest import Candidates, Forest, walk
from cmasd.policies import Rule

if TYPE_CHECKING:
    from cmasd.drafters.free import Proposal, Rates

Found = tuple[int, int, float, int, "Branch"]
"""Which token of the frontier it follows, the token, its confidence, its source, and what follows it."""


@dataclass
class Branch:
    """What may be said next, and after that."""

    confidence: float = 1.0
    source: int = 0
    ways: dict[int, "Branch"] = field(default_factory=dict)

    def grow(self, proposal: "Proposal") -> None:
        """One more text; of two that say the same the surer one counts."""
        at = self
        for token, confidence in zip(proposal.tokens, proposal.confidence, strict=True):
            known = at.ways.get(token)
            if known is None:
                known = at.ways[token] = Branch(confidence, proposal.source)
            elif confidence > known.confidence:
                known.confidence, known.source = confidence, proposal.source
            at = known

    def found(self, of: int) -> list[Found]:
        """The ways, the surest first."""
        left, found = 1.0, []
        for token, way in sorted(self.ways.items(), key=lambda item: -item[1].confidence):
            found.append((of, token, way.confidence * left, way.source, way))
            left *= 1.0 - way.confidence
        return found


class FreeTrees:
    """Of one iteration after the other."""

    def __init__(self) -> None:
        self._sent: tuple[list[list[Proposal]], Draft] | None = None

    def draft(self, proposals: "list[list[Proposal]]", rule: Rule, room_B: Tensor) -> Draft:
        """Of each row's texts."""
        branches: dict[tuple[int, int], Branch] = {}  # of rows, and of tokens of the forest
        for row, mine in enumerate(proposals):
            root = branches[row, -1] = Branch()
            for proposal in mine:
                root.grow(proposal)
        forest = Forest(rule, room_B, room_B.new_zeros(0))
        while len(forest.frontier.rows_F):
            rows, numbers = forest.frontier.rows_F.tolist(), forest.frontier.numbers_F.tolist()
            places = [(row, -1) if number < 0 else (-1, number) for row, number in zip(rows, numbers, strict=True)]
            found = [one for of, place in enumerate(places) for one in branches[place].found(of)]
            first = len(forest.rows_M)
            kept_C = forest.add(_candidates(found))
            for number, place in enumerate(kept_C.nonzero()[0].tolist(), start=first):
                branches[-1, number] = found[place][4]
        draft = forest.draft(room_B.device)
        self._sent = proposals, draft
        return draft

    def commit(self, tokens_BL: Tensor, lengths_B: Tensor, accepted_B: Tensor, rates: "Rates") -> None:
        """Every text has been judged as far as it was sent."""
        if self._sent is None:
            return
        (proposals, draft), self._sent = self._sent, None
        assert draft.parents_BK is not None, "it is a tree"
        trees = draft.tokens_BK.tolist(), draft.parents_BK.tolist(), draft.lengths_B.tolist()
        known = lengths_B.tolist(), accepted_B.tolist()
        for row, (tokens, parents, size, length, accepted) in enumerate(zip(*trees, *known, strict=True)):
            said = tokens_BL[row, length : length + accepted].tolist()
            for proposal in proposals[row]:
                sent = len(walk(tokens[:size], parents[:size], proposal.tokens))
                if sent:
                    alike = (one == other for one, other in zip(proposal.tokens[:sent], said, strict=False))
                    rates.count(proposal, sent, sum(takewhile(bool, alike)))


def _candidates(found: list[Found]) -> Candidates:
    columns = zip(*found, strict=True) if found else ([], [], [], [], [])
    of, tokens, confidence, source, _ = (list(column) for column in columns)
    return Candidates(
        np.array(of, dtype=np.int64),
        np.array(tokens, dtype=np.int64),
        np.array(confidence, dtype=np.float64),
        np.full((len(of), 3), np.nan, dtype=np.float32),
        np.array(source, dtype=np.int64),
    )
