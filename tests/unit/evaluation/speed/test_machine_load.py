"""What others took of the machine is all that was used, less what this process and its children used."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from cmasd.evaluation.speed.machine_load import Clocks, Load, load_between


def test_shares_are_of_the_time_of_all_processors() -> None:
    start = Clocks(total=100.0, used=50.0, stolen=1.0, own=10.0)
    load = load_between(start, Clocks(total=140.0, used=80.0, stolen=3.0, own=25.0))
    assert (load.others_share, load.stolen_share) == (15 / 40, 2 / 40)
    assert load.is_busy


@pytest.mark.parametrize(
    ("others", "stolen", "busy"), [(0.0, 0.0, False), (0.049, 0.019, False), (0.05, 0.0, True), (0.0, 0.02, True)]
)
def test_a_machine_is_busy_from_a_share_on(others: float, stolen: float, busy: bool) -> None:
    assert Load(others, stolen, 0.0).is_busy == busy


def test_what_is_measured_twice_is_never_below_nothing() -> None:
    start = Clocks(total=100.0, used=50.0, stolen=0.0, own=10.0)
    assert load_between(start, Clocks(total=110.0, used=55.0, stolen=0.0, own=16.0)).others_share == 0
    assert load_between(start, start).others_share == 0


def test_children_count_as_own_also_when_they_have_ended() -> None:
    before = Clocks.now().own
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert Clocks.now().own - before >= 0.4, "the clock ticks in hundredths"


def test_a_machine_that_does_not_tell_of_a_hypervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    times = SimpleNamespace(user=3.0, nice=1.0, system=2.0, idle=10.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    now = Clocks.now()
    assert (now.total, now.used, now.stolen) == (16.0, 6.0, 0.0)
