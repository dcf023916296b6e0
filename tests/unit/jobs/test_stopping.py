"""What signals do to `cmasd run`: the first drains, the second or the end of the time stops, and none is swallowed."""

import os
import signal
import time
from pathlib import Path

import pytest

from cmasd.io.lease import Lease
from cmasd.io.storage import Storage
from cmasd.pipeline.drain import Drain
from jobs.main import Terminated
from jobs.run import Stopping


def send(number: int, wait_seconds: float = 0.05) -> None:
    os.kill(os.getpid(), number)
    time.sleep(wait_seconds)


def test_before_anything_is_decoded_the_first_signal_stops() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), Stopping(Drain(), 30.0):
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_drains_and_the_second_stops(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drain = Drain()
    stopping = Stopping(drain, 30.0)
    with Lease(Storage(str(tmp_path)), "RUN", "run", after=None) as lease, stopping, drain.possible(lease):
        send(signal.SIGTERM)
        assert drain.asked
        assert isinstance(stopping.reason, Terminated)
        assert "for 30 s at most; a second signal stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_the_time_to_drain_is_bounded(tmp_path: Path, seconds: float) -> None:
    drain = Drain()
    storage = Storage(str(tmp_path))
    with (
        Lease(storage, "RUN", "run", after=None) as lease,
        Stopping(drain, seconds),
        drain.possible(lease),
        pytest.raises(KeyboardInterrupt),
    ):
        send(signal.SIGINT, wait_seconds=30.0)
    assert drain.asked == (seconds > 0)
