"""Speed of several engines on the same rows, interleaved so that a noisy machine is fair to all.

Rows are cut into chunks; every chunk is decoded by every engine in turn, in an order that rotates. A
ratio is taken chunk by chunk, and its interval comes from resampling chunks (bootstrap).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmasd.core import Request

RESAMPLES = 2000


class Decoder(Protocol):
    """Anything that decodes requests: our engine, or a peer."""

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key."""
        ...


@dataclass
class Measured:
    """One engine's times over all chunks."""

    seconds: list[float] = field(default_factory=list)
    """Per chunk."""
    tokens: list[int] = field(default_factory=list)
    """Output tokens per chunk."""
    outputs: dict[int, list[int]] = field(default_factory=dict)
    """Token ids by request key."""

    @property
    def tokens_per_second(self) -> float:
        """Over all chunks."""
        return sum(self.tokens) / sum(self.seconds)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each chunk."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """Speed of one engine over another, with a 95 % interval."""

    value: float
    low: float
    high: float


def interleave(
    decoders: dict[str, Decoder],
    chunks: Sequence[list[Request]],
    on_chunk: Callable[[str, int], None] = lambda name, chunk: None,
) -> dict[str, Measured]:
    """Decode every chunk with every decoder; the first chunk is decoded once before, as a warm-up."""
    for decoder in decoders.values():
        decoder.decode(chunks[0])
    measured = {name: Measured() for name in decoders}
    names = list(decoders)
    for i, chunk in enumerate(chunks):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            outputs = decoders[name].decode(chunk)
            measured[name].seconds.append(time.perf_counter() - started)
            measured[name].tokens.append(sum(map(len, outputs.values())))
            measured[name].outputs.update(outputs)
            on_chunk(name, i)
    return measured


def ratio(fast: Measured, slow: Measured, seed: int = 0) -> Ratio:
    """`fast` over `slow` in tokens per second: all chunks together, and the interval over chunks."""
    draws = np.random.default_rng(seed).integers(0, len(slow.seconds), (RESAMPLES, len(slow.seconds)))

    def rates(one: Measured) -> NDArray[np.float64]:
        tokens, seconds = np.array(one.tokens, dtype=np.float64), np.array(one.seconds)
        rate: NDArray[np.float64] = tokens[draws].sum(1) / seconds[draws].sum(1)
        return rate

    low, high = np.quantile(rates(fast) / rates(slow), [0.025, 0.975])
    return Ratio(fast.tokens_per_second / slow.tokens_per_second, float(low), float(high))


def exact_match(outputs: dict[int, list[int]], reference: dict[int, list[int]]) -> float:
    """Share of rows with the same token ids."""
    return sum(outputs[key] == reference[key] for key in reference) / len(reference)
