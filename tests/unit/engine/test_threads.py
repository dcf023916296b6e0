"""Threads: the count that is fastest is used, and little is lost by finding out."""

import math
import random
from collections.abc import Callable

import pytest

from cmasd.engine.threads import Threads

Seconds = Callable[[int], float]
"""Of an iteration, by threads."""


def quiet(threads: int) -> float:
    return 1e-3 * (0.2 + 0.8 / threads)


def crowded(threads: int) -> float:
    """Whoever waits for another waits for a time slice."""
    return 1e-3 if threads == 1 else 13e-3


class Machine:
    """Iterations that take as long as they do here, one in fifty of them several times as long."""

    def __init__(self, most: int, share: float = 0.01) -> None:
        self.set, self.seconds, self.least = most, 0.0, 0.0
        self.random = random.Random(0)
        self.free = 0.0
        self.threads = Threads(most, share, self.use, lambda: self.free)

    def use(self, count: int) -> None:
        self.set = count

    def iterate(self, rows: int, seconds: Seconds, noise: float = 1.0) -> int:
        """One iteration; the threads that it had."""
        with self.threads:
            used = self.set
            self.seconds += noise * seconds(used)
            self.free = 0.0 if seconds is crowded else self.threads.most - used
            self.threads.observe(rows, rows, noise * seconds(used))
        assert self.set == self.threads.most, "what else runs in the process has its threads back"
        return used

    def run(self, seconds: Seconds, iterations: int) -> dict[int, int]:
        """Iterations by threads."""
        counts = dict.fromkeys(self.threads.counts, 0)
        best = min(map(seconds, self.threads.counts))
        for _ in range(iterations):
            noise = self.random.gauss(1.0, 0.05) * (self.random.uniform(2, 8) if self.random.random() < 0.02 else 1)
            counts[self.iterate(4, seconds, noise)] += 1
            self.least += noise * best
        return counts


@pytest.mark.parametrize("most", [2, 3, 4, 16])
def test_all_threads_are_used_where_they_are_free(most: int) -> None:
    machine = Machine(most)
    machine.run(quiet, 500)
    counts = machine.run(quiet, 4000)
    assert counts[most] > 0.97 * 4000
    assert machine.seconds < 1.03 * machine.least


@pytest.mark.parametrize("most", [2, 4])
def test_one_is_used_where_others_wait(most: int) -> None:
    machine = Machine(most)
    machine.run(crowded, 200)
    counts = machine.run(crowded, 4000)
    assert counts[1] > 0.98 * 4000
    assert machine.seconds < 1.6 * machine.least, "most of it before it was known"


def test_a_machine_that_becomes_busy_or_free_is_noticed() -> None:
    machine = Machine(2)
    machine.run(quiet, 1000)
    machine.run(crowded, 400)
    assert machine.run(crowded, 500)[1] > 450
    machine.run(quiet, 600)
    assert machine.run(quiet, 1000)[2] > 900


def test_with_no_share_nothing_is_looked_at() -> None:
    machine = Machine(2, share=0.0)
    assert machine.run(crowded, 1000) == {1: 0, 2: 1000}


def test_what_comes_after_a_change_is_no_measure() -> None:
    """The first iterations with another count take up to 2.5 times as long, and so do the first of all."""
    machine, alike, last = Machine(2), 0, 0
    for step in range(6000):
        alike = alike + 1 if machine.threads.now == last else 0
        last = machine.threads.now
        tokens = 1 if step < 200 or step > 400 else 8
        cold = 1 + 1.5 * 0.5 ** (alike / 2) + (3 if step in (0, 201) else 0)
        with machine.threads:
            machine.threads.observe(1, tokens, cold * quiet(machine.set) * machine.random.gauss(1.0, 0.05))
        machine.seconds += cold * quiet(last)
        machine.least += quiet(2)
    assert machine.threads.now == 2
    assert machine.seconds < 1.03 * machine.least


def test_rows_that_cost_differently_do_not_matter() -> None:
    """Iterations of one and of thirty-two rows by turns: the count is that of both."""
    machine, used = Machine(2), []
    for step in range(3000):
        rows = 32 if step % 7 < 3 else 1
        used.append(machine.iterate(rows, quiet, 9.0 if rows > 1 else 1.0))
    assert used[-1] == 2
    assert used.count(1) < 0.03 * len(used)


def test_pauses_of_the_machine_are_held_against_no_count() -> None:
    """One iteration in ten takes three to twelve times as long: a look at few of them has none of these or several, and
    neither is compared with a mean that has them all.
    """

    def shared(threads: int) -> float:
        return 1e-3 * (0.4 + 0.6 / threads)

    for seed in range(6):
        machine, used = Machine(2), []
        machine.random.seed(seed)
        for _ in range(2000):
            noise = math.exp(machine.random.gauss(0.0, 0.15))
            pause = machine.random.uniform(3, 12) if machine.random.random() < 0.1 else 1.0
            used.append(machine.iterate(8, shared, noise * pause))
        assert used.count(2) > 0.9 * len(used)


def test_a_count_that_is_mostly_fast_and_often_waits_is_slow() -> None:
    """Beside busy processes: four of ten iterations of two threads wait for a time slice, for half of the time in a
    row, and the others take a half of what one thread takes.
    """
    for seed in range(6):
        machine, used = Machine(2), []
        machine.random.seed(seed)
        for step in range(3000):
            crowded = step % 40 < 20 and machine.random.random() < 0.8
            wait = 20.0 if machine.threads.now == 2 and crowded else 1.0
            used.append(machine.iterate(1, lambda threads: 2e-3 / threads, wait * machine.random.gauss(1.0, 0.05)))
        assert used.count(1) > 0.65 * len(used)


@pytest.mark.parametrize("seconds", [quiet, crowded])
def test_iterations_of_large_models_are_looked_at_for_a_few_alone(seconds: Seconds) -> None:
    machine = Machine(2)
    counts = machine.run(lambda threads: 150 * seconds(threads), 64)
    slower = 1 if seconds is quiet else 2
    assert counts[slower] <= (4 if seconds is quiet else 45), "32 of them come before the first look"
    assert counts[3 - slower] > 0
