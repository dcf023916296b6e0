"""Several texts by which a row may go on, merged into one tree: what they have in common is sent once.

Where they part, the second is as likely as it is by itself, provided that the first is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

from torch import Tensor

from cmasd.core import Draft
from cmasd.drafters.forest import Continuation, Forest, walk
from cmasd.kernels import Proposal
from cmasd.policies import Rule

Count = Callable[[Proposal, int, int], None]


@dataclass
class Branch:
    """What may be said next, and after that."""

    confidence: float = 1.0
    source: int = 0
    ways: dict[int, "Branch"] = field(default_factory=dict)

    def grow(self, proposal: Proposal) -> None:
        """One more text; of two that say the same the surer one counts."""
        at = self
        for token, confidence in zip(proposal.tokens, proposal.confidence, strict=True):
            known = at.ways.get(token)
            if known is None:
                known = at.ways[token] = Branch(confidence, proposal.source)
            elif confidence > known.confidence:
                known.confidence, known.source = confidence, proposal.source
            at = known

    def found(self) -> list[tuple[Continuation, "Branch"]]:
        """The ways, the surest first, and what follows each."""
        left, found = 1.0, []
        for token, way in sorted(self.ways.items(), key=lambda item: -item[1].confidence):
            found.append((Continuation(token, way.confidence * left, source=way.source), way))
            left *= 1.0 - way.confidence
        return found


class FreeTrees:
    """Of one iteration after the other."""

    def __init__(self) -> None:
        self._sent: tuple[list[list[Proposal]], Draft] | None = None

    def draft(self, proposals: list[list[Proposal]], rule: Rule, room_B: Tensor) -> Draft:
        """Of each row's texts."""
        roots = []
        for mine in proposals:
            roots.append(Branch())
            for proposal in mine:
                roots[-1].grow(proposal)
        forest = Forest(rule, room_B, room_B.new_zeros(0))
        branches: dict[int, Branch] = {}
        while forest.frontier.rows:
            numbers, rows, _ = forest.frontier
            at = [roots[row] if number < 0 else branches[number] for number, row in zip(numbers, rows, strict=True)]
            found = [branch.found() for branch in at]
            added = forest.add([[way for way, _ in ways] for ways in found])
            for fresh, ways in zip(added, found, strict=True):
                branches.update((number, rest) for number, (_, rest) in zip(fresh, ways, strict=True))
        draft = forest.draft(room_B.device)
        self._sent = proposals, draft
        return draft

    def commit(
        self, tokens_BL: Tensor, lengths_B: Tensor, accepted_B: Tensor, count: Callable[[Proposal, int, int], None]
    ) -> None:
        """Every text has been judged as far as it was sent: `count` is told how far that is, and what was accepted."""
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
                    count(proposal, sent, sum(takewhile(bool, alike)))
