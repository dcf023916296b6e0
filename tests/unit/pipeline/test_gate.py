"""How many shards are under way: full queues first, then less and less, and nobody waits for ever."""

import asyncio
from collections import deque

import pytest

from cmasd.pipeline.gate import Gate, StartLimits, limits


def test_limits() -> None:
    assert limits(shards=100, actors=4, in_flight=16, rows_per_shard=32, slots=32) == StartLimits(100, 64, 8)
    assert limits(100, 2, 16, rows_per_shard=8, slots=32) == StartLimits(100, 32, 16), "enough rows for the slots"
    assert limits(100, 2, 3, rows_per_shard=8, slots=32) == StartLimits(100, 6, 6), "never over what was asked for"
    allowed = StartLimits(100, 32, 4)
    assert [allowed.under_way(n) for n in (0, 36, 50, 80, 99, 100)] == [32, 32, 25, 10, 4, 4]


def test_readers_wait_until_enough_is_done() -> None:
    async def check() -> None:
        gate = Gate(StartLimits(shards=10, most=4, least=2))
        for index in range(3):
            await asyncio.wait_for(gate.enter(0, index), 1)
        fourth = asyncio.ensure_future(gate.enter(0, 3))
        await asyncio.sleep(0.01)
        assert not fourth.done(), "seven are left, hence three under way"
        await asyncio.wait_for(gate.enter(0, 1), 1)  # a reader that starts again asks for what it had
        await gate.leave()
        await asyncio.wait_for(fourth, 1)

    asyncio.run(check())


def test_a_gate_that_lost_its_state_stops_nobody() -> None:
    async def check() -> None:
        gate = Gate(StartLimits(shards=50, most=8, least=2), lost_its_state=lambda: True)
        await gate.leave()  # of a shard that only its predecessor knew
        for index in range(50):  # of a reader that starts again and hands out what was done long ago
            await asyncio.wait_for(gate.enter(0, index), 1)

    asyncio.run(check())


def test_who_waits_too_long_goes_through() -> None:
    async def check() -> None:
        gate = Gate(StartLimits(shards=9, most=1, least=1), most_wait_seconds=0.05)
        for index in range(3):
            await asyncio.wait_for(gate.enter(0, index), 1)

    asyncio.run(check())


def idle_seconds(shards: int, seconds_per_shard: list[float], in_flight: int, gated: bool) -> float:
    """Between the first actor's last shard and the end; shards go to the shortest queue, as Ray Data deals them."""
    allowed = limits(shards, len(seconds_per_shard), in_flight, 32, 32)
    queues = [deque[int]() for _ in seconds_per_shard]
    ends: list[float] = [0.0] * len(queues)
    clock, dealt = 0.0, 0
    while True:
        while dealt < shards:
            shortest = min(range(len(queues)), key=lambda actor: len(queues[actor]))
            under_way = sum(map(len, queues))
            if len(queues[shortest]) == in_flight or (gated and under_way >= allowed.under_way(dealt)):
                break
            if not queues[shortest]:
                ends[shortest] = clock + seconds_per_shard[shortest]
            queues[shortest].append(dealt)
            dealt += 1
        busy = [actor for actor, queue in enumerate(queues) if queue]
        if not busy:
            return max(ends) - min(ends)
        actor = min(busy, key=lambda actor: ends[actor])
        clock = ends[actor]
        queues[actor].popleft()
        if queues[actor]:
            ends[actor] = clock + seconds_per_shard[actor]


@pytest.mark.parametrize("actors", [2, 4, 8])
def test_one_actor_four_times_slower_keeps_the_others_waiting_less(actors: int) -> None:
    speeds = [1.0] * (actors - 1) + [4.0]
    without, with_gate = (idle_seconds(60 * actors, speeds, 16, gated) for gated in (False, True))
    assert without > 40
    assert with_gate < 12
