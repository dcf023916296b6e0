"""Ending a run early and keeping what was begun.

    ask (of a signal handler) -> a mark beside the lease -> readers hand out nothing more, actors leave what they have
    not begun and finish the rest shard by shard -> the stream of reports ends -> `Drained`

The mark travels through the run folder, which every process can reach, so no process has to be addressed. The bound
on the time is the caller's: a library cannot interrupt its own main thread.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cmasd.io.lease import Lease


class Drained(Exception):
    """The run ended as asked, before it was complete."""


class Drain:
    """One run's readiness to end early."""

    def __init__(self) -> None:
        self._wakes = threading.Event()
        self._possible = False
        self.asked = False

    def ask(self) -> bool:
        """From any thread or signal handler; False when nothing is under way that could be finished, or asked twice."""
        if self.asked or not self._possible:
            return False
        self.asked = True
        self._wakes.set()
        return True

    @contextmanager
    def possible(self, lease: Lease) -> Iterator[None]:
        """While shards are being decoded under this lease."""

        def pass_on() -> None:
            self._wakes.wait()
            if self.asked:
                lease.ask_to_stop()

        thread = threading.Thread(target=pass_on, name="drain", daemon=True)
        thread.start()
        self._possible = True
        try:
            yield
        finally:
            self._possible = False
            self._wakes.set()
            thread.join()
