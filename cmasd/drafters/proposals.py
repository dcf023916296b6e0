"""A way for a row to go on, and how much is thought of such ways.

Confidence of a token is the share of the places that go on with it, times how often tokens of that source, after so
many that agreed, were accepted lately, the first of a draft apart from those that follow it: a PRIOR is assumed
beforehand, and old evidence fades, so that what a policy has given up is tried again.
"""

from cmasd.drafters.rejoin import GUESSED
from cmasd.kernels import Proposal
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
MOST_WEIGHT = 1e9
"""Of new evidence, before all is set back."""
KINDS = 32
"""Of places: by the tokens that agree before them, in the same text (`rejoin`), or else in others from `ALIKE` on."""
ALIKE = 12
ENOUGH = 0.9
"""Of the room: a draft that is expected to be accepted so far is not set beside others."""


NONE = Proposal([], [], FROM_COPY, 0)
NOTHING = (0.0, 0.0, 0.0, 0.0)


def expected(proposal: Proposal) -> float:
    """Tokens that will be accepted: the sum of what survives to each."""
    survival, tokens = 1.0, 0.0
    for confidence in proposal.confidence:
        survival *= confidence
        tokens += survival
    return tokens


class Rates:
    """How often tokens were accepted, by source and kind: a place that was found wrong fails at once, or not at all.

    In plain Python, because numbers are read one by one; new evidence weighs more, instead of all old evidence less.
    """

    def __init__(self) -> None:
        self._weight = 1.0
        """Of evidence of this iteration."""
        self._known: dict[tuple[int, int], list[float]] = {}
        """By source and kind, weighted: firsts that were accepted, and judged; and of those behind them."""

    def fade(self) -> None:
        """An iteration later."""
        self._weight /= FADE
        if self._weight > MOST_WEIGHT:
            self._known = {key: [one / self._weight for one in known] for key, known in self._known.items()}
            self._weight = 1.0

    def __call__(self, source: int, kind: int, count: int) -> list[float]:
        """Share accepted of those that were judged, for so many tokens."""
        (first, firsts), (later, laters) = prior(source, kind)
        known, weight = self._known.get((source, kind), NOTHING), self._weight
        share = (known[2] + weight * later) / (known[3] + weight * laters)
        return [(known[0] + weight * first) / (known[1] + weight * firsts), *[share] * (count - 1)][:count]

    @property
    def learned(self) -> dict[tuple[int, int], list[float]]:
        """By source and kind, without what is assumed beforehand."""
        return {key: [one / self._weight for one in known] for key, known in self._known.items()}

    def count(self, proposal: Proposal, sent: int, accepted: int) -> None:
        """What the verifier said of a draft of which so much was sent; behind a rejection it says nothing."""
        known = self._known.setdefault((proposal.source, proposal.kind), [0.0] * 4)
        judged, weight = min(accepted + 1, sent), self._weight
        known[0] += weight * min(accepted, 1)
        known[1] += weight * min(judged, 1)
        known[2] += weight * max(accepted - 1, 0)
        known[3] += weight * max(judged - 1, 0)


def prior(source: int, kind: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of such a place."""
    if source != FROM_PREVIOUS:
        return PRIOR
    return PRIOR_OF_GUESSED if kind == GUESSED else PRIOR_OF_PREVIOUS
