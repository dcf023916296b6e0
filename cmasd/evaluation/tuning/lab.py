"""Settings of CM-ASD tried on the rows of a search: replayed where that is exact, else decoded; and which go on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cmasd.config.tree import Config
from cmasd.core import Request, Result
from cmasd.engine import Pair
from cmasd.evaluation.quality.pareto import front
from cmasd.evaluation.tuning.iteration_times import IterationTimes
from cmasd.evaluation.tuning.knobs import Knobs
from cmasd.evaluation.tuning.replay import Recording, Walk, decode, schedule


@dataclass(frozen=True)
class Tried:
    """One setting on rows of the search."""

    knobs: Knobs
    speedup: float
    """Tokens per second over plain's on the same rows, by the table of iteration times."""
    gap_nats: float
    """Mean log-probability gap per output token; 0 of a lossless setting."""
    tokens_per_iteration: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "Tried":
        """The inverse, after JSON."""
        knobs = {**tree["knobs"], "weights": tuple(tree["knobs"]["weights"])}
        return cls(**{**tree, "knobs": Knobs(**knobs)})


@dataclass
class Trial:
    """A lossy setting on its way through the rungs."""

    asked: Any
    """Optuna's."""
    knobs: Knobs
    results: list[Result] = field(default_factory=list)


class Lab:
    """Where settings are tried."""

    def __init__(
        self, pair: Pair, config: Config, requests: list[Request], times: IterationTimes, recording: Recording
    ) -> None:
        self.pair = pair
        self.config = config
        self.requests = requests
        self.times = times
        self.recording = recording
        self._plain = recording.plain()

    def rate(self, walks: Sequence[Walk]) -> float:
        """Tokens per second by the table."""
        slots = self.config.engine.slots
        assert slots is not None, "resolved"
        found = schedule(walks, slots)
        return found.output_tokens / found.seconds(self.times.seconds)

    def replay(self, knobs: Knobs, rows: int) -> Tried:
        """A lossless setting on the first rows."""
        return self._tried(knobs, self.recording.walks(knobs.configured(self.config)), 0.0, rows)

    def decode(self, trial: Trial, rows: int) -> Tried:
        """A lossy setting on the first rows; those that it has decoded already are not decoded again."""
        fresh = self.requests[len(trial.results) : rows]
        trial.results += decode(self.pair, trial.knobs.configured(self.config), fresh) if fresh else []
        gap = sum(one.mean_gap_nats * one.num_output_tokens for one in trial.results)
        return self._tried(trial.knobs, list(map(Walk.of, trial.results)), gap, rows)

    def zeros(self, rows: int) -> list[Tried]:
        """Plain decoding: what every lossy setting has to beat. Its knobs mean nothing."""
        return [self._tried(Knobs(1, 1.0, (1.0, 0.0, 0.0)), self._plain, 0.0, rows)]

    def _tried(self, knobs: Knobs, walks: Sequence[Walk], gap_nats: float, rows: int) -> Tried:
        mine, plain = ([walk for walk in some if walk.key < rows] for some in (walks, self._plain))
        tokens, iterations = sum(one.output_tokens for one in mine), sum(len(one.drafted) for one in mine)
        return Tried(knobs, self.rate(mine) / self.rate(plain), gap_nats / tokens, tokens / iterations, rows)


def best_first(tried: Sequence[Tried], count: int | None) -> list[Tried]:
    """The `count` least dominated in speed and gap, front by front; of a front that is too long, some from all over.

    None: the first front alone.
    """
    left, found = list(tried), list[Tried]()
    while left and (count is None or len(found) < count):
        marks = front([(one.speedup, -one.gap_nats) for one in left])
        best = sorted((one for one, is_on in zip(left, marks, strict=True) if is_on), key=lambda one: one.speedup)
        left = [one for one, is_on in zip(left, marks, strict=True) if not is_on]
        if count is None:
            return best
        found += spread(best, count - len(found))
    return found


def spread(some: Sequence[Tried], most: int) -> list[Tried]:
    """At most so many, the first and the last among them."""
    places = np.linspace(0, len(some) - 1, min(most, len(some))).round().astype(int)
    return [some[place] for place in places]
