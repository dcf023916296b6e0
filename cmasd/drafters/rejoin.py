"""A whole text that a row is thought to repeat, and where in it the row is.

While tokens agree a pointer walks. Where the verifier said something else the old text is not thrown away: its place is
found anew by the row's latest tokens, two or more of them anywhere, or one of them close by, which is how left out
words are found. Where nothing is found there are three ways to go on: the new tokens were added, or each stands for an
old one, or all of them for the rest of an old word. Which it was is told by what follows, and learned, for the first
new token and for all: a comma mostly is added. So a changed word costs an iteration for each of its own tokens.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

from cmasd.drafters.texts import Text, overlap

REACH = 5
"""Tokens from the expected place, within which one that agrees is taken for the place."""
LONGEST = 8
"""Tokens by which a place is told from another."""
LOST = 4
"""Tokens in a row without a place, after which nothing is offered until one is found."""
FADE = 0.98
GUESSED, FRESH = 0, LONGEST + 1
"""Kinds of places beside the number of tokens that agree before: after a word of another kind, and at the beginning."""
ADDED, REPLACED, WORD = range(3)
"""What new tokens are: beside the old ones, for as many of them, for a word of them."""
PRIOR = (0.9, 1.0, 1.1)
"""Of the three; a text where nothing else is known is one of whole words that were replaced."""
OF_ALL = 2.0
"""Weight of what new tokens are as a rule, beside what a token was: so often it must have been something else."""
MOST_TOLD_APART = 100_000
"""Tokens of which it is known."""


@dataclass
class Habits:
    """What new tokens usually are, over all rows; old evidence fades."""

    inside: Container[int] = ()
    """Tokens that go on with a word."""
    usual: dict[int, list[float]] = field(default_factory=dict)
    """By how many they are, up to `LOST`."""
    of_token: dict[int, list[float]] = field(default_factory=dict)
    """By the first of them."""

    def weights(self, count: int, token: int) -> list[float]:
        """Of the three, of so many new tokens with this as their first."""
        usual = self.usual.get(min(count, LOST), PRIOR)
        scale = OF_ALL / (usual[ADDED] + usual[REPLACED] + usual[WORD])
        own = self.of_token.get(token, (0.0, 0.0, 0.0))
        return [scale * all_of + one for all_of, one in zip(usual, own, strict=True)]

    def saw(self, count: int, token: int, what: Container[int]) -> None:
        """They were `what`, if that is not all of the three."""
        if len(self.of_token) >= MOST_TOLD_APART:
            self.of_token.clear()
        for key, known, before in ((min(count, LOST), self.usual, PRIOR), (token, self.of_token, (0.0, 0.0, 0.0))):
            known[key] = [FADE * value + (kind in what) for kind, value in enumerate(known.get(key, before))]


class Old:
    """The text and the place."""

    def __init__(self, tokens: Sequence[int], habits: Habits) -> None:
        self._text = Text(tokens)
        self._habits = habits
        self._at = 1
        self._agreed = 0
        self._left_at = 1
        """Where the latest new tokens began."""
        self._new: list[int] = []
        """They, until a place is found."""
        self._begun = False

    @property
    def kind(self) -> int:
        """What is known of the place: tells how far it is to be trusted."""
        if not self._begun:
            return FRESH
        return GUESSED if self._new else min(self._agreed, LONGEST)

    def follow(self, output: Sequence[int], new: int) -> None:
        """The row has said this, the last `new` of it since it was asked last."""
        old = self._text.tokens
        for place in range(len(output) - new, len(output)):
            self._begun = True
            if self._at < len(old) and old[self._at] == output[place]:
                self._found(self._at, self._agreed + 1)
            else:
                self._join(output, place)

    def rest(self, most: int) -> list[int]:
        """What the old text says next."""
        return next(self.rests(most), [])

    def rests(self, most: int) -> Iterator[list[int]]:
        """All that it may say next, the likeliest first; none where the place is lost."""
        if len(self._new) >= LOST:
            return
        tokens = self._text.tokens
        for at in self._ways() if self._new else [self._at]:
            yield tokens[at : at + most]

    def _found(self, there: int, agreed: int) -> None:
        if self._new:
            what = {kind for kind, at in self._places().items() if at == there}
            if what:
                self._habits.saw(len(self._new), self._new[0], what)
            self._new = []
        self._at, self._agreed = there + 1, agreed

    def _join(self, output: Sequence[int], place: int) -> None:
        old, best, near, found = self._text.tokens, 0, 0, 0
        for there in self._text.places(output[place]):
            size = overlap(old, there, output, place, min(LONGEST, place + 1))
            away = abs(there - self._at)
            if (size > 1 or away <= REACH) and (size > best or (size == best and away < near)):
                best, near, found = size, away, there
        if best:
            self._found(found, best)
            return
        if not self._new:
            self._left_at = self._at
        self._new.append(output[place])
        self._agreed = 0
        self._at = self._ways()[0]

    def _places(self) -> dict[int, int]:
        """Where each of the three would go on."""
        last = len(self._text.tokens)
        places = {ADDED: self._left_at, REPLACED: min(self._left_at + len(self._new), last)}
        for at in range(self._left_at + 1, min(self._left_at + REACH + 1, last)):
            if self._text.tokens[at] not in self._habits.inside:
                places[WORD] = at
                break
        return places

    def _ways(self) -> list[int]:
        """Places to go on at, the likeliest first."""
        weights = self._habits.weights(len(self._new), self._new[0])
        likely: dict[int, float] = {}
        for kind, at in self._places().items():
            likely[at] = likely.get(at, 0.0) + weights[kind]
        return sorted(likely, key=lambda at: -likely[at])
