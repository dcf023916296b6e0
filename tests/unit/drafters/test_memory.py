"""What is remembered, against a search in plain Python over all that fits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cmasd.drafters.memory import LEAST_ALIKE, MOST_PLACES, Memory

TOKEN = st.integers(0, 3)
ROWS = st.lists(st.lists(TOKEN, min_size=1, max_size=9), max_size=8)


def search(rows: list[list[int]], tail: list[int], longest: int, size: int) -> tuple[int, list[list[int]]]:
    """The longest suffix of two tokens or more that was said and went on, and what followed it, latest first.

    Of all rows, each behind an edge, the last `size` tokens are there.
    """
    said = [token for row in rows for token in (-1, *row)]
    said = said[max(0, len(said) - size) :]
    for count in range(min(longest, len(tail)), 1, -1):
        found = []
        for stop in range(len(said) - 1, count - 1, -1):
            if said[stop - count : stop] == tail[-count:] and said[stop] != -1:
                rest = [*said[stop:], -1]
                found.append(rest[: rest.index(-1)])
        if found:
            return count, found
    return 0, []


@given(ROWS, st.lists(TOKEN, max_size=7), st.integers(4, 6), st.integers(12, 60), st.integers(1, 5))
def test_recalls_what_a_plain_search_finds(
    rows: list[list[int]], tail: list[int], longest: int, size: int, most: int
) -> None:
    memory = Memory(size, longest)
    for row in rows:
        memory.learn([1], row)
    recalled = memory.recall(tail, most)
    count, found = search(rows, tail, longest, size)
    if recalled is None:
        assert count == 0
        return
    assert recalled.matched == count
    assert len(found) <= MOST_PLACES
    for tokens, share in zip(recalled.tokens, recalled.shares, strict=True):
        said = [row[:1] for row in found]
        assert share == said.count([tokens]) / len(said)
        assert said.count([tokens]) == max(said.count(one) for one in said)
        found = [row[1:] for row in found if row[:1] == [tokens]]
    assert len(recalled.tokens) == most or [] in found


def test_the_most_frequent_goes_on_and_of_as_frequent_ones_the_latest() -> None:
    memory = Memory(100, 8)
    for row in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7], [1, 2, 3, 5]):
        memory.learn([1], row)
    recalled = memory.recall([1, 2], 9)
    assert recalled is not None
    assert recalled.tokens == [3, 5]
    assert recalled.shares == [3 / 4, 2 / 3]
    memory.learn([1], [1, 2, 6, 8])
    memory.learn([1], [1, 2, 6, 8])
    recalled = memory.recall([1, 2], 9)
    assert recalled is not None
    assert recalled.tokens == [6, 8]


def test_one_token_is_no_match() -> None:
    memory = Memory(100, 8)
    memory.learn([1], [1, 2, 3])
    assert memory.recall([1], 9) is None
    assert memory.recall([], 9) is None
    assert memory.recall([9, 2], 9) is None


def test_the_oldest_make_room_and_nothing_grows_without_bound() -> None:
    memory, draw = Memory(200, 8), np.random.default_rng(0)
    for _ in range(400):
        memory.learn(draw.integers(0, 9999, 6).tolist(), draw.integers(0, 9999, 6).tolist())
        assert len(memory) <= 200 / 7 + 1
        assert len(memory._by_hash) <= len(memory) * 8
    assert len(memory._ring) == 200
    old = [1, 2, 3, 4]
    memory.learn([5, 6, 7], old)
    assert memory.recall(old[:2], 2) is not None
    for _ in range(29):
        assert memory.alike([5, 6, 7]) == old
        memory.learn(draw.integers(0, 9999, 6).tolist(), draw.integers(5, 9999, 6).tolist())
    assert memory.alike([5, 6, 7]) is None
    assert memory.recall(old[:2], 2) is None


def test_a_text_longer_than_the_memory_is_left_out() -> None:
    memory = Memory(4, 8)
    memory.learn([1], [1, 2, 3])
    memory.learn([1], [1, 2, 9, 9])
    assert (recalled := memory.recall([1, 2], 9)) is not None
    assert recalled.tokens == [3]


SOURCE = list(range(40, 60))


def test_a_source_nearly_the_same_gives_the_whole_output() -> None:
    memory = Memory(1000, 8)
    memory.learn(SOURCE, [1, 2, 3])
    memory.learn(list(range(70, 90)), [4, 5, 6])
    assert memory.alike(SOURCE) == [1, 2, 3]
    assert memory.alike([*SOURCE[:7], 99, *SOURCE[8:]]) == [1, 2, 3]
    assert memory.alike(list(reversed(SOURCE))) is None
    assert memory.alike(SOURCE[:4] + list(range(100, 116))) is None


def test_the_likest_source_counts() -> None:
    memory = Memory(1000, 8)
    memory.learn([*SOURCE[:10], 99, *SOURCE[11:]], [1])
    memory.learn(SOURCE, [2])
    memory.learn([*SOURCE[:5], 98, *SOURCE[6:15], 97, *SOURCE[16:]], [3])
    assert memory.alike(SOURCE) == [2]


TEMPLATE = list(range(200, 240))
"""Longer than what stands in it."""


def test_what_a_template_says_makes_no_rows_alike() -> None:
    """Of rows that share two thirds of their tokens only those whose own part comes again are."""
    memory, draw = Memory(10_000, 8), np.random.default_rng(0)
    own = [draw.integers(0, 190, 20).tolist() for _ in range(100)]
    for number, part in enumerate(own):
        memory.learn([*TEMPLATE, *part], [number])
    for number in (30, 60, 99):
        again = [*own[number][:5], 195, *own[number][6:]]
        assert memory.alike([*TEMPLATE, *again]) == [number]
    for _ in range(20):
        assert memory.alike([*TEMPLATE, *draw.integers(0, 190, 20).tolist()]) is None


def test_a_source_that_comes_very_often_is_found_all_the_same() -> None:
    memory = Memory(10_000, 8)
    for number in range(200):
        memory.learn([*TEMPLATE, number % 2, 7, 8, 9], [number % 2])
    assert memory.alike([*TEMPLATE, 0, 7, 8, 9]) == [0]
    assert memory.alike([*TEMPLATE, 1, 7, 8, 9]) == [1]


def test_what_was_forgotten_is_common_no_more() -> None:
    memory = Memory(100, 8)
    for number in range(300):
        memory.learn([*TEMPLATE, number], [1, 2, 3])
    for number in range(60):
        memory.learn(list(range(1000 + 30 * number, 1030 + 30 * number)), [number, 2, 3])
    assert int(memory._having.max()) <= 25
    assert (memory._having >= 0).all()
    assert memory.alike(list(range(2770, 2800))) == [59, 2, 3]


@given(st.lists(TOKEN, min_size=1, max_size=9), st.lists(TOKEN, min_size=1, max_size=9))
def test_likeness_is_of_trigrams_between_edges(one: list[int], other: list[int]) -> None:
    memory = Memory(1000, 8)
    memory.learn(one, [1])
    sets = [set(zip([-1, *text], text, [*text[1:], -1], strict=False)) for text in (one, other)]
    likeness = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    if memory.alike(other) is not None:
        assert likeness >= LEAST_ALIKE
    elif likeness >= LEAST_ALIKE:
        assert max(map(len, sets)) > 8, "a short source is found by all of its trigrams"
