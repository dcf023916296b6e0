"""How many threads an engine's iterations use: as many as are free, up to those that it was given.

Threads that share a forward wait for each other many times in it. On a machine that is busy with other things one of
them is always without a processor, and the others wait for a time slice: on two processors beside six busy processes
two threads were thirteen times slower than one. So counts of threads are ways of decoding like others, and the
explorer of the goodput policy (`cmasd.policies.explorer`) finds the fastest: it looks at another count now and then,
compares it with the iterations just before, and loses no more than a share of the time by looking. Where the count in
force comes to take another time than usual, or a processor becomes free that it does not use, what is known of the
others is doubted. Output does not depend on the count.

Does not run on a GPU, where there is nothing to share, nor with one thread.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import psutil
import torch

from cmasd.policies.explorer import BURST, Explorer, Ledger, settling
from cmasd.policies.speeds import Speed, without_outliers

REST = 32
"""Iterations between two decisions while nothing is looked at: their mean is within 2 % where one has 10."""
REMEMBERED = 256
"""Iterations that what is usual is a mean of: what changes within a few decisions is noticed by all of them."""
WORST = -0.4
"""Log of the speed that is believed of a count, to that in force, at least: what made it slower may have ended."""
RESTLESS = 0.07
"""Of the log of a count's speed from one decision to the next: other processes come and go within seconds, and of one
thread nobody sees that they went. So it is the share that says how often others are looked at."""
OTHER = 0.7
"""Log of a change of what iterations take, from which on the machine is another: all counts are looked at anew."""
PERIOD_SECONDS, FREE = 0.5, 0.75
"""Processors that nobody used over so long, from which on one is free."""
FEWEST, HOPELESS = 3, 1.25
"""Iterations after which a look ends that all took so many times as long as those before: pauses of the machine are
rarer, and whole looks would be felt by lists of some hundred iterations."""
SURE_SECONDS = 0.1
"""Of a look before its count comes in force: processors that many share are given to each in slices of milliseconds,
and a count that waits for none during a few of them is the slower one all the same."""
RARE = 0.25
"""Share of iterations that pauses may disturb: where more take far longer than most, that is what sharing costs. Beside
six busy processes most iterations of two threads took 1.7 ms, and all of them 15 on average."""
FEWEST_LONG = 3
"""Iterations of a look of which only the first has to settle, since they are long: large models' lists have few."""


class IdleProcessors:
    """How many of the machine's processors nobody used lately, on average."""

    def __init__(self) -> None:
        self._then, self._idle_then, self._latest = time.monotonic(), psutil.cpu_times().idle, 0.0

    def __call__(self) -> float:
        """Since half a second ago or a little more: the system counts in hundredths of a second."""
        seconds = time.monotonic() - self._then
        if seconds >= PERIOD_SECONDS:
            idle = psutil.cpu_times().idle
            self._latest = float(idle - self._idle_then) / seconds
            self._then, self._idle_then = time.monotonic(), idle
        return self._latest


class Threads:
    """Within it iterations have the number of threads that is in use; others in the process keep what they had."""

    def __init__(
        self,
        most: int,
        share: float,
        use: Callable[[int], None] = torch.set_num_threads,
        idle: Callable[[], float] | None = None,
    ) -> None:
        """`share` of the time may be lost by looking; `use` is told a count where it changes; `idle`: processors that
        nobody used lately, instead of this machine's.
        """
        self.most = most
        self._within = most
        self.counts = [1 << i for i in range((most - 1).bit_length())] + [most]
        self._use = use
        everything = len(self.counts) - 1
        self._speeds = [Speed(math.log(count / most) / 2) for count in self.counts]
        self._ledger = Ledger(share)
        arms = list(range(len(self.counts)))
        self._explorer = Explorer(self._ledger, self._speeds, everything, everything, candidates=arms)
        self._usual: dict[tuple[int, int], tuple[float, int]] = {}
        """Seconds of an iteration with the count in force, a mean of the latest, and of how many, by powers of two of
        its rows and of its verified tokens: by these, iterations of any kind are compared."""
        self._latest = 0.0, 0.0
        """Log of what the iterations before the last decision took over that, with the count in force, and its
        variance."""
        self._lately: float | None = None
        """The mean of that log over several decisions: what is usual has the slow start of a list in it for long."""
        self._levels: list[tuple[float, float]] = []
        """Seconds of the iterations since the last decision, and how many would have been usual."""
        self._unsettled: list[tuple[float, float]] = []
        """The same of those that came just after a change of count: weights come into other caches."""
        self._idle = idle or IdleProcessors()
        self._was_free = True
        """Whether a processor was, when the last decision was made."""
        self._iteration = 0
        self._left = REST

    @property
    def now(self) -> int:
        """The count in use."""
        return self.counts[self._explorer.now]

    @property
    def is_looking(self) -> bool:
        """Whether that is another than the one in force: how long iterations take now is no policy's doing."""
        return self._explorer.now != self._explorer.force

    def __enter__(self) -> None:
        self._within = self.now
        if self._within != self.most:
            self._use(self._within)

    def __exit__(self, *error: object) -> None:
        if self._within != self.most:
            self._use(self.most)

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """An iteration of so many rows and verified tokens took so long."""
        kind = rows.bit_length(), tokens.bit_length()
        usual, count = self._usual.get(kind, (seconds, 0))
        self._ledger.total += seconds
        self._iteration += 1
        if count < BURST or not self.is_looking:
            self._usual[kind] = usual + (seconds - usual) / min(count + 1, REMEMBERED), count + 1
        if count < BURST:  # what is usual of the first of a kind nobody knows
            return
        unsettled = settling(usual)
        if len(self._unsettled) < unsettled:
            self._unsettled.append((seconds, usual))
            if self._is_hopeless():
                self._levels, self._unsettled = self._unsettled, []
                self._decide()
            return
        self._levels.append((seconds, usual))
        self._left -= 1
        if self._left > 0 and not (self.is_looking and unsettled == 1 and len(self._levels) >= FEWEST_LONG):
            return
        if self.is_looking and self._is_lucky():
            return
        self._decide()

    def _becomes_free(self) -> bool:
        """Whether a processor is free that was not."""
        was_free, self._was_free = self._was_free, self._idle() >= FREE
        return self._was_free and not was_free

    def _is_hopeless(self) -> bool:
        """Whether iterations of a look take so long that it can end at once, settled or not."""
        taken = [seconds / usual for seconds, usual in self._unsettled]
        return self.is_looking and len(taken) == FEWEST and min(taken) > HOPELESS * math.exp(self._latest[0])

    def _is_lucky(self) -> bool:
        """Whether iterations of a look seem faster, and were too short a time to say so."""
        taken, usual = map(sum, zip(*self._levels, strict=True))
        return taken < SURE_SECONDS and taken < math.exp(self._latest[0]) * usual

    def _decide(self) -> None:
        """From the iterations since the last time."""
        explorer, before, force = self._explorer, self._explorer.now, self._explorer.force
        level, noise = self._measured()
        if before != force:
            before_that = math.exp(self._latest[0])
            self._ledger.charge(sum(taken - before_that * usual for taken, usual in self._unsettled + self._levels))
            worth = max(WORST, self._latest[0] - level)
            self._speeds[before].learn(self._speeds[force].mean + worth, noise + self._latest[1], self._iteration)
        else:
            lately = level if self._lately is None else self._lately
            moved = max(0.0, abs(level - lately) - 2 * math.sqrt(noise))
            for other in self._speeds:
                other.doubt_more(math.hypot(moved, RESTLESS))
            if (self._becomes_free() and self.now < self.most) or moved > OTHER:
                explorer.forget()
            self._speeds[force].learn(self._speeds[force].mean, noise, self._iteration)
            self._latest = level, noise
            self._lately = lately + (level - lately) * REST / REMEMBERED
        seconds = sum(taken for taken, _ in self._levels)
        after = explorer.decide(self._iteration, seconds / len(self._levels))
        if explorer.force != force:
            ratio = math.exp(self._speeds[force].mean - self._speeds[explorer.force].mean)
            self._usual = {kind: (ratio * usual, count) for kind, (usual, count) in self._usual.items()}
        self._levels = []
        self._unsettled = [] if after != before else self._unsettled
        self._left = BURST if after != explorer.force else REST

    def _measured(self) -> tuple[float, float]:
        """Log of what iterations took over what is usual, and its variance: what disturbs one for long counts little,
        unless many are disturbed.
        """
        level_I = np.array([seconds / usual for seconds, usual in self._levels])
        kept_I = without_outliers(level_I)
        level_I = kept_I if (kept_I < level_I).sum() <= max(1, RARE * len(level_I)) else level_I
        level, count = float(level_I.mean()), len(level_I)
        return math.log(level), float(level_I.var()) / max(1, count - 1) / level**2
