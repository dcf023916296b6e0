"""How many threads an engine's iterations use: as many as are free, up to those that it was given.

Threads that share a forward wait for each other many times in it. On a machine that is busy with other things one of
them is always without a processor, and the others wait for a time slice: on two processors beside six busy processes
two threads were thirteen times slower than one. So counts of threads are ways of decoding like others, and the
explorer of the goodput policy (`cmasd.policies.explorer`) finds the fastest: it looks at another count now and then,
and loses no more than a share of the time by looking. Output does not depend on the count.

Does not run on a GPU, where there is nothing to share, nor with one thread.
"""

import math
from collections.abc import Callable

import torch

from cmasd.policies.explorer import BURST, Explorer, Ledger
from cmasd.policies.speeds import Speed

REST = 32
"""Iterations between two decisions while nothing is looked at: their mean is within 2 % where one has 10."""


class Threads:
    """Within it iterations have the number of threads that is in use; others in the process keep what they had."""

    def __init__(self, most: int, share: float, use: Callable[[int], None] = torch.set_num_threads) -> None:
        """`share` of the time may be lost by looking; `use` is told a count where it changes."""
        self.most = most
        self._within = most
        self.counts = [1 << i for i in range((most - 1).bit_length())] + [most]
        self._use = use
        everything = len(self.counts) - 1
        self._speeds = [Speed(math.log(count / most) / 2) for count in self.counts]
        self._ledger = Ledger(share)
        arms = list(range(len(self.counts)))
        self._explorer = Explorer(self._ledger, self._speeds, everything, everything, candidates=arms)
        self._usual: dict[tuple[int, int], float] = {}
        """Seconds of an iteration, by powers of two of its rows and of its verified tokens."""
        self._levels: list[tuple[float, float]] = []
        """Seconds of the iterations since the last decision, and how many would have been usual."""
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
        usual = self._usual.setdefault(kind, seconds)
        self._usual[kind] = usual + (seconds - usual) / 64
        self._levels.append((seconds, usual))
        self._ledger.total += seconds
        self._iteration += 1
        self._left -= 1
        if self._left <= 0:
            self._decide()

    def _decide(self) -> None:
        """From the iterations since the last time; what is between their outer eighths counts."""
        explorer, before = self._explorer, self._explorer.now
        levels = sorted(seconds / usual for seconds, usual in self._levels)
        middle = levels[len(levels) // 8 : len(levels) - len(levels) // 8]
        level = sum(middle) / len(middle)
        noise = sum((one - level) ** 2 for one in middle) / (len(middle) * max(1, len(middle) - 1)) / level**2
        seconds = sum(taken for taken, _ in self._levels)
        if before != explorer.force:
            worth = math.exp(self._speeds[explorer.force].mean)
            self._ledger.charge(sum(taken - usual / worth for taken, usual in self._levels))
        self._speeds[before].learn(-math.log(level), noise, self._iteration)
        after = explorer.decide(self._iteration, seconds / len(self._levels))
        self._levels = []
        self._left = BURST if after != explorer.force else REST
