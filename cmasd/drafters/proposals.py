"""A way for a row to go on, and how much is thought of such ways.

Confidence of a token is the share of the places that go on with it, times how often tokens of that source, after so
many that agreed, were accepted lately, the first of a draft apart from those that follow it: a PRIOR is assumed
beforehand, and old evidence fades, so that what a policy has given up is tried again.

Shapes: S sources, G kinds of places; 2 the first token, and those behind it.
"""

import operator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cmasd.drafters.rejoin import GUESSED
from cmasd.signals import FROM_COPY, FROM_PREVIOUS

PRIOR = (4.0, 5.0), (4.0, 5.0)
"""Accepted and judged before the first draft, of a first token and of those behind it; hopeful, because a policy that
never drafts never learns."""
PRIOR_OF_PREVIOUS = (9.5, 10.0), (9.5, 10.0)
"""Of the same row's output in an earlier run: what was changed since is hoped to have changed little."""
PRIOR_OF_GUESSED = (1.5, 4.0), (9.5, 10.0)
"""Where that goes on behind a token that it does not have: mostly not at the first place that is tried."""
FADE = 0.99
"""Weight that evidence keeps per iteration."""
KINDS = 32
"""Of places: by the tokens that agree before them, in the same text (`rejoin`), or else in others from `ALIKE` on."""
ALIKE = 12


@dataclass(frozen=True)
class Proposal:
    """One way to go on."""

    tokens: list[int]
    confidence: list[float]
    source: int
    kind: int

    @property
    def expected(self) -> float:
        """Tokens that will be accepted: the sum of what survives to each."""
        return float(sum(accumulate(self.confidence, operator.mul)))


NONE = Proposal([], [], FROM_COPY, 0)


class Rates:
    """How often tokens were accepted, by source and kind: a place that was found wrong fails at once, or not at all."""

    def __init__(self) -> None:
        self._accepted_SG2 = np.zeros((FROM_PREVIOUS + 1, KINDS, 2))
        self._judged_SG2 = np.zeros((FROM_PREVIOUS + 1, KINDS, 2))
        prior_SG22 = np.full((FROM_PREVIOUS + 1, KINDS, 2, 2), PRIOR)
        prior_SG22[FROM_PREVIOUS] = PRIOR_OF_PREVIOUS
        prior_SG22[FROM_PREVIOUS, GUESSED] = PRIOR_OF_GUESSED
        self._hoped_SG2, self._trusted_SG2 = prior_SG22[..., 0], prior_SG22[..., 1]

    def fade(self) -> None:
        """An iteration later."""
        self._accepted_SG2 *= FADE
        self._judged_SG2 *= FADE

    def __call__(self, source: int, kind: int, count: int) -> list[float]:
        """Share accepted of those that were judged, for so many tokens."""
        accepted_2 = self._accepted_SG2[source, kind] + self._hoped_SG2[source, kind]
        first, later = (accepted_2 / (self._judged_SG2[source, kind] + self._trusted_SG2[source, kind])).tolist()
        return [first, *[later] * (count - 1)][:count]

    def count(self, proposal: Proposal, sent: int, accepted: int) -> None:
        """What the verifier said of a draft of which so much was sent; behind a rejection it says nothing."""
        judged = min(accepted + 1, sent)
        self._accepted_SG2[proposal.source, proposal.kind] += min(accepted, 1), max(accepted - 1, 0)
        self._judged_SG2[proposal.source, proposal.kind] += min(judged, 1), max(judged - 1, 0)
