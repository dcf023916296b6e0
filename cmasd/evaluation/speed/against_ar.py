"""The check at the end of a run: the same rows, plainly and as configured, in one engine, side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.drafters import FreeDrafter, MixedDrafter
from cmasd.engine import Engine, Pair
from cmasd.engine.capacity import resolve
from cmasd.evaluation.speed.timing import exact_match, interleave, ratio, seconds_of
from cmasd.telemetry.stats import EngineStats

Lengths = NDArray[np.int64]
CHUNKS = 6
"""Timed pieces: enough for an interval, each long enough to fill the slots more than once."""


@dataclass(frozen=True)
class Baseline:
    """AR against the configured decoding on the same rows."""

    rows: int
    ar_tokens_per_second: float
    tokens_per_second: float
    speedup: float
    """Tokens per second over AR's."""
    speedup_low: float
    """Lower end of the 95 % interval over timed chunks."""
    speedup_high: float
    drafted_tokens: int
    """Where there are none, the speed-up is noise: both decode alike."""
    tokens_per_iteration: float
    acceptance_rate: float | None
    """None where nothing was drafted."""
    exact_match: float
    """Share of rows whose tokens equal AR's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class EngineDecoder:
    """An engine that decodes a list of requests to the end."""

    def __init__(self, pair: Pair, config: Config) -> None:
        """Building the engine is its start-up: caches, and what the policy measures. Decoding does none of it."""
        self.engine = Engine(pair, resolve(pair, config))
        self._decoded: set[int] = set()
        """Hashes of sources, since the engine was new or had forgotten what rows said."""
        self.gap_nats = 0.0
        """Log-probability gaps of all output tokens so far, added up."""

    @property
    def stats(self) -> EngineStats:
        """The engine's counters, warm-up included."""
        return self.engine.stats

    @property
    def lengths_2K(self) -> Lengths:
        """(2, k + 1) row-iterations that had a draft so far, by tokens drafted, and by tokens accepted."""
        counted: Lengths = self.engine.state.lengths_2K.cpu().numpy().copy()
        return counted

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key. What comes again is not remembered: no corpus would have told it before."""
        hashes = {hash(tuple(request.source)) for request in requests}
        drafter = self.engine.drafter
        if hashes & self._decoded and isinstance(drafter, FreeDrafter | MixedDrafter):
            drafter.forget()
            self._decoded.clear()
        self._decoded |= hashes
        outputs = {}
        for result in self.engine.decode(requests):
            outputs[result.key] = result.token_ids.tolist()
            self.gap_nats += result.mean_gap_nats * result.num_output_tokens
        return outputs


def since(now: EngineStats, start: EngineStats) -> EngineStats:
    """What an engine did since `start`: warm-ups are not counted."""
    return EngineStats(*(getattr(now, field.name) - getattr(start, field.name) for field in fields(EngineStats)))


def plain_config(config: Config) -> Config:
    """The same engine without drafting, by greedy AR (by AR sampling when sampling was asked for)."""
    sampling = config.verification.kind == "sampling"
    exact = replace(config.verification, kind="sampling" if sampling else "exact")
    return replace(config, policy=replace(config.policy, kind="plain"), verification=exact)


def compare_with_ar(
    pair: Pair, config: Config, sources: list[list[int]], previous: Sequence[list[int] | None] | None = None
) -> Baseline:
    """Decode `sources` both ways in alternating chunks; needs at least one row. `previous`: see `Request`."""
    requests = [
        Request(key, source, pair.max_new_tokens, before)
        for key, (source, before) in enumerate(zip(sources, previous or [None] * len(sources), strict=True))
    ]
    config = resolve(pair, config, engines=2)
    decoders = {"ar": EngineDecoder(pair, plain_config(config)), "cmasd": EngineDecoder(pair, config)}
    chunks = [chunk for i in range(CHUNKS) if (chunk := requests[i::CHUNKS])]
    seconds_of(decoders.values(), chunks[0])
    warm = replace(decoders["cmasd"].stats)
    measured = interleave(dict(decoders), chunks, is_warm=True)
    speedup = ratio(measured["cmasd"], measured["ar"])
    stats = since(decoders["cmasd"].stats, warm)
    return Baseline(
        rows=len(requests),
        ar_tokens_per_second=measured["ar"].tokens_per_second,
        tokens_per_second=measured["cmasd"].tokens_per_second,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        drafted_tokens=stats.drafted_tokens,
        tokens_per_iteration=stats.tokens_per_iteration,
        acceptance_rate=stats.acceptance_rate if stats.drafted_tokens else None,
        exact_match=exact_match(measured["cmasd"].outputs, measured["ar"].outputs),
    )
