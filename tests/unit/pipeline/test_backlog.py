"""Rows leave the backlog by falling length, each once, and none waits for more than one sweep."""

from hypothesis import given
from hypothesis import strategies as st

from cmasd.core import Request
from cmasd.pipeline.backlog import Backlog


def rows(*lengths: int, first: int = 0) -> list[Request]:
    return [Request(first + i, [7] * length, 9) for i, length in enumerate(lengths)]


def lengths(requests: list[Request]) -> list[int]:
    return sorted((len(request.source) for request in requests), reverse=True)


def test_a_sweep_goes_down_and_starts_again_at_the_top() -> None:
    backlog = Backlog()
    backlog.add(rows(5, 1, 9, 3))
    assert lengths(backlog.take(2)) == [9, 5]
    backlog.add(rows(8, 4, 2, first=4))
    assert lengths(backlog.take(2)) == [4, 3], "the row of 8 came after its turn"
    assert lengths(backlog.take(5)) == [2, 1]
    assert lengths(backlog.take(5)) == [8]
    assert backlog.take(5) == []
    assert not backlog


def test_rows_of_one_length_do_not_end_a_sweep() -> None:
    backlog = Backlog()
    backlog.add(rows(4, 4, 4, 2))
    assert lengths(backlog.take(2)) == [4, 4]
    backlog.add(rows(6, first=4))
    assert lengths(backlog.take(2)) == [4, 2]
    assert lengths(backlog.take(2)) == [6]


def test_when_the_end_is_near_whole_shards_come_first() -> None:
    backlog = Backlog()
    backlog.add(rows(5, 1, 9, 3))
    backlog.add(rows(8, 4, 2, first=4))
    backlog.take(1)
    backlog.drain()
    assert [[request.key for request in backlog.take(2)] for _ in range(4)] == [[0, 1], [3, 4], [5, 6], []]


@given(st.lists(st.tuples(st.lists(st.integers(1, 20), max_size=9), st.integers(1, 6)), max_size=12))
def test_every_row_leaves_once_and_overtakes_nobody_for_long(steps: list[tuple[list[int], int]]) -> None:
    backlog = Backlog()
    left: list[int] = []
    waiting: dict[int, int] = {}
    key = tops = 0
    level = 0
    for new, count in [*steps, *[([], 6)] * 40]:
        fresh = rows(*new, first=key)
        key += len(fresh)
        waiting |= {request.key: tops for request in fresh}
        backlog.add(fresh)
        taken = backlog.take(count)
        assert bool(taken) == bool(waiting)
        if taken and lengths(taken)[0] > level:
            tops += 1
        level = lengths(taken)[-1] if taken else level
        for request in taken:
            assert tops - waiting.pop(request.key) <= 2
        left += [request.key for request in taken]
    assert sorted(left) == list(range(key))
    assert len(backlog) == 0
