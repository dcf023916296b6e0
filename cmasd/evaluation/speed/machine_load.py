"""How busy the machine was during a measurement: what other processes and the hypervisor took of its processors.

Times of the whole machine less those of this process and its children, from the first look to the last. A machine that
works for others makes every speed lower and every interval wider; which of two engines is faster it changes little,
since they take turns.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

import psutil

BUSY_SHARE, STOLEN_SHARE = 0.05, 0.02
"""Of the processors' time, from which on a machine is called busy."""


@dataclass(frozen=True)
class Load:
    """Of the machine, during a measurement."""

    others_share: float
    """Of the processors' time that processes other than this one and its children used."""
    stolen_share: float
    """Of the processors' time that the hypervisor gave to other machines."""
    load_average: float
    """Processes that ran or waited, a mean over the last minute."""

    @property
    def is_busy(self) -> bool:
        """Whether intervals are wide because of it."""
        return self.others_share >= BUSY_SHARE or self.stolen_share >= STOLEN_SHARE

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Clocks:
    """Seconds of processors, since the machine started or processes did."""

    total: float
    used: float
    stolen: float
    own: float
    """By this process and its children, those that ended included."""

    @classmethod
    def now(cls) -> "Clocks":
        """One look."""
        times = psutil.cpu_times()
        stolen = float(getattr(times, "steal", 0.0))
        idle = times.idle + getattr(times, "iowait", 0.0)
        used = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        return cls(used + idle + stolen, used, stolen, _own())


def load_between(start: Clocks, end: Clocks) -> Load:
    """What others took between two looks."""
    total = max(end.total - start.total, 1e-9)

    def share(seconds: float) -> float:
        return round(min(1.0, max(0.0, seconds / total)), 4)

    others = end.used - start.used - (end.own - start.own)
    return Load(share(others), share(end.stolen - start.stolen), round(os.getloadavg()[0], 2))


def _own() -> float:
    process = psutil.Process()
    return _seconds(process) + sum(map(_seconds, process.children(recursive=True)))


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended: from now on its parent has them
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
