"""Which slots hold which rows: waiting rows are prefilled in batches, and take the slots of rows that end.

    queue -> staged (prefilled, behind the slots) -> live (slots 0..live-1)

Live rows never leave a hole behind, so that every tensor of the hot loop is a view.
"""

import time
from collections import deque
from typing import Protocol

from cmasd.core import Request, Result
from cmasd.engine.capacity import in_halves
from cmasd.engine.hearing import Hearing
from cmasd.engine.pair import Pair
from cmasd.engine.places import Places
from cmasd.engine.slots import NewRow, SlotShape, SlotState


class Verifying(Protocol):
    """What verifies, as far as rows come and go."""

    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """See `Runner.prefill`."""

    def move(self, source: int, target: int) -> None:
        """See `Runner.move`."""

    def leave(self, slots: list[int]) -> None:
        """See `Runner.leave`."""


class Drafting(Protocol):
    """What drafts, likewise."""

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """See `Drafter.enter`."""

    def follow(self) -> None:
        """See `Drafter.follow`."""

    def move(self, source: int, target: int) -> None:
        """See `Drafter.move`."""

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """See `Drafter.leave`."""


class Rows:
    """Rows from their submission until they are done."""

    def __init__(
        self,
        pair: Pair,
        shape: SlotShape,
        state: SlotState,
        verifier: Verifying,
        drafter: Drafting | None,
        cache_tokens: int | None = None,
        hearing: Hearing | None = None,
    ) -> None:
        """`cache_tokens`: see `Places`; `hearing`: where sources are recordings."""
        self.live = 0
        self.places = Places(cache_tokens, shape)
        self._pair = pair
        self._shape = shape
        self._state = state
        self._verifier = verifier
        self._drafter = drafter
        self._queue: deque[Request] = deque()
        self._staged: deque[int] = deque()
        self._start = pair.decoder_start if pair.is_encoder_decoder else []
        self._hearing = hearing
        self._drafter_seconds = 0.0

    @property
    def pending(self) -> int:
        """Rows that are not done."""
        return len(self._queue) + len(self._staged) + self.live

    def drafter_seconds(self) -> float:
        """That it took to read the sources of new rows since this was last asked; on a GPU, to launch that."""
        seconds, self._drafter_seconds = self._drafter_seconds, 0.0
        return seconds

    def submit(self, requests: list[Request]) -> None:
        """Queue rows behind those already queued, longest sources first among themselves."""
        self._queue.extend(sorted(requests, key=lambda request: -len(request.source)))

    def land(self, results: list[Result]) -> list[Result]:
        """Of the rows that ended, those that are whole: a recording may have another window, which goes first."""
        if self._hearing is None:
            return results
        whole, more = self._hearing.land(results)
        self._queue.extendleft(reversed(more))
        return whole

    def admit(self, later: bool) -> None:
        """Fill free slots; with `later` the drafter may prefill new rows when it is first asked for them."""
        while self.live < self._shape.slots and self._stage(later):
            count = min(self._shape.slots - self.live, len(self._staged))
            self._unstage(list(range(self.live, self.live + count)))
            self.live += count

    def leave(self, done: list[int], results: list[Result], later: bool) -> range:
        """Rows in these slots, ascending, are done: waiting rows take their places, else the last live ones.

        Gives the slots that are live no more.
        """
        self._verifier.leave(done)
        if self._drafter is not None:
            self._drafter.leave(done, results)
        self.places.leave(done)
        while done and self._stage(later):
            count = min(len(done), len(self._staged))
            self._unstage(done[:count])
            done = done[count:]
        self.live -= len(done)
        closed = range(self.live, self.live + len(done))
        inside = [slot for slot in done if slot < self.live]
        if inside:
            self._move(sorted(set(closed) - set(done)), inside)
        return closed

    def _stage(self, later: bool) -> bool:
        """Prefill a batch of queued rows if none is waiting; returns whether any is."""
        if self._staged or not (batch := self._next()):
            return bool(self._staged)
        slots = [self._shape.slots + i for i in range(len(batch))]

        def enter(slots: list[int], requests: list[Request]) -> None:
            self._verifier.prefill(slots, [request.source for request in requests])
            if self._drafter is not None:
                started = time.perf_counter()
                self._drafter.enter(slots, requests, later)
                self._drafter_seconds += time.perf_counter() - started

        in_halves(enter, slots, batch)
        starts = [self._start] * len(batch) if self._hearing is None else self._hearing.begin(slots, batch)
        if self._hearing is not None and self._drafter is not None:
            self._drafter.follow()
        rows = [self._new(request, start) for request, start in zip(batch, starts, strict=True)]
        self._state.enter(self._shape.slots, rows)
        self._staged.extend(slots)
        return True

    def _next(self) -> list[Request]:
        """The rows that are prefilled together, as far as there is room for what they may need."""
        batch: list[Request] = []
        while self._queue and len(batch) < self._shape.staging:
            needs = self._needs(self._queue[0])
            if not self.places.has_room(needs):
                break
            self.places.enter(self._shape.slots + len(batch), needs)
            batch.append(self._queue.popleft())
        return batch

    def _needs(self, request: Request) -> int:
        prompt = self._pair.max_prompt if self._pair.is_encoder_decoder else len(request.source)
        source = len(request.source) if self._shape.max_source else 0
        return self._shape.places_of(prompt, self._new_tokens(request, prompt), source)

    def _new_tokens(self, request: Request, prompt: int) -> int:
        return min(request.max_new_tokens, self._pair.room(prompt))

    def _new(self, request: Request, start: list[int]) -> NewRow:
        encoder = self._pair.is_encoder_decoder
        prompt = start if encoder else request.source
        limit = len(prompt) + self._new_tokens(request, len(prompt))
        return NewRow(request.key, prompt, request.source if encoder else [], limit)

    def _unstage(self, targets: list[int]) -> None:
        self._move([self._staged.popleft() for _ in targets], targets)

    def _move(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.places.move(source, target)
            self._verifier.move(source, target)
            if self._drafter is not None:
                self._drafter.move(source, target)
        self._state.move(sources, targets)
