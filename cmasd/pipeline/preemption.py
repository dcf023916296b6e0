"""SIGTERM to an actor: the notice that its machine is about to be taken away.

The actor begins nothing more, finishes and writes the shards that it has begun, for `limits.drain_seconds` at most,
and ends; Ray hands what is left to another actor. A second SIGTERM ends it at once. Ray's own handler, which this
replaces, would end it in the midst of its shards.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_log = logging.getLogger(__name__)

REPLY_SECONDS = 0.5
"""For the answers of the last calls to leave the process."""


class Preemption:
    """One actor's readiness to be ended; calls pass through it from several threads."""

    def __init__(self, seconds: float, on_notice: Callable[[], object], end: Callable[[int], None] = os._exit) -> None:
        """`on_notice` runs in a thread of its own as soon as the notice has come; `end` takes an exit code."""
        self._seconds, self._on_notice, self._end = seconds, on_notice, end
        self._changed = threading.Condition()
        self._busy = 0
        self._noticed = False

    def listen(self) -> None:
        """Handle SIGTERM from now on; only a process's main thread can, elsewhere this does nothing."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._signalled)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """While a call works. One that comes after the notice waits here for the end, so that Ray gives it away."""
        with self._changed:
            self._changed.wait_for(lambda: not self._noticed)
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._noticed:
            self._end(1)
        self._noticed = True
        threading.Thread(target=self._leave, name="preemption", daemon=True).start()

    def _leave(self) -> None:
        deadline = time.monotonic() + self._seconds
        noticing = threading.Thread(target=self._tell, name="preemption notice", daemon=True)
        noticing.start()
        with self._changed:
            _log.warning("preempted with %d shard(s) begun; they have %g s", self._busy, self._seconds)
            done = self._changed.wait_for(lambda: not self._busy, timeout=max(0.0, deadline - time.monotonic()))
        noticing.join(max(0.0, deadline - time.monotonic()))
        if done:
            time.sleep(REPLY_SECONDS)
        self._end(1)

    def _tell(self) -> None:
        with suppress(Exception):  # storage that is away must not keep the process
            self._on_notice()
