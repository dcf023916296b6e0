"""Which slots hold which rows: waiting rows are prefilled in batches, and take the slots of rows that end.

    queue -> staged (prefilled, behind the slots) -> live (slots 0..live-1)

Live rows never leave a hole behind, so that every tensor of the hot loop is a view.
"""

from collections import deque

from cmasd.core import Request, Result
from cmasd.drafters import Drafter
from cmasd.engine.capacity import in_halves
from cmasd.engine.hearing import Hearing
from cmasd.engine.pair import Pair
from cmasd.engine.slots import NewRow, SlotShape, SlotState
from cmasd.runner import Runner


class Rows:
    """Rows from their submission until they are done."""

    def __init__(
        self, pair: Pair, shape: SlotShape, state: SlotState, verifier: Runner, drafter: Drafter | None
    ) -> None:
        self.live = 0
        self._pair = pair
        self._shape = shape
        self._state = state
        self._verifier = verifier
        self._drafter = drafter
        self._queue: deque[Request] = deque()
        self._staged: deque[int] = deque()
        self._start = pair.decoder_start if pair.is_encoder_decoder else []
        self._hearing = Hearing(pair.sound, verifier) if pair.sound is not None else None

    @property
    def pending(self) -> int:
        """Rows that are not done."""
        return len(self._queue) + len(self._staged) + self.live

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
        if self._drafter is not None:
            self._drafter.leave(done, results)
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
        if self._staged or not self._queue:
            return bool(self._staged)
        batch = [self._queue.popleft() for _ in range(min(self._shape.staging, len(self._queue)))]
        slots = [self._shape.slots + i for i in range(len(batch))]

        def prefill(slots: list[int], sources: list[list[int]]) -> None:
            self._verifier.prefill(slots, sources)
            if self._drafter is not None:
                self._drafter.prefill(slots, sources, later=later)

        in_halves(prefill, slots, [request.source for request in batch])
        if self._drafter is not None:
            self._drafter.enter(slots, batch)
        starts = self._hearing.begin(slots, batch) if self._hearing is not None else [self._start] * len(batch)
        rows = [self._new(request, start) for request, start in zip(batch, starts, strict=True)]
        self._state.enter(self._shape.slots, rows)
        self._staged.extend(slots)
        return True

    def _new(self, request: Request, start: list[int]) -> NewRow:
        encoder = self._pair.is_encoder_decoder
        prompt = start if encoder else request.source
        limit = len(prompt) + min(request.max_new_tokens, self._pair.room(len(prompt)))
        return NewRow(request.key, prompt, request.source if encoder else [], limit)

    def _unstage(self, targets: list[int]) -> None:
        self._move([self._staged.popleft() for _ in targets], targets)

    def _move(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._verifier.move(source, target)
            if self._drafter is not None:
                self._drafter.move(source, target)
        self._state.move(sources, targets)
