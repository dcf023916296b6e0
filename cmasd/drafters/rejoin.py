"""A whole text that a row is thought to repeat, and where in it the row is.

While tokens agree a pointer walks. Where the verifier said something else the old text is not thrown away: its place is
found anew by the row's latest tokens, two or more of them anywhere, or one of them close by, which is how left out
words are found. Where nothing is found a word was put in another's place, or was added: which of them is usual says how
to go on. So a changed word costs one iteration, and an added one costs one or two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass
class Habits:
    """What a new word usually is, over all rows; old evidence fades."""

    replaced: float = 3.0
    added: float = 1.0

    def saw(self, replaced: bool, added: bool) -> None:
        """One more, if it was one of both and not the other."""
        if replaced != added:
            self.replaced = FADE * self.replaced + replaced
            self.added = FADE * self.added + added


class Old:
    """The text and the place."""

    def __init__(self, tokens: Sequence[int], habits: Habits) -> None:
        self._text = Text(tokens)
        self._habits = habits
        self._at = 1
        self._agreed = 0
        self._missed = 0
        self._guessed_at: int | None = None
        """Where the latest word stood that was neither found nor expected, until what follows it is known."""
        self._begun = False

    @property
    def kind(self) -> int:
        """What is known of the place: tells how far it is to be trusted."""
        if not self._begun:
            return FRESH
        return GUESSED if self._missed else min(self._agreed, LONGEST)

    def follow(self, output: Sequence[int], new: int) -> None:
        """The row has said this, the last `new` of it since it was asked last."""
        old = self._text.tokens
        for place in range(len(output) - new, len(output)):
            token = output[place]
            self._begun = True
            if self._guessed_at is not None:
                self._judge(token, self._guessed_at)
            if self._at < len(old) and old[self._at] == token:
                self._at, self._agreed, self._missed = self._at + 1, self._agreed + 1, 0
            else:
                self._join(output, place)

    def rest(self, most: int) -> list[int]:
        """What the old text says next."""
        return self._text.tokens[self._at : self._at + most] if self._missed < LOST else []

    def _judge(self, token: int, at: int) -> None:
        old = self._text.tokens
        self._habits.saw(old[at + 1 : at + 2] == [token], old[at : at + 1] == [token])
        self._guessed_at = None

    def _join(self, output: Sequence[int], place: int) -> None:
        old, best, near, found = self._text.tokens, 0, 0, 0
        for there in self._text.places(output[place]):
            size = overlap(old, there, output, place, min(LONGEST, place + 1))
            away = abs(there - self._at)
            if (size > 1 or away <= REACH) and (size > best or (size == best and away < near)):
                best, near, found = size, away, there
        if best:
            self._at, self._agreed, self._missed = found + 1, best, 0
            return
        if not self._missed:
            self._guessed_at = self._at
        self._missed, self._agreed = self._missed + 1, 0
        if self._missed > 1 or self._habits.replaced >= self._habits.added:
            self._at = min(self._at + 1, len(old))
