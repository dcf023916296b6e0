"""How many shards may be under way: fewer and fewer towards the end, so that no slow actor sits on the last ones.

A shard that was given to an actor stays there. With 16 shards in each actor's queue and one actor at a quarter of the
others' speed, these would wait for it after all else is done. So readers ask before they hand a shard out, and half as
many may be under way as are still to be handed out, at least what keeps the slots full: the end is shared out piece
by piece, to whoever has room. Nothing depends on it: who waits too long goes through, and a gate that lost its state
with its process stays open, since it cannot tell what a reader that starts again had handed out before. Blocks must
leave readers at once, as `cmasd.pipeline.cluster` sets it.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

LEAST_ROWS_PER_SLOT = 2
"""The rows being decoded, and as many to take their places."""

NODE_LABEL = "ray.io/node-id"
"""Ray's own, of every node."""

MOST_WAIT_SECONDS = 300.0
"""Of one shard at the gate; then it goes through, whatever is under way."""


@dataclass(frozen=True)
class StartLimits:
    """For one start of a run."""

    shards: int
    """To be handed out in all."""
    most: int
    """Under way at once, over all actors."""
    least: int
    """Under way at once however few are left."""

    def under_way(self, handed_out: int) -> int:
        """How many may be, after so many were handed out."""
        return max(self.least, min(self.most, (self.shards - handed_out) // 2))


def limits(shards: int, actors: int, in_flight: int, rows_per_shard: int, slots: int) -> StartLimits:
    """`in_flight` is the most that one actor takes."""
    least = max(2, math.ceil(LEAST_ROWS_PER_SLOT * slots / rows_per_shard))
    return StartLimits(shards, actors * in_flight, actors * min(least, in_flight))


class Gate:
    """An actor's class: readers enter with a shard, the driver says when one is done."""

    def __init__(
        self,
        allowed: StartLimits,
        most_wait_seconds: float = MOST_WAIT_SECONDS,
        lost_its_state: Callable[[], bool] = lambda: False,
    ) -> None:
        """`lost_its_state` says whether there was a gate before this one, in the same run."""
        self._limits = allowed
        self._is_open = lost_its_state()
        self._most_wait_seconds = most_wait_seconds
        self._entered: set[tuple[int, int]] = set()
        self._done = 0
        self._changed = asyncio.Condition()
        self._wanted = False if self._is_open else None
        self._was_asked = self._is_open

    async def enter(self, file: int, index: int) -> None:
        """Returns when the shard may be handed out; at once when it was before."""
        key = (file, index)
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._most_wait_seconds):
                    await self._changed.wait_for(lambda: key in self._entered or self._has_room())
            self._entered.add(key)

    async def leave(self) -> None:
        """One shard is done."""
        async with self._changed:
            self._done += 1
            self._changed.notify_all()

    async def ask(self, wanted: bool) -> None:
        """The driver says whether the comparison at the end is wanted: now, or not at all."""
        async with self._changed:
            self._wanted = wanted
            self._changed.notify_all()

    async def wanted(self) -> bool:
        """Returns when that was said; a gate that lost its state says no."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._wanted is not None)
        return bool(self._wanted)

    async def is_first(self) -> bool:
        """Whether nobody has begun with the comparison before."""
        asked_before, self._was_asked = self._was_asked, True
        return not asked_before

    def _has_room(self) -> bool:
        return self._is_open or len(self._entered) - self._done < self._limits.under_way(len(self._entered))


def open_gate(allowed: StartLimits) -> Any:
    """On the driver's node, which outlives the others.

    By its label: a node that has just joined may not know the driver's, and soft affinity would then keep the gate.
    """
    import ray

    here = {NODE_LABEL: ray.get_runtime_context().get_node_id()}
    remote: Any = ray.remote
    actor = remote(num_cpus=0, max_concurrency=1000, max_restarts=-1, max_task_retries=-1)(Gate)
    return actor.options(label_selector=here).remote(allowed, lost_its_state=_was_restarted)


def _was_restarted() -> bool:
    """Whether this actor's process is not its first."""
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)
