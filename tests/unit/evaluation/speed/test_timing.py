"""Interleaved measurement and its ratios, with decoders and numbers that are made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmasd.core import Request
from cmasd.evaluation.speed.timing import (
    FEWEST_CHUNKS,
    MOST_CHUNKS,
    Measured,
    Ratio,
    RequestDecoder,
    Rounds,
    exact_match,
    full_rounds,
    interleave,
    paired_ratio,
    ratio,
    rounds_within,
)

CHUNKS = [[Request(2 * i, [7], 4), Request(2 * i + 1, [7, 8], 4)] for i in range(4)]


class Recorder:
    """Notes its calls; its output for a row is `length` times the row's key."""

    def __init__(self, name: str, calls: list[tuple[str, int]], length: int = 1) -> None:
        self.name, self.calls, self.length = name, calls, length

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        self.calls.append((self.name, requests[0].key // 2))
        return {request.key: [request.key] * self.length for request in requests}


def test_every_decoder_takes_every_chunk_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    decoders: dict[str, RequestDecoder] = {name: Recorder(name, calls) for name in "abc"}
    reported: list[tuple[str, int]] = []
    interleave(decoders, CHUNKS, lambda name, chunk: reported.append((name, chunk)))
    assert calls[:3] == [("a", 0), ("b", 0), ("c", 0)], "the warm-up"
    orders = ["abc", "bca", "cab", "abc"]
    assert calls[3:] == [(name, chunk) for chunk, order in enumerate(orders) for name in order]
    assert reported == calls[3:]


def test_outputs_and_tokens_without_the_warm_up() -> None:
    measured = interleave({"one": Recorder("one", []), "two": Recorder("two", [], length=2)}, CHUNKS)
    assert measured["one"].tokens == [2] * 4
    assert measured["two"].tokens == [4] * 4
    assert measured["two"].outputs == {key: [key, key] for key in range(8)}
    assert all(seconds > 0 for one in measured.values() for seconds in one.seconds)
    assert [len(one.seconds) for one in measured.values()] == [4, 4]


def test_rates_and_ratio_of_known_numbers() -> None:
    fast, slow = Measured([1.0, 3.0], [40, 60]), Measured([4.0, 6.0], [50, 50])
    assert fast.tokens_per_second == 25
    assert fast.rates == [40, 20]
    result = ratio(fast, slow)
    assert result.value == 2.5, "25 over 10 tokens per second"
    assert result.low == pytest.approx(20 / (50 / 6)), "the second chunk alone"
    assert result.high == pytest.approx(40 / (50 / 4)), "the first chunk alone"


def test_an_even_machine_gives_a_narrow_interval() -> None:
    result = ratio(Measured([1.0] * 5, [30] * 5), Measured([1.0] * 5, [20] * 5))
    assert (result.value, result.low, result.high) == (1.5, 1.5, 1.5)


def test_interval_is_paired_by_chunk() -> None:
    """A machine that halves its speed now and then does so for both."""
    seconds = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    result = ratio(Measured(seconds, [30] * 6), Measured(seconds, [20] * 6))
    assert result.low == pytest.approx(1.5)
    assert result.high == pytest.approx(1.5)


@given(
    st.lists(
        st.tuples(st.floats(0.5, 2), st.floats(0.5, 2), st.integers(1, 99), st.integers(1, 99)), min_size=6, max_size=8
    )
)
def test_interval_contains_the_value(chunks: list[tuple[float, float, int, int]]) -> None:
    fast = Measured([chunk[0] for chunk in chunks], [chunk[2] for chunk in chunks])
    slow = Measured([chunk[1] for chunk in chunks], [chunk[3] for chunk in chunks])
    result = ratio(fast, slow)
    assert result.low <= result.value * (1 + 1e-12)
    assert result.value <= result.high * (1 + 1e-12)
    assert ratio(fast, slow) == result, "the draws are seeded"


def test_exact_match_counts_rows() -> None:
    reference = {1: [5, 6], 2: [7], 3: [], 4: [8]}
    assert exact_match(reference, reference) == 1
    assert exact_match({1: [5, 6], 2: [7, 7], 3: [], 4: [9]}, reference) == 0.5


def test_a_warm_decoder_is_not_warmed_again() -> None:
    calls: list[tuple[str, int]] = []
    interleave({"a": Recorder("a", calls)}, CHUNKS, is_warm=True)
    assert calls == [("a", chunk) for chunk in range(4)]


def test_paired_ratio_of_known_numbers() -> None:
    """One chunk during which the machine paused moves the totals, not the middle half."""
    fast, slow = Measured([1.0, 1.0, 50.0], [40, 40, 40]), Measured([2.0, 2.0, 2.0], [40, 40, 40])
    assert paired_ratio(fast, slow).value == 2.0
    assert ratio(fast, slow).value < 0.2
    assert paired_ratio(slow, slow) == Ratio(1.0, 1.0, 1.0)
    slowing = Measured([1.0, 2.0, 4.0, 8.0], [40, 40, 40, 40])
    half = Measured([one * 2 for one in slowing.seconds], slowing.tokens)
    assert paired_ratio(slowing, half) == Ratio(2.0, 2.0, 2.0), "a machine that becomes slower, for both"
    four = Measured([1.0] * 4, [10, 20, 40, 1])
    assert paired_ratio(four, Measured([1.0] * 4, [10] * 4)).value == pytest.approx(1.5), "of 0.1, 1, 2 and 4"


def test_chunks_of_rounds_hold_all_sources_in_turn() -> None:
    sources = [[7], [8], [9]]
    chunks = Rounds(chunks=2, rows=4).cut(sources, max_new_tokens=5)
    assert [[request.key for request in chunk] for chunk in chunks] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert all(request.source == sources[request.key % 3] for chunk in chunks for request in chunk)
    assert {request.max_new_tokens for chunk in chunks for request in chunk} == {5}


@pytest.mark.parametrize("batch_size", [1, 2, 8, 64])
def test_full_chunks_fill_the_batch(batch_size: int) -> None:
    assert full_rounds(batch_size).rows >= max(8, 3 * batch_size)


@pytest.mark.parametrize(
    ("seconds", "batch_size", "expected"),
    [
        (-5.0, 32, Rounds(3, 32)),  # the time is over: the least
        (9.6, 32, Rounds(3, 32)),  # 96 rows
        (16.0, 32, Rounds(5, 32)),
        (32.0, 32, Rounds(5, 64)),
        (40.0, 32, Rounds(6, 64)),  # 400 rows: whole batches only
        (48.0, 32, Rounds(5, 96)),
        (86.4, 32, Rounds(9, 96)),
        (999.0, 32, Rounds(9, 96)),
        (2.0, 1, Rounds(5, 4)),
        (3.5, 1, Rounds(5, 7)),
        (6.0, 1, Rounds(7, 8)),
    ],
)
def test_rounds_within_a_time(seconds: float, batch_size: int, expected: Rounds) -> None:
    """At 0.1 s per row."""
    assert rounds_within(seconds, 0.1, batch_size) == expected


@given(st.floats(-10, 1e4), st.floats(1e-4, 10), st.integers(1, 128))
def test_rounds_fit_unless_they_are_the_least(seconds: float, seconds_per_row: float, batch_size: int) -> None:
    rounds = rounds_within(seconds, seconds_per_row, batch_size)
    assert FEWEST_CHUNKS <= rounds.chunks <= MOST_CHUNKS
    assert batch_size <= rounds.rows <= full_rounds(batch_size).rows
    least = Rounds(FEWEST_CHUNKS, max(4, batch_size))
    assert rounds == least or rounds.chunks * rounds.rows * seconds_per_row <= seconds * (1 + 1e-9)
