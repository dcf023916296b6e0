"""SIGTERM to an actor: what it finishes, what it leaves, and that it ends in time."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cmasd.pipeline import preemption
from cmasd.pipeline.preemption import Preemption


class End:
    """In place of `os._exit`."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.came = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.came.set()


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    monkeypatch.setattr(preemption, "REPLY_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGTERM)
    yield End()
    signal.signal(signal.SIGTERM, before)


def begun(one: Preemption, work: Callable[[], object]) -> threading.Thread:
    """A call in a thread of its own that is under way when this returns."""
    inside = threading.Event()

    def call() -> None:
        with one.begun():
            inside.set()
            work()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    inside.wait(10)
    return thread


def test_what_was_begun_is_finished_and_nothing_more_is_begun(end: End) -> None:
    noticed, finish = threading.Event(), threading.Event()
    one = Preemption(60.0, noticed.set, end)
    one.listen()
    call = begun(one, finish.wait)
    os.kill(os.getpid(), signal.SIGTERM)
    assert noticed.wait(10)
    late: list[str] = []

    def come_late() -> None:
        with one.begun():
            late.append("begun")

    threading.Thread(target=come_late, daemon=True).start()
    assert not end.came.wait(0.2), "a shard is being decoded"
    finish.set()
    call.join(10)
    assert end.came.wait(10)
    assert (end.codes, late) == ([1], [])


@pytest.mark.parametrize("stuck", ["shard", "storage"])
def test_it_ends_in_time(end: End, stuck: str) -> None:
    forever = threading.Event()
    one = Preemption(0.2, forever.wait if stuck == "storage" else lambda: None, end)
    one.listen()
    if stuck == "shard":
        begun(one, forever.wait)
    before = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    assert end.came.wait(10)
    assert 0.15 < time.monotonic() - before < 8
    forever.set()


def test_the_second_notice_ends_it_at_once(end: End) -> None:
    one = Preemption(60.0, lambda: None, end)
    one.listen()
    forever = threading.Event()
    begun(one, forever.wait)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    assert end.codes == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert end.came.wait(10)
    assert end.codes == [1]
    forever.set()


def test_elsewhere_than_in_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=Preemption(1.0, lambda: None).listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
