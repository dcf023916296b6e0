"""What a stitched row costs, as a linear model of tokens and of the length of the cache: R-Stitch+'s latency.

    seconds of a forward, for each of its rows = step + token * (tokens fed) + place * (tokens before them)

One such line for each of two models, fitted to measured forwards (`cmasd.engine.measured_costs`), is all that the
reward of a router knows of the machine. It is a price by the row, at one number of rows; it knows nothing of waiting.

Shapes: P measured points, N decisions of one row.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cmasd.policies.base import Float64
from cmasd.policies.router import Decisions


@dataclass(frozen=True)
class PricePoint:
    """A forward that was measured."""

    tokens: float
    """Fed to each row."""
    places: float
    """Held by each row before."""
    seconds: float
    """Over the number of rows."""


@dataclass(frozen=True)
class ForwardPrice:
    """Seconds of one forward for one of its rows."""

    step: float
    token: float
    """For each token that is fed."""
    place: float
    """For each token that the cache holds before."""

    @classmethod
    def fit(cls, points: Sequence[PricePoint]) -> "ForwardPrice":
        """By least squares; nothing costs less than nothing, so what would is left out."""
        known_PC = np.array([[1.0, point.tokens, point.places] for point in points])
        seconds_P = np.array([point.seconds for point in points])
        columns = [column for column in range(3) if column == 0 or np.ptp(known_PC[:, column]) > 0]
        while True:
            found_C = np.linalg.lstsq(known_PC[:, columns], seconds_P, rcond=None)[0]
            if len(columns) == 1 or found_C.min() >= 0:
                break
            columns.pop(int(found_C.argmin()))
        values = np.zeros(3)
        values[columns] = found_C
        return cls(*values.clip(0).tolist())

    def seconds(self, tokens: Float64, places: Float64) -> float:
        """Of forwards (N,), added up."""
        return float((self.step + self.token * tokens + self.place * places).sum())


@dataclass(frozen=True)
class Latency:
    """Of both models of a pair."""

    small: ForwardPrice
    large: ForwardPrice

    @classmethod
    def of(cls, read: dict[str, Any]) -> "Latency":
        """From JSON; raises KeyError or TypeError for anything else."""
        return cls(ForwardPrice(**read["small"]), ForwardPrice(**read["large"]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def stitched(self, row: Decisions, prompt: int) -> float:
        """Seconds of one row behind a prompt, which the large model reads only where it speaks."""
        large_N = row.is_large_N
        seconds = self._of(self.small, row, ~large_N)
        if large_N.any():
            seconds += self.large.token * prompt + self._of(self.large, row, large_N)
        return seconds

    def alone(self, prompt: int, said: int) -> float:
        """Seconds of the same row where the large model says all of it, in so many tokens."""
        places_N = prompt + np.arange(said, dtype=np.float64)
        return self.large.token * prompt + self.large.seconds(np.ones(said), places_N)

    def _of(self, line: ForwardPrice, row: Decisions, which_N: Any) -> float:
        read_N = row.read_N[which_N].astype(np.float64)
        return line.seconds(read_N, row.places_N[which_N] - read_N)
