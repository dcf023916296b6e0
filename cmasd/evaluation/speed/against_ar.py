"""The check at the end of a run: the same rows, plainly and as configured, in one engine, side by side.

What is asked for besides is added to it: the same at other batch sizes, `generate` of transformers, and the rows once
more by the verifier in another dtype with their output so far as drafts, which is what a corpus that is decoded again
costs. Every ratio is of one batch size, one dtype, and interleaved pieces of the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cmasd.checkpoints.by_name import Model
from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair, load_pair
from cmasd.engine.capacity import resolve
from cmasd.evaluation.quality.audit import ALGORITHMIC, NEAR_TIE, divergences
from cmasd.evaluation.speed.peers import HfGenerate, stock_verifier
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config, since
from cmasd.evaluation.speed.timing import Measured, RequestDecoder, exact_match, interleave, ratio, seconds_of

CHUNKS = 6
"""Timed pieces: enough for an interval, each long enough to fill the slots more than once."""
FEW_ROWS = 48
"""At least, at further batch sizes, of which the smaller have as much smaller a part of the rows."""
RERUN_DRAFT = 32
"""Tokens that a draft of the output so far may have."""

AR, OURS, GENERATE = "ar", "cmasd", "hf_generate"


@dataclass(frozen=True)
class SideBySide:
    """AR against the configured decoding on the same rows, so many at a time."""

    rows: int
    batch_size: int
    """Rows at a time: slots of either engine."""
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


@dataclass(frozen=True)
class Rerun(SideBySide):
    """The rows again, by the verifier in another dtype, with their output so far as drafts."""

    dtype: str
    changed: float
    """Share of rows of which the verifier says something else in this dtype."""


@dataclass(frozen=True)
class Baseline(SideBySide):
    """At the run's own batch size, and whatever else was asked for."""

    near_ties: int
    """Rows of an exact run whose tokens differ since two logits nearly tied (`cmasd.evaluation.quality.audit`)."""
    algorithmic: int
    """Rows of an exact run that rounding cannot explain: a fault."""
    others: list[dict[str, Any]]
    """`SideBySide` of each of `baseline.batch_sizes`."""
    rerun: dict[str, Any] | None
    """`Rerun`, with `baseline.rerun_dtype`."""

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
    stock = stock_verifier(pair, config) if config.baseline.hf_generate else None
    found, outputs = _side_by_side(pair, resolve(pair, config, engines=2), requests, stock)
    ar, said = outputs[AR], outputs[OURS]
    causes = [one.cause for one in divergences(pair, config, requests, ar, said)] if config.lossless == "exact" else []
    return Baseline(
        **asdict(found),
        near_ties=causes.count(NEAR_TIE),
        algorithmic=causes.count(ALGORITHMIC),
        others=[
            asdict(_at(pair, config, requests, size, found.batch_size, stock))
            for size in config.baseline.batch_sizes
            if size != found.batch_size
        ],
        rerun=None if config.baseline.rerun_dtype is None else asdict(_again(config, requests, said)),
    )


def _at(
    pair: Pair, config: Config, requests: Sequence[Request], size: int, usual: int, stock: Model | None
) -> SideBySide:
    """So many rows at a time; of smaller batches, which take longer for the same rows, fewer."""
    rows = max(FEW_ROWS, size, len(requests) * min(size, usual) // usual)
    step = max(1, len(requests) // rows)
    sized = replace(config, engine=replace(config.engine, slots=size))
    return _side_by_side(pair, resolve(pair, sized, engines=2), requests[::step][:rows], stock)[0]


def _again(config: Config, requests: Sequence[Request], said: Mapping[int, list[int]]) -> Rerun:
    """By a verifier that is loaded in the other dtype; nothing else of the run changes."""
    dtype = config.baseline.rerun_dtype
    assert dtype is not None, "only what was asked for"
    exact = replace(config.verification, kind="sampling" if config.verification.kind == "sampling" else "exact")
    drafter = replace(config.drafter, kind="previous", max_draft_tokens=RERUN_DRAFT, tree_nodes=0)
    models = replace(config.models, dtype=dtype, drafter=None)
    changed = replace(config, models=models, drafter=drafter, verification=exact)
    pair = load_pair(changed)
    asked = [replace(request, previous=said[request.key]) for request in requests]
    found, outputs = _side_by_side(pair, resolve(pair, changed, engines=2), asked)
    return Rerun(**asdict(found), dtype=dtype, changed=1 - exact_match(outputs[AR], dict(said)))


def _side_by_side(
    pair: Pair, config: Config, requests: Sequence[Request], stock: Model | None = None
) -> tuple[SideBySide, dict[str, dict[int, list[int]]]]:
    """Besides, the token ids by decoding and request key. `stock`: the verifier of `generate`, if that takes part."""
    ours = {AR: EngineDecoder(pair, plain_config(config)), OURS: EngineDecoder(pair, config, recalls=True)}
    slots = ours[AR].engine.shape.slots
    decoders: dict[str, RequestDecoder] = {**ours}
    if stock is not None:
        decoders[GENERATE] = HfGenerate(pair, slots, stock)
    chunks = [list(chunk) for i in range(CHUNKS) if (chunk := requests[i::CHUNKS])]
    seconds_of(decoders.values(), chunks[0])
    warm = replace(ours[OURS].stats)
    measured = interleave(decoders, chunks, is_warm=True)
    speedup = ratio(measured[OURS], measured[AR])
    stats = since(ours[OURS].stats, warm)
    found = SideBySide(
        rows=len(requests),
        batch_size=slots,
        ar_tokens_per_second=measured[AR].tokens_per_second,
        tokens_per_second=measured[OURS].tokens_per_second,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        drafted_tokens=stats.drafted_tokens,
        tokens_per_iteration=stats.tokens_per_iteration,
        acceptance_rate=stats.acceptance_rate if stats.drafted_tokens else None,
        exact_match=exact_match(measured[OURS].outputs, measured[AR].outputs),
        hf_generate=_beside(measured[GENERATE], measured[AR]) if GENERATE in measured else None,
    )
    return found, {name: one.outputs for name, one in measured.items()}


def _beside(peer: Measured, ar: Measured) -> dict[str, float]:
    """See `SideBySide.hf_generate`."""
    found = ratio(peer, ar)
    return {
        "tokens_per_second": peer.tokens_per_second,
        "speedup": found.value,
        "speedup_low": found.low,
        "speedup_high": found.high,
        "exact_match": exact_match(peer.outputs, ar.outputs),
    }
