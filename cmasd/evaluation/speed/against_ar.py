"""The check at the end of a run: the same rows, plainly and as configured, in one engine, side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.engine.capacity import resolve
from cmasd.evaluation.quality.audit import ALGORITHMIC, NEAR_TIE, divergences
from cmasd.evaluation.speed.peers import HfGenerate, stock_verifier
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config, since
from cmasd.evaluation.speed.timing import Measured, RequestDecoder, exact_match, interleave, ratio, seconds_of

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
    hf_generate: dict[str, float] | None
    """Of `generate` on the same rows: tokens per second, those over AR's with a 95 % interval (`speedup`,
    `speedup_low`, `speedup_high`), and the share of rows whose tokens equal AR's (`exact_match`); None where it was
    not asked for."""
    near_ties: int
    """Rows of an exact run whose tokens differ since two logits nearly tied (`cmasd.evaluation.quality.audit`)."""
    algorithmic: int
    """Rows of an exact run that rounding cannot explain: a fault."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare_with_ar(
    pair: Pair, config: Config, sources: list[list[int]], previous: Sequence[list[int] | None] | None = None
) -> Baseline:
    """Decode `sources` both ways in alternating chunks; needs at least one row. `previous`: see `Request`."""
    requests = [
        Request(key, source, pair.max_new_tokens, before)
        for key, (source, before) in enumerate(zip(sources, previous or [None] * len(sources), strict=True))
    ]
    config = resolve(pair, config, engines=2)
    ours = {"ar": EngineDecoder(pair, plain_config(config)), "cmasd": EngineDecoder(pair, config)}
    decoders: dict[str, RequestDecoder] = {**ours}
    if config.baseline.hf_generate:
        slots = ours["ar"].engine.shape.slots
        decoders["hf_generate"] = HfGenerate(pair, slots, stock_verifier(pair, config))
    chunks = [chunk for i in range(CHUNKS) if (chunk := requests[i::CHUNKS])]
    seconds_of(decoders.values(), chunks[0])
    warm = replace(ours["cmasd"].stats)
    measured = interleave(decoders, chunks, is_warm=True)
    speedup = ratio(measured["cmasd"], measured["ar"])
    stats = since(ours["cmasd"].stats, warm)
    ar, said = measured["ar"].outputs, measured["cmasd"].outputs
    causes = [one.cause for one in divergences(pair, config, requests, ar, said)] if config.lossless == "exact" else []
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
        exact_match=exact_match(said, ar),
        hf_generate=_beside(measured["hf_generate"], measured["ar"]) if "hf_generate" in measured else None,
        near_ties=causes.count(NEAR_TIE),
        algorithmic=causes.count(ALGORITHMIC),
    )


def _beside(peer: Measured, ar: Measured) -> dict[str, float]:
    """See `Baseline.hf_generate`."""
    found = ratio(peer, ar)
    return {
        "tokens_per_second": peer.tokens_per_second,
        "speedup": found.value,
        "speedup_low": found.low,
        "speedup_high": found.high,
        "exact_match": exact_match(peer.outputs, ar.outputs),
    }
