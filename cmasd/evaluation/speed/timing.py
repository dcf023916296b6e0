"""Speed of several engines on the same rows, interleaved so that a noisy machine is fair to all.

Rows are cut into chunks; every chunk is decoded by every engine in turn, in an order that rotates. A
ratio is taken chunk by chunk, and its interval comes from resampling chunks (bootstrap). Where time is
limited, `rounds_within` says how many rows and chunks fit.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cmasd.core import Request

Array = NDArray[np.float64]
RESAMPLES = 2000
CHUNKS, FEWEST_CHUNKS, MOST_CHUNKS = 5, 3, 9
"""Without a limit of time; and what a limit may make of it. Three are the fewest with a spread."""
LEAST_ROWS = 64
"""Of a full chunk: few rows are over in no time, and they come longest first, so that a policy that adapts would be
measured adapting."""


class RequestDecoder(Protocol):
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
    sources: list[int] = field(default_factory=list)
    """Lengths of the sources per chunk, added up: tokens, or places of an encoder that hears."""

    @property
    def tokens_per_second(self) -> float:
        """Over all chunks."""
        return sum(self.tokens) / sum(self.seconds)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each chunk."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]

    def audio_per_second(self, seconds_each: float | None) -> float | None:
        """Seconds of recordings per second over all chunks, given those of a place; None for texts."""
        if seconds_each is None or not self.sources:
            return None
        return sum(self.sources) * seconds_each / sum(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """Speed of one engine over another, or another ratio, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rounds:
    """What every engine decodes at one batch size."""

    chunks: int
    rows: int
    """Per chunk."""

    def cut(self, sources: list[list[int]], max_new_tokens: int) -> list[list[Request]]:
        """Chunks of requests; sources start again from the first where there are too few."""
        requests = [Request(i, sources[i % len(sources)], max_new_tokens) for i in range(self.chunks * self.rows)]
        return [requests[i :: self.chunks] for i in range(self.chunks)]


def full_rounds(batch_size: int, chunks: int = CHUNKS, rows: int = 0) -> Rounds:
    """Every chunk fills the batch three times, or holds `LEAST_ROWS` where that is more; or `rows`, if given, and a
    whole batch.
    """
    return Rounds(chunks, max(rows, batch_size) if rows else max(LEAST_ROWS, 3 * batch_size))


def rounds_within(seconds: float, seconds_per_row: float, batch_size: int) -> Rounds:
    """As many rows as fit into `seconds`, when a row takes `seconds_per_row` with all engines together.

    Chunks are whole batches, for static batches would lose by a part of one. First chunks grow up to those of
    `full_rounds`, then there are more of them. The least is `FEWEST_CHUNKS` of one batch (four rows), fit or not.
    """
    full, fit = full_rounds(batch_size), seconds / seconds_per_row
    rows = min(full.rows, max(4, batch_size, int(fit / CHUNKS) // batch_size * batch_size))
    return Rounds(min(MOST_CHUNKS, max(FEWEST_CHUNKS, int(fit / rows))), rows)


def seconds_of(decoders: Iterable[RequestDecoder], requests: list[Request]) -> float:
    """Time that all of them take for the requests, one after the other."""
    started = time.perf_counter()
    for decoder in decoders:
        decoder.decode(requests)
    return time.perf_counter() - started


def interleave(
    decoders: dict[str, RequestDecoder],
    chunks: Sequence[list[Request]],
    on_chunk: Callable[[str, int], None] = lambda name, chunk: None,
    *,
    is_warm: bool = False,
    enough: Callable[[dict[str, Measured]], bool] = lambda measured: False,
) -> dict[str, Measured]:
    """Decode every chunk with every decoder; unless they are warm, the first chunk is decoded once before.

    `enough` is asked after each chunk whether the others can be left out.
    """
    if not is_warm:
        seconds_of(decoders.values(), chunks[0])
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
            measured[name].sources.append(sum(len(request.source) for request in chunk))
            on_chunk(name, i)
        if enough(measured):
            break
    return measured


def ratio(fast: Measured, slow: Measured, seed: int = 0) -> Ratio:
    """`fast` over `slow` in tokens per second: all chunks together, and the interval over chunks."""

    def of_totals(tokens: Array, seconds: Array, slow_tokens: Array, slow_seconds: Array, axis: int = -1) -> Array:
        found: Array = tokens.sum(axis) * slow_seconds.sum(axis) / (seconds.sum(axis) * slow_tokens.sum(axis))
        return found

    return bootstrapped((fast.tokens, fast.seconds, slow.tokens, slow.seconds), of_totals, seed)


def paired_ratio(fast: Measured, slow: Measured, seed: int = 0) -> Ratio:
    """The same within each chunk, then the mean of the middle half: neither a pause of the machine during a chunk moves
    it, nor a machine that is now faster and now slower, nor chunks that are longer than others.
    """
    return bootstrapped((np.array(fast.rates) / np.array(slow.rates),), _midmean, seed)


def _midmean(values: Array, axis: int = -1) -> Array:
    """Without the quarter at either end; the median of three."""
    count = values.shape[axis]
    mean: Array = stats.trim_mean(values, max(1 / 4, 1 / count) if count > 2 else 0.0, axis)
    return mean


def bootstrapped(by_chunk: tuple[Any, ...], statistic: Callable[..., Array], seed: int = 0) -> Ratio:
    """A statistic of chunks, or of rows; the interval is from the same draws of them for all that is given of them."""
    samples = tuple(np.asarray(one, dtype=np.float64) for one in by_chunk)
    value = float(statistic(*samples))
    if len(samples[0]) == 1:
        return Ratio(value, value, value)
    found = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(value, float(found.low), float(found.high))


def exact_match(outputs: dict[int, list[int]], reference: dict[int, list[int]]) -> float:
    """Share of rows with the same token ids."""
    return sum(outputs[key] == reference[key] for key in reference) / len(reference)
