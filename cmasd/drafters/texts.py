"""A text that grows, and where in it the latest words of a row stand: what all drafts without a model are made of.

Each token knows its places, so that a look-up goes over these and not over the text. Plain Python, because a row brings
a few tokens at a time, for which a call of numpy or torch takes longer than the work.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

EDGE = -1
"""Stands before a text, and between a row's source and its output: nothing matches across it."""
TOLD_APART = 8
"""Tokens by which places in the memory are, at least: it holds many."""
MOST_PLACES = 256
"""Of one token, that are looked at: the latest three quarters, and the first of all."""


@dataclass(frozen=True)
class LookedUp:
    """In what texts drafts are looked up, and how."""

    copies: bool
    """Whether in the row's own output."""
    copies_source: bool
    """Whether in its source, too; where there is no encoder that is part of its tokens anyway."""
    max_ngram: int
    """Latest tokens that are matched at most."""
    memory_tokens: int
    """Of rows before, that are kept; 0: no memory."""
    vocabulary_size: int
    """The verifier says ids below it."""
    inside_words: Collection[int]
    """Ids that go on with a word."""

    @property
    def longest(self) -> int:
        """Tokens by which places in the memory are told apart."""
        return max(self.max_ngram, TOLD_APART)


def overlap(text: Sequence[int], end: int, tail: Sequence[int], last: int, most: int) -> int:
    """How many tokens up to place `end` of a text equal those up to place `last` of another, `most` at most.

    The first text begins with an edge, and the other has `most` tokens, none of them an edge.
    """
    count = 0
    while count < most and text[end - count] == tail[last - count]:
        count += 1
    return count


class Text:
    """Tokens behind an edge."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = [EDGE]
        self._places: dict[int, list[int]] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on."""
        place = len(self.tokens)
        self.tokens += tokens
        for token in tokens:
            if token in self._places:
                self._places[token].append(place)
            else:
                self._places[token] = [place]
            place += 1

    def close(self) -> None:
        """An edge: what follows is another text."""
        self.tokens.append(EDGE)

    def places(self, token: int) -> list[int]:
        """Where it stands, in rising order."""
        found = self._places.get(token, [])
        if len(found) <= MOST_PLACES:
            return found
        return found[: MOST_PLACES // 4] + found[-3 * MOST_PLACES // 4 :]


def copied(text: Text, output_at: int, known: int, most: int, longest: int) -> tuple[list[int], int]:
    """What followed the longest suffix of a row that stands before, and how long that suffix is; 0 for none.

    `text` is the row's source and its decoder tokens, of which there are `known`; its output begins at `output_at`.
    Of places that are as good the latest in the output counts, or else the first in source or prompt, which open with
    what a summary says.
    """
    tokens, last = text.tokens, len(text.tokens) - 1
    longest, found, start = min(longest, known), 0, 0
    for place in reversed(text.places(tokens[last])):
        if place == last or tokens[place + 1] == EDGE:
            continue
        size = overlap(tokens, place, tokens, last, longest)
        if size > found or (size == found and start < output_at):
            found, start = size, place + 1
    rest = tokens[start : start + most] if found else []
    return rest[: rest.index(EDGE)] if EDGE in rest else rest, found


def sayable(tokens: Sequence[int], vocabulary_size: int) -> list[int]:
    """As far as a verifier could say them that says ids below `vocabulary_size`: other tokenizers have other ids."""
    return list(takewhile(lambda token: 0 <= token < vocabulary_size, tokens))
