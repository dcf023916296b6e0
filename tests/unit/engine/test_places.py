"""Rows share memory: long ones wait for room, none is lost, slots give back what they took, and no output changes."""

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.config.tree import KEPT_PLACES
from cmasd.core import Request
from cmasd.engine import Engine, Pair, capacity
from cmasd.engine.capacity import fits, need_of, resolve
from cmasd.engine.places import Places
from cmasd.engine.slots import SlotShape
from cmasd.errors import ConfigError
from cmasd.generation.settings import limits
from cmasd.kernels import give_back, kept_zeros
from cmasd.runner.cache import Geometry, SlotCache
from tests.unit.engine.pairs import shared_pair, tiny_config

FIXED: dict[str, Any] = {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 2}}
MAX_SOURCE, MAX_NEW = 400, 8


def long_pair(family: str) -> Pair:
    return replace(shared_pair(family), max_source_tokens=MAX_SOURCE, max_new_tokens=MAX_NEW, parallel=None)


def requests(lengths: list[int]) -> list[Request]:
    choose = np.random.default_rng(5)
    return [Request(key, choose.integers(4, 60, length).tolist(), MAX_NEW) for key, length in enumerate(lengths)]


def outputs(engine: Engine, rows: list[Request]) -> dict[int, list[int]]:
    return {result.key: result.token_ids.tolist() for result in engine.decode(rows)}


LENGTHS = [399, 5, 250, 9, 300, 12, 3]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_rows_that_wait_for_room_come_out_the_same(family: str) -> None:
    pair, rows = long_pair(family), requests(LENGTHS)
    free = Engine(pair, tiny_config(**FIXED, engine={"slots": 4}))
    most = free.shape.places + 60
    engine = Engine(pair, tiny_config(**FIXED, engine={"slots": 4, "cache_tokens": most}))
    places, taken = engine._rows.places, []
    enter = places.enter

    def watched(slot: int, needs: int) -> None:
        enter(slot, needs)
        taken.append(places.taken)

    places.enter = watched  # type: ignore[method-assign]
    assert outputs(engine, rows) == outputs(free, rows)
    assert max(taken) <= most
    assert len(taken) == len(LENGTHS)
    assert places.taken == 0, "all is given back"


def test_less_than_the_longest_row_is_refused() -> None:
    shape = SlotShape(slots=2, staging=8, max_prompt=40, max_new_tokens=8, max_source=0, window=3)
    with pytest.raises(ConfigError, match=r"engine\.cache_tokens: must hold the longest row, got 50; .* at least 51"):
        Places(50, shape)
    assert Places(51, shape).has_room(51)


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors have memory of their own, too."""
    monkeypatch.setattr("cmasd.kernels.mappings.LEAST_BYTES", 1)


def resident(tensor: torch.Tensor) -> int:
    """Bytes of its memory that are there, by the kernel's own count."""
    first = tensor.data_ptr() // mmap.PAGESIZE
    count = -(-tensor.nbytes // mmap.PAGESIZE)
    with Path("/proc/self/pagemap").open("rb") as pages:
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * count), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE


@pytest.mark.usefixtures("sparse")
def test_whole_pages_are_given_back_and_nothing_else() -> None:
    kept = kept_zeros(2, 3, 4, 64, 32, dtype=torch.float64, is_sparse=True)
    kept.fill_(7)
    assert resident(kept) >= kept.nbytes
    give_back(kept[:, 1, :, 16:])  # four pages hold 64 places, of which the last three go
    assert resident(kept) <= kept.nbytes - 2 * 4 * 3 * mmap.PAGESIZE + mmap.PAGESIZE
    assert bool((kept[:, 1, :, 16:] == 0).all())
    kept[:, 1, :, 16:] = 7
    assert bool((kept == 7).all())
    give_back(kept[0, 0, 0, 1:15])
    assert bool((kept == 7).all()), "no whole page"


@pytest.mark.usefixtures("sparse")
def test_a_slot_keeps_its_first_places_alone() -> None:
    geometry = Geometry(2, 2, 32, torch.float64, torch.device("cpu"))
    cache = SlotCache(geometry, slots=3, max_length=1024)
    whole = 2 * 2 * 1024 * 64 * 8
    kept = whole * KEPT_PLACES // 1024
    slack = 64 * mmap.PAGESIZE
    cache.begin([1])
    cache.extend([1], 1000)
    cache.buffer_KSHLP[:, 1, :, :1000] = 3.0
    assert resident(cache.buffer_KSHLP) > 0.9 * whole
    cache.move(1, 0)
    assert bool((cache.buffer_KSHLP[:, 0, :, :1000] == 3.0).all())
    assert resident(cache.buffer_KSHLP) < whole + kept + slack, "what was moved is there once"
    cache.leave([0])
    assert resident(cache.buffer_KSHLP) <= 2 * kept + slack
    assert bool((cache.buffer_KSHLP[:, 0, :, KEPT_PLACES:] == 0).all())


def test_memory_that_holds_not_all_long_rows_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, asked = long_pair("llama"), tiny_config(**FIXED, engine={"slots": 12})
    need = need_of(pair, asked)
    assert need.least(12) < need.of(12)
    free = 0

    def set_free(count: int) -> None:
        nonlocal free
        free = count

    monkeypatch.setattr(capacity, "free_bytes", lambda device: free)
    set_free(need.of(12))
    assert resolve(pair, asked) is asked, "all fit"
    set_free(need.of(12) - 1)
    chosen = resolve(pair, asked).engine
    assert chosen.slots == 12
    assert chosen.cache_tokens is not None
    assert need.longest_tokens <= chosen.cache_tokens < 12 * need.longest_tokens
    assert need.shared(12, chosen.cache_tokens) <= free
    assert resolve(pair, replace(asked, engine=chosen)).engine == chosen
    set_free(need.least(12))
    assert resolve(pair, asked).engine.cache_tokens == need.longest_tokens
    assert fits(pair, asked, 12, free)
    too_many = replace(asked, engine=replace(asked.engine, cache_tokens=need.longest_tokens + 1))
    with pytest.raises(ConfigError, match=rf"engine\.cache_tokens: do not .* expected at most {need.longest_tokens}\."):
        resolve(pair, too_many)
    set_free(need.least(12) - 1)
    with pytest.raises(ConfigError, match=r"got 12 \(.* a slot, and .* for a row as long as allowed.* at most 11\."):
        resolve(pair, asked)
    set_free(int(need.least(3) / capacity.SAFE_SHARE["cpu"]) + 2)
    open_number = replace(asked, engine=replace(asked.engine, slots=None))
    assert resolve(pair, open_number).engine.slots == 3


def test_no_number_of_source_tokens_means_all_that_the_model_takes() -> None:
    pair = shared_pair("llama")
    model = pair.verifier
    positions = model.config.max_position_embeddings
    engine = tiny_config(engine={"max_source_tokens": None, "max_new_tokens": 9}).engine
    assert limits(engine, model.generation_config, model.config).max_source_tokens == positions - 9
    boundless = shared_pair("t5").verifier
    with pytest.raises(ConfigError, match=r"engine\.max_source_tokens: has to be set, got null"):
        limits(engine, boundless.generation_config, boundless.config)
