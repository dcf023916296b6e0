"""An old text whose place is found again: what changed words cost, and that no text leads anywhere wrong."""

from itertools import pairwise

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
    assert iterations(TEXT, new, Habits(replaced=2, added=1)) == 3
    assert iterations(TEXT, new, Habits(replaced=1, added=2)) == 2


def test_what_is_usual_is_learned_from_rows_before() -> None:
    habits, new = Habits(), [*TEXT[:11], 7, *TEXT[11:]]
    assert [iterations(TEXT, new, habits) for _ in range(3)] == [3, 3, 2]
    for _ in range(4):
        iterations(TEXT, [*TEXT[:11], 7, *TEXT[12:]], habits)
    assert iterations(TEXT, new, habits) == 3


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
