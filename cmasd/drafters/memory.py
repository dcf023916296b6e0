"""What rows said before, for rows to come: a ring of tokens with the oldest out first.

Two ways in. By the latest words of a row: a chain of places for each two and each four tokens, as in LZ77, of which
the latest are looked at, and those that agree longest vote on what follows. By its source: a row whose source nearly
repeats an earlier one's (trigrams, Jaccard of 0.4 or more) may take the whole output of that row. Trigrams that many
sources have, of a template or an instruction, make none alike, and are left out.

Costs some 150 bytes for each remembered token, most of it for finding sources.
"""

from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmasd.drafters.texts import EDGE

LEVELS = (4, 2)
"""Tokens by which places are chained; the longer are looked up first."""
MOST_PLACES = 16
"""Of a chain, that are looked at."""
LEAST_HEADS = 12
"""Of chains, as a power of two."""
LEAST_ALIKE = 0.4
SKETCH = 8
"""Hashed trigrams of a source by which it is found: the least of them, which sources that are alike share."""
COMMON_PLACES = 1 << 16
COMMON_SHARE = 0.25
"""Of the rows: what more of them have tells none from another."""
MOST_ALIKE = 4
"""Earlier rows of which the likeness is computed."""

Hashes = NDArray[np.uint64]
_COMMON = np.uint64(COMMON_PLACES - 1)


@dataclass(frozen=True, slots=True)
class Remembered:
    """One row."""

    trigrams: Hashes
    """Of its source, sorted."""
    sketch: list[int]
    """Those by which it is found."""
    start: int
    """Of its output, as a number of tokens since the beginning."""
    stop: int


@dataclass(slots=True)
class Recalled:
    """What followed."""

    tokens: list[int]
    shares: list[float]
    """Of the places that agreed so far, those that go on so."""
    matched: int
    """Tokens that agree before."""


class Memory:
    """Of one engine."""

    def __init__(self, most_tokens: int, longest: int) -> None:
        """`longest`: tokens by which places are told apart."""
        self.most_tokens = most_tokens
        self._longest = max(longest, *LEVELS)
        self._ring = array("i")
        self._links = {level: array("q") for level in LEVELS}
        places = 1 << max(LEAST_HEADS, most_tokens.bit_length())
        self._mask, self._last_mask = (1 << LEAST_HEADS) - 1, places - 1
        """Of keys that are told apart, now and at last: few tokens need few."""
        self._heads = {level: memoryview(bytearray(8 * places)).cast("q") for level in LEVELS}
        """By hash; who shares one is in one chain, and is told apart by its tokens."""
        self._written = 0
        self._rows: deque[Remembered] = deque()
        self._first_row = 0
        self._by_hash: dict[int, list[int]] = {}
        self._having = np.zeros(COMMON_PLACES, dtype=np.int32)
        """Rows that have a trigram, by its last bits."""

    def __len__(self) -> int:
        """Rows that are remembered by their source."""
        return len(self._rows)

    def emptied(self) -> "Memory":
        """One like it."""
        return Memory(self.most_tokens, self._longest)

    # ---------------------------------------------------------------- by the latest words

    def recall(self, tail: Sequence[int], most: int) -> Recalled | None:
        """What followed the longest suffix of `tail`, of two tokens or more; None where it was never said."""
        for level in LEVELS:
            if len(tail) < level:
                continue
            places: list[int] = []
            matched = level
            place: int = self._heads[level][_key(tail[-level:]) & self._mask]
            for _ in range(MOST_PLACES):
                if place <= self._written - self.most_tokens or place <= 0:
                    break
                size = self._overlap(place, tail) if self._token(place + 1) != EDGE else 0
                if size > matched:
                    matched, places = size, []
                if size == matched:
                    places.append(place)
                place = self._links[level][place % self.most_tokens]
            if places:
                return self._vote(places, matched, most)
        return None

    def _overlap(self, place: int, tail: Sequence[int]) -> int:
        count, most = 0, min(self._longest, len(tail), place + self.most_tokens - self._written)
        while count < most and self._ring[(place - count) % self.most_tokens] == tail[-1 - count]:
            count += 1
        return count

    def _token(self, place: int) -> int:
        return self._ring[place % self.most_tokens] if place <= self._written else EDGE

    def _vote(self, places: list[int], matched: int, most: int) -> Recalled:
        tokens: list[int] = []
        shares: list[float] = []
        for step in range(1, most + 1):
            if len(places) == 1:
                rest = self._rest(places[0] + step, most - len(tokens))
                return Recalled(tokens + rest, shares + [1.0] * len(rest), matched)
            said = [self._token(place + step) for place in places]
            token, share = said[0], 1.0
            if said.count(token) < len(said):  # of those that are said as often the latest counts
                token = max(dict.fromkeys(said), key=said.count)
                share = said.count(token) / len(said)
                places = [place for place, one in zip(places, said, strict=True) if one == token]
            if token == EDGE:
                break
            tokens.append(token)
            shares.append(share)
        return Recalled(tokens, shares, matched)

    def _rest(self, place: int, most: int) -> list[int]:
        """What was said from there on, up to an edge."""
        at, stop = place % self.most_tokens, min(place + most, self._written + 1)
        tokens = self._ring[at : at + stop - place]
        if len(tokens) < stop - place:
            tokens += self._ring[: stop - place - len(tokens)]
        said: list[int] = tokens.tolist()
        return said[: said.index(EDGE)] if EDGE in said else said

    # ---------------------------------------------------------------- by the source

    def alike(self, source: Sequence[int]) -> list[int] | None:
        """The output of the row whose source is most like this one; None where none is."""
        whole = _trigrams(source)
        trigrams = self._telling(whole)
        shared = Counter(row for one in trigrams[:SKETCH].tolist() for row in self._by_hash.get(one, ()))
        best, found = LEAST_ALIKE, None
        for row, _ in shared.most_common(MOST_ALIKE):
            known = self._rows[row - self._first_row]
            others = known.trigrams if trigrams is whole else self._telling(known.trigrams)
            both = len(np.intersect1d(trigrams, others, assume_unique=True))
            likeness = both / (len(trigrams) + len(others) - both)
            if likeness >= best:
                best, found = likeness, known
        return None if found is None else [self._token(place) for place in range(found.start, found.stop)]

    def _telling(self, trigrams: Hashes) -> Hashes:
        """Those that few rows have; all, where many rows have each: then it is the whole source that comes again."""
        few = self._having[trigrams & _COMMON] <= max(MOST_PLACES, COMMON_SHARE * len(self._rows))
        return trigrams if few.all() or not few.any() else trigrams[few]

    # ---------------------------------------------------------------- learning

    def learn(self, source: Sequence[int], output: Sequence[int]) -> None:
        """A row is done."""
        if not 0 < len(output) < self.most_tokens:
            return
        self._write([EDGE, *output])
        while self._rows and self._rows[0].start <= self._written - self.most_tokens:
            self._forget(self._rows.popleft())
        trigrams = _trigrams(source)
        sketch = self._telling(trigrams)[:SKETCH].tolist()
        np.add.at(self._having, trigrams & _COMMON, 1)
        self._rows.append(Remembered(trigrams, sketch, self._written - len(output) + 1, self._written + 1))
        for one in sketch:
            rows = self._by_hash.setdefault(one, [])
            rows.append(self._first_row + len(self._rows) - 1)
            del rows[:-MOST_PLACES]

    def _forget(self, row: Remembered) -> None:
        """The oldest."""
        np.subtract.at(self._having, row.trigrams & _COMMON, 1)
        for one in row.sketch:
            rows = self._by_hash[one]
            if rows[0] == self._first_row:
                rows.pop(0)
            if not rows:
                del self._by_hash[one]
        self._first_row += 1

    def _write(self, tokens: list[int]) -> None:
        """An edge, then a text."""
        self._grow(len(tokens))
        self._tell_apart(self._written + len(tokens) - 1)
        for count, token in enumerate(tokens):
            self._written += 1
            self._ring[self._written % self.most_tokens] = token
            self._chain(self._written, tokens, count)

    def _chain(self, place: int, tokens: Sequence[int], last: int) -> None:
        """The token at a place is the last of these, which begin with an edge."""
        for level in LEVELS:
            if last >= level:
                key = _key(tokens[last - level + 1 : last + 1]) & self._mask
                self._links[level][place % self.most_tokens] = self._heads[level][key]
                self._heads[level][key] = place

    def _tell_apart(self, tokens: int) -> None:
        """More keys, before the ring is full."""
        if self._mask >= self._last_mask or tokens <= self._mask:
            return
        while self._mask < self._last_mask and tokens > self._mask:
            self._mask = 2 * self._mask + 1
        for head in self._heads.values():
            head[:] = memoryview(bytearray(8 * len(head))).cast("q")
        text = [EDGE]
        for place in range(1, self._written + 1):
            text = [EDGE] if self._ring[place] == EDGE else [*text, self._ring[place]]
            self._chain(place, text, len(text) - 1)

    def _grow(self, more: int) -> None:
        """Arrays as long as they are needed, and no longer than the ring."""
        missing = min(self.most_tokens, self._written + more + 1) - len(self._ring)
        for one in (self._ring, *self._links.values()):
            values: Any = one
            values.extend([0] * max(0, missing))


def _key(tokens: Sequence[int]) -> int:
    """A hash of the latest words."""
    key = 0
    for token in tokens:
        key = (key + token + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return key >> 32


def _trigrams(source: Sequence[int]) -> Hashes:
    """Of a text between edges: one for each token. Sorted by their hash, each once."""
    around = np.array([EDGE, *source, EDGE], dtype=np.int64).astype(np.uint64)
    return np.unique(_mixed(around[2:] + _mixed(around[1:-1] + _mixed(around[:-2]))))


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(29))
