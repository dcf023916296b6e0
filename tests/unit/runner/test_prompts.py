"""Prompts: run in pieces, and what many of them begin with only once, without a change of what comes of them."""

import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmasd.kernels import Bits
from cmasd.runner.load import load_runner
from cmasd.runner.prefix import LEAST_SHARED, Prefix, common
from cmasd.runner.prompts import flat_passes, padded_passes
from cmasd.window import Window
from tests.unit.runner.tiny import DECODER_ONLY, tiny_model

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=6)


@pytest.mark.parametrize("cut", [flat_passes, padded_passes])
@given(rows=ROWS, most=st.integers(1, 20))
def test_pieces_cover_every_token_once_and_in_order(cut: Any, rows: list[tuple[int, int]], most: int) -> None:
    starts, ends = [start for start, _ in rows], [start + more for start, more in rows]
    at = list(starts)
    for pieces in cut(starts, ends, most):
        sizes = [piece.stop - piece.start for piece in pieces]
        fed = sum(sizes) if cut is flat_passes else max(sizes) * len(sizes)
        assert fed <= max(most, len(pieces) if cut is padded_passes else 0)
        assert len({piece.row for piece in pieces}) == len(pieces)
        assert cut is flat_passes or len({piece.start for piece in pieces}) == 1, "no padding beyond the longest row"
        for row, start, stop in pieces:
            assert at[row] == start < stop
            at[row] = stop
    assert at == ends


def test_the_longest_beginning_that_half_of_the_rows_share() -> None:
    prefix, shared = Prefix(), list(range(LEAST_SHARED))
    rows = [[*shared, 30], [9, 9], [*shared, 31, 7], [8], [*shared, 31, 8]]
    assert prefix.fresh(rows) == shared
    assert prefix.fresh(rows[1:4]) is None, "one row of three"
    assert prefix.fresh([row[1:] for row in rows]) is None, "too short to be worth it"
    assert prefix.fresh(rows[:1]) is None
    assert prefix.fresh([rows[0], rows[0]]) == rows[0]
    prefix.keep([*shared, 5], torch.zeros(1, 1, 40, 2), None)
    assert prefix.fresh(rows) is None, "the kept one begins like most rows"
    assert [prefix.shared(row) for row in rows] == [LEAST_SHARED, 0, LEAST_SHARED, 0, LEAST_SHARED]


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_common_is_the_longest_common_beginning(one: list[int], other: list[int]) -> None:
    pairs = zip(one, other, strict=False)
    assert common(one, other) == len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def prompts(choose: random.Random, beginning: list[int], lengths: list[int]) -> list[list[int]]:
    """Rows that have so much of it, and words of their own."""
    return [[*beginning[:length], *choose.choices(range(4, 60), k=choose.randint(1, 12))] for length in lengths]


def after(runner: Any, batches: list[list[list[int]]], seed: int) -> list[Tensor]:
    """Hidden states behind three more tokens of every row, batch after batch in the same slots."""
    states: list[Tensor] = []
    choose = random.Random(seed)
    for sources in batches:
        slots = choose.sample(range(runner.slots), len(sources))
        runner.prefill(slots, sources)
        starts = torch.tensor([len(source) - 1 for source in sources])
        rows = torch.tensor(slots)
        order = rows.argsort()
        firsts = torch.arange(len(sources) + 1) * 3
        runner.run(Window(torch.tensor([7, 9, 30] * len(sources)), rows[order], starts[order], firsts, 3))
        hidden = runner.ran[1].view(len(sources), 3, -1)
        states += [*hidden[order.argsort()], runner.hidden_BTd]
    return states


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("family", DECODER_ONLY)
def test_shared_beginnings_change_nothing(family: str, bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a bit where windows run as they are, and nothing beyond rounding in modules of transformers."""
    choose = random.Random(3)
    first, second = (choose.choices(range(4, 60), k=length) for length in (27, 18))
    batches = [
        prompts(choose, first, [27, 20, 27, 3, 27]),
        prompts(choose, first, [27, 20, 0]),
        prompts(choose, first, [27]),
        prompts(choose, second, [18, 18, 18, 4]),
    ]
    whole, sharing = (load_runner(tiny_model(family), 6, 64, 64, bits=bits) for _ in range(2))
    whole.shares_prefixes = False  # type: ignore[attr-defined]
    whole.wants_states = sharing.wants_states = True
    monkeypatch.setattr("cmasd.runner.decoder_only.PREFILL_TOKENS", {"cpu": 40})
    expected = after(whole, batches, seed=5)
    monkeypatch.setattr("cmasd.runner.decoder_only.PREFILL_TOKENS", {"cpu": 11})
    found = after(sharing, batches, seed=5)
    runner: Any = sharing
    assert common(runner._prefix.tokens, second) == len(second), "it is the later batch's"
    for mine, theirs in zip(found, expected, strict=True):
        if runner._whole is not None:
            assert torch.equal(mine, theirs)
        elif bits is None:  # rounding of inputs turns a last digit into a step
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_rows_share_is_run_once(family: str) -> None:
    beginning, fed = list(range(4, 44)), 0
    runner: Any = load_runner(tiny_model(family), 8, 64, 64)
    run = runner._run_piece

    def counted(window: Window) -> Tensor:
        nonlocal fed
        fed += len(window.tokens_N)
        result: Tensor = run(window)
        return result

    runner._run_piece = counted
    runner.prefill(list(range(8)), [[*beginning, 50 + row, 3] for row in range(8)])
    assert fed == len(beginning) + 8
    runner.prefill([3], [[*beginning, 44, 45, 46, 3]])
    assert fed == len(beginning) + 8 + 3
    runner.prefill([3], [[*beginning[:30], 3]])
    assert fed == len(beginning) + 8 + 3, "all of it was known"
