"""An old text whose place is found again: what changed words cost, and that no text leads anywhere wrong."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmasd.drafters.rejoin import FRESH, GUESSED, LOST, Habits, Old

TEXT = list(range(100, 130))
"""Thirty different tokens; the last stands for the end of sequence."""
LONG = 64


def iterations(old: list[int], new: list[int], habits: Habits | None = None, most: int = LONG) -> int:
    """Of a verifier that says `new`, whatever is drafted, with drafts of `old`."""
    drafts, output, asked, count = Old(old, habits or Habits()), list[int](), 0, 0
    while len(output) < len(new):
        drafts.follow(output, len(output) - asked)
        asked = len(output)
        draft = drafts.rest(min(most, len(new) - len(output) - 1))
        accepted = 0
        while accepted < len(draft) and draft[accepted] == new[len(output) + accepted]:
            accepted += 1
        output = new[: len(output) + accepted + 1]
        count += 1
    return count


def test_an_unchanged_text_takes_one_iteration() -> None:
    assert iterations(TEXT, TEXT) == 1
    assert iterations(TEXT, TEXT, most=9) == 3


@pytest.mark.parametrize("place", [0, 1, 11, 27])
def test_a_changed_word_costs_one_iteration(place: int) -> None:
    assert iterations(TEXT, [*TEXT[:place], 7, *TEXT[place + 1 :]]) == 2


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("place", [0, 1, 11, 22])
def test_left_out_words_cost_one_iteration(place: int, count: int) -> None:
    assert iterations(TEXT, TEXT[:place] + TEXT[place + count :]) == 2


@pytest.mark.parametrize("place", [0, 1, 11, 27])
def test_an_added_word_costs_one_iteration_where_that_is_usual_and_else_two(place: int) -> None:
    """One new token does not tell whether it replaces the old one: the verifier's next token does."""
    new = [*TEXT[:place], 7, *TEXT[place:]]
    assert iterations(TEXT, new, Habits()) == 3
    assert iterations(TEXT, new, Habits(usual={1: [2.0, 1.0, 0.5]})) == 2
    assert iterations(TEXT, new, Habits(of_token={7: [2.0, 0.0, 0.0]})) == 2
    assert iterations(TEXT, new, Habits(of_token={8: [2.0, 0.0, 0.0]})) == 3


def test_what_is_usual_is_learned_from_rows_before() -> None:
    habits, new = Habits(), [*TEXT[:11], 7, *TEXT[11:]]
    assert [iterations(TEXT, new, habits) for _ in range(3)] == [3, 2, 2]
    for _ in range(6):
        iterations(TEXT, [*TEXT[:11], 7, *TEXT[12:]], habits)
    assert iterations(TEXT, new, habits) == 3


def test_each_token_has_habits_of_its_own() -> None:
    """One that is always added, between others that always replace a word: learned by its first few."""
    habits, costs = Habits(), []
    for row in range(12):
        assert iterations(TEXT, [*TEXT[:9], 40 + row, *TEXT[10:]], habits) == 2
        costs.append(iterations(TEXT, [*TEXT[:11], 7, *TEXT[11:]], habits))
    assert costs[0] == 3
    assert costs[-8:] == [2] * 8
    assert iterations(TEXT, [*TEXT[:9], 60, *TEXT[10:]], habits) == 2


def test_a_word_of_several_tokens_that_was_replaced_costs_an_iteration_for_each_new_one() -> None:
    """110, 111 and 112 are one word: behind its replacement the next word is looked for, not 111."""
    inside = {111, 112}
    for word in ([7], [7, 8], [7, 8, 9]):
        new = [*TEXT[:10], *word, *TEXT[13:]]
        assert iterations(TEXT, new, Habits(inside)) == 1 + len(word)
    assert iterations(TEXT, [*TEXT[:10], 7, *TEXT[13:]], Habits()) == 3, "where nobody knows what a word is"


def test_all_ways_to_go_on_are_told_the_likeliest_first() -> None:
    """For who can draft them all at once."""
    drafts = Old(TEXT, Habits({111, 112}))
    drafts.follow([*TEXT[:10], 7], 11)
    assert list(drafts.rests(2)) == [TEXT[13:15], TEXT[11:13], TEXT[10:12]]
    drafts = Old(TEXT, Habits())
    drafts.follow([*TEXT[:10], 7], 11)
    assert list(drafts.rests(2)) == [TEXT[11:13], TEXT[10:12]]
    drafts.follow([*TEXT[:10], 7, TEXT[10]], 1)
    assert list(drafts.rests(2)) == [TEXT[11:13]]


WORDS = 400
SIZES = np.random.default_rng(3).integers(1, 4, WORDS)
"""Tokens of each word; the first 40 are often added, as commas are, and have one."""
SIZES[:40] = 1


def tokens_of(words: list[int]) -> list[int]:
    return [4 * word + piece for word in words for piece in range(SIZES[word])]


INSIDE = {4 * word + piece for word in range(WORDS) for piece in (1, 2)}


def edits(seed: int, rows: int) -> Iterator[tuple[list[int], list[int], int]]:
    """Texts of 30 words before and after three changed words far apart, and the new tokens; one more for a word that
    was left out, which the verifier's next token tells.
    """
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        words = rng.choice(np.arange(40, WORDS), 34, replace=False).tolist()
        old, spare, new, cost = words[:30], words[30:], [], 0
        for place, word in enumerate(old):
            kind = rng.integers(3) if place in (5, 15, 25) else None
            if kind is None:
                new.append(word)
            elif kind == 0:
                new.append(spare.pop())
                cost += int(SIZES[new[-1]])
            elif kind == 1:
                new += [int(rng.integers(40)), word]
                cost += 1
            else:
                cost += 1
        yield tokens_of(old), tokens_of(new), cost


class Fixed(Habits):
    """Each new token is taken for the old one in its place, and nothing is learned."""

    def weights(self, count: int, token: int) -> list[float]:
        return [0.0, 1.0, 0.0]


def test_on_an_edited_corpus_a_changed_word_costs_an_iteration_for_each_new_token() -> None:
    """Substituted, added or left out, three in a row of 60 tokens: once the first hundred rows have told what is
    usual, four rows in five take no iteration more than that, where each new token was taken for an old one it was one
    in twelve. Tokens per iteration rise from 8.9 to 11.5.
    """

    def decoded(habits: Habits) -> tuple[float, float]:
        for old, new, _ in edits(1, 100):
            iterations(old, new, habits)
        made = taken = within = 0
        for old, new, cost in edits(2, 300):
            took = iterations(old, new, habits)
            made, taken, within = made + len(new), taken + took, within + (took <= 1 + cost)
        return made / taken, within / 300

    before, few = decoded(Fixed())
    now, most = decoded(Habits(INSIDE))
    assert now > 1.25 * before
    assert few < 0.1
    assert most > 0.8


def test_a_longer_jump_is_found_by_two_tokens() -> None:
    assert iterations(TEXT, TEXT[15:]) == 3, "the first token is far off, and might be chance"
    assert iterations(TEXT, TEXT[20:28] + TEXT[:20]) == 5


def test_of_places_that_agree_as_long_the_nearest_is_taken() -> None:
    old = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 5]
    drafts = Old(old, Habits())
    drafts.follow([1, 2, 3, 9, 8], 5)
    drafts.follow([1, 2, 3, 9, 8, 1, 2], 2)
    assert drafts.rest(2) == [4, 9]


def test_a_lost_text_says_nothing_until_it_is_found() -> None:
    drafts = Old(TEXT, Habits())
    output: list[int] = []
    assert (drafts.kind, drafts.rest(2)) == (FRESH, TEXT[:2])
    for count in range(1, LOST + 1):
        output.append(count)
        drafts.follow(output, 1)
        assert drafts.kind == GUESSED
        assert bool(drafts.rest(2)) == (count < LOST)
    output += TEXT[20:22]
    drafts.follow(output, 2)
    assert (drafts.kind, drafts.rest(2)) == (2, TEXT[22:24])


@given(
    st.lists(st.integers(0, 4), max_size=30), st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 9)
)
def test_any_text_ends(old: list[int], new: list[int], most: int) -> None:
    assert 1 <= iterations(old, new, most=most) <= len(new)


@given(st.lists(st.integers(0, 4), max_size=20), st.lists(st.lists(st.integers(0, 4)), max_size=6))
def test_it_matters_not_how_often_it_is_asked(old: list[int], pieces: list[list[int]]) -> None:
    """Plain iterations in between, after which several tokens are new."""
    output = [token for piece in pieces for token in piece]
    at_once, by_pieces = Old(old, Habits()), Old(old, Habits())
    at_once.follow(output, len(output))
    ends = [0, *[sum(map(len, pieces[: count + 1])) for count in range(len(pieces))]]
    for start, end in pairwise(ends):
        by_pieces.follow(output[:end], end - start)
    assert by_pieces.rest(99) == at_once.rest(99)
    assert by_pieces.kind == at_once.kind
