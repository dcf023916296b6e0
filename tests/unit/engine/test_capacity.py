"""What is counted is at least what is allocated, a chosen number fits, and one that does not is refused in words."""

import gc
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cmasd.config import Config
from cmasd.config.tree import MOST_SLOTS
from cmasd.engine import Engine, Pair, capacity
from cmasd.engine.capacity import (
    SAFE_SHARE,
    choose_slots,
    fits,
    host_free_bytes,
    in_halves,
    is_out_of_memory,
    need_of,
    resolve,
)
from cmasd.errors import ConfigError
from cmasd.pipeline import place
from cmasd.runner.load import load_runner
from tests.unit.engine.pairs import shared_pair, tiny_config

FAMILIES = ["marian", "t5", "llama"]
SHARE = SAFE_SHARE["cpu"]
FIXED = {"policy": {"kind": "fixed"}}


def left_open(config: Config) -> Config:
    return replace(config, engine=replace(config.engine, slots=None))


def allocated_bytes() -> int:
    """All tensors alive, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def engine_bytes(family: str, slots: int, kind: str) -> int:
    before = allocated_bytes()
    engine = Engine(pair_for(family, kind), tiny_config(**FIXED, engine={"slots": slots}, drafter={"kind": kind}))
    after = allocated_bytes()
    assert engine.pending == 0
    return after - before


def pair_for(family: str, kind: str) -> Pair:
    """With the one drafter that is asked for."""
    pair = shared_pair(family)
    return replace(pair, parallel=None) if kind == "model" else replace(pair, drafter=None)


@pytest.mark.parametrize("kind", ["model", "parallel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_counted_is_at_least_what_is_allocated(family: str, kind: str) -> None:
    pair, config = pair_for(family, kind), tiny_config(**FIXED, drafter={"kind": kind})
    Engine(pair, config)  # whatever a first engine leaves behind
    small, large = engine_bytes(family, 20, kind), engine_bytes(family, 60, kind)
    need = need_of(pair, config)
    assert 0.3 * need.slot_bytes < (large - small) / 40 <= need.slot_bytes
    assert small <= need.of(20)
    assert large <= need.of(60)


def test_drafting_longer_contexts_and_telemetry_cost_memory() -> None:
    pair, config = shared_pair("marian"), tiny_config(**FIXED)
    usual = need_of(pair, config).slot_bytes
    assert need_of(pair, tiny_config(policy={"kind": "plain"})).slot_bytes < usual
    assert need_of(pair, tiny_config(**FIXED, telemetry={"level": "none"})).slot_bytes < usual
    assert need_of(pair, tiny_config(**FIXED, drafter={"max_draft_tokens": 9})).slot_bytes > usual
    assert need_of(replace(pair, max_new_tokens=99), config).slot_bytes > usual
    assert need_of(replace(pair, max_source_tokens=99), config).slot_bytes > usual


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [1, 2, 27])
def test_the_chosen_number_fits_and_one_more_does_not(family: str, slots: int) -> None:
    pair, config = shared_pair(family), tiny_config(**FIXED)
    free = int(need_of(pair, config).of(slots) / SHARE) + 2
    assert choose_slots(need_of(pair, config), "cpu", free) == slots
    assert fits(pair, config, slots, int(free * SHARE))
    assert not fits(pair, config, slots + 1, int(free * SHARE))


def test_plenty_of_memory_does_not_mean_endless_batches() -> None:
    assert choose_slots(need_of(shared_pair("marian"), tiny_config()), "cpu", 2**60) == MOST_SLOTS["cpu"]
    assert vars(place)["MOST_SLOTS"] == MOST_SLOTS


def test_no_memory_is_an_error_that_says_what_to_lower() -> None:
    with pytest.raises(ConfigError, match=r"^engine\.slots: does not fit into memory, got 1 .*not even one slot fits"):
        choose_slots(need_of(shared_pair("marian"), tiny_config()), "cpu", 1000)


def test_an_open_number_is_chosen_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair, config = shared_pair("marian"), left_open(tiny_config(**FIXED))
    need = need_of(pair, config)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: int(2 * need.of(9) / SHARE) + 2)
    with caplog.at_level(logging.INFO, capacity.log.name):
        chosen = resolve(pair, config, engines=2)
    assert chosen.engine.slots == 9
    assert replace(chosen, engine=config.engine) == config, "nothing else changes"
    [message] = caplog.messages
    assert f"'slots': 9, 'slot_bytes': {need.slot_bytes}" in message
    assert resolve(pair, chosen) is chosen
    assert len(Engine(pair, chosen).state.keys) >= 9


def test_a_number_that_does_not_fit_is_refused_with_the_largest_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, config = shared_pair("marian"), tiny_config(**FIXED, engine={"slots": 12})
    monkeypatch.setattr(capacity, "free_bytes", lambda device: need_of(pair, config).of(11))
    with pytest.raises(
        ConfigError, match=r"^engine\.slots: does not fit into memory, got 12 \(.*kB a slot.*; expected at most 11\."
    ):
        resolve(pair, config)
    assert resolve(pair, tiny_config(**FIXED, engine={"slots": 11})).engine.slots == 11


class Narrow:
    """Prefills at most `most` rows at once, like a device that is nearly full."""

    def __init__(self, most: int, error: RuntimeError) -> None:
        self.most = most
        self.error = error
        self.done: list[tuple[int, list[int]]] = []
        self.calls = 0

    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        self.calls += 1
        if len(slots) > self.most:
            raise self.error
        self.done += zip(slots, sources, strict=True)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize(("rows", "most", "calls"), [(7, 7, 1), (8, 4, 3), (7, 2, 7), (5, 1, 9)])
def test_a_batch_that_does_not_fit_is_split(error: RuntimeError, rows: int, most: int, calls: int) -> None:
    runner, slots, sources = Narrow(most, error), list(range(10, 10 + rows)), [[i] for i in range(rows)]
    in_halves(runner.prefill, slots, sources)
    assert runner.done == list(zip(slots, sources, strict=True))
    assert runner.calls == calls


def test_one_row_that_does_not_fit_and_any_other_error_end_the_attempt() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(Narrow(0, NO_MEMORY[0]).prefill, [1, 2], [[1], [2]])
    other = Narrow(0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_halves(other.prefill, [1, 2], [[1], [2]])
    assert other.calls == 1


def test_what_torch_says_when_a_host_is_full_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46, dtype=torch.int8).fill_(1)
    assert is_out_of_memory(caught.value)


def test_a_split_prefill_changes_no_output() -> None:
    """The rows of a split batch hold what they would hold otherwise."""
    pair = shared_pair("marian")
    whole, split = (load_runner(pair.verifier, slots=6, max_length=9, max_source_length=8) for _ in range(2))
    sources = [[5, 6, 7], [9], [4, 4, 4, 4, 4], [8, 3]]
    whole.prefill([0, 1, 2, 3], sources)
    real = split.prefill

    def narrow(slots: list[int], sources: list[list[int]]) -> None:
        if len(slots) > 2:
            raise NO_MEMORY[0]
        real(slots, sources)

    in_halves(narrow, [0, 1, 2, 3], sources)
    tokens, starts = torch.full((4, 1), 3), torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(split.forward(tokens, starts), whole.forward(tokens, starts))


# -------------------------------------------------------------------- memory of the machine

MEMINFO = "MemTotal:       2000 kB\nMemFree:  1 kB\nMemAvailable:   1000 kB\n"


def machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1_024_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 1_024_000),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/memory.max": "900000\n",
                "sys/fs/cgroup/pod/memory.current": "500000\n",
                "sys/fs/cgroup/pod/memory.stat": "anon 5\ninactive_file 70000\n",
                "sys/fs/cgroup/pod/box/memory.max": "max\n",
                "sys/fs/cgroup/pod/box/memory.current": "1\n",
            },
            470_000,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/job\n3:pids:/other\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "600000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "500000\n",
                "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 20000\n",
            },
            120_000,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "5000\n",
                "sys/fs/cgroup/memory.current": "9000\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_the_least_that_anyone_allows(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert host_free_bytes(machine(tmp_path, files)) == expected


def test_this_machine_has_memory() -> None:
    assert 2**20 < host_free_bytes() < 2**50
