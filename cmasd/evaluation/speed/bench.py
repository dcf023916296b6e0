"""Speed of every way of decoding, batch size by batch size, against plain AR in the same engine.

All engines decode the same rows, chunk by chunk in turn. Rates are medians over chunks with quartiles; ratios are
taken within chunks, with 95 % intervals. Each engine is warm before it is timed: it has packed its weights and measured
what it measures on a first batch. With a limit of time, rows and chunks follow from what a first batch took.
Measures decoding alone: no reading, no tokenizing, no writing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.evaluation.speed.engines import Lineup, as_measured
from cmasd.evaluation.speed.lineup import Contender, Contenders
from cmasd.evaluation.speed.request_decoder import Lengths, since
from cmasd.evaluation.speed.timing import (
    CHUNKS,
    Measured,
    Ratio,
    Rounds,
    exact_match,
    full_rounds,
    interleave,
    paired_ratio,
    rounds_within,
    seconds_of,
)
from cmasd.telemetry.stats import EngineStats


@dataclass(frozen=True)
class BenchRow:
    """One engine at one batch size."""

    engine: str
    batch_size: int
    dtype: str
    rows: int
    chunks: int
    tokens_per_second: float
    """Median over chunks."""
    audio_seconds_per_second: float | None
    """Seconds of recordings over those that they took, all chunks together; None for texts."""
    chunk_low: float
    """Lower quartile over chunks, in tokens per second."""
    chunk_high: float
    ratio_to_plain: float
    ratio_low: float
    """Lower end of the 95 % interval over chunks."""
    ratio_high: float
    ratio_to_hf_generate: float | None
    """None where it was not measured."""
    ratio_to_hf_generate_low: float | None
    ratio_to_hf_generate_high: float | None
    ratio_to_ctranslate2: float | None
    """To CTranslate2 at the verifier's own precision; None where it was not measured."""
    ratio_to_ctranslate2_low: float | None
    ratio_to_ctranslate2_high: float | None
    ratio_to_openvino: float | None
    """To OpenVINO without a drafter, at the precision of its export; None where it was not measured."""
    ratio_to_openvino_low: float | None
    ratio_to_openvino_high: float | None
    best_fixed: str | None
    """Of goodput: the fastest of two or more engines of policy `fixed`; None elsewhere."""
    ratio_to_best_fixed: float | None
    ratio_to_best_fixed_low: float | None
    ratio_to_best_fixed_high: float | None
    drafted_tokens: int | None
    """None for a peer. Of an engine of ours that drafted nothing the ratio to plain is noise: both decode alike."""
    verified_tokens: int | None
    """That went through the verifier while decoding, each row's last one and its draft. None for a peer."""
    drafter_tokens: int | None
    """That the drafter made. None for a peer."""
    tokens_per_iteration: float | None
    """None for a peer."""
    acceptance_rate: float | None
    """None where nothing was drafted."""
    exact_match_to_plain: float
    """Share of rows with the same tokens as plain."""
    lossless: str
    """`exact`, `exact but for ties`, `in distribution` or `lossy`; of a peer `same rows`, `rows differ` or `lossy`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class BenchWatcher:
    """Is told what a bench does."""

    def skipped(self, engine: str, reason: str) -> None:
        """An engine takes no part."""

    def progress(self, batch_size: int, engine: str, share: float) -> None:
        """A chunk is done; `share` of the whole bench lies behind."""


def bench(
    pair: Pair,
    config: Config,
    sources: list[list[int]],
    batch_sizes: list[int],
    lineup: Lineup | None = None,
    seconds: float | None = None,
    watcher: BenchWatcher | None = None,
    chunks: int = CHUNKS,
    rows: int = 0,
) -> Iterator[BenchRow]:
    """Measure every engine at every batch size; rows come out as a batch size is done.

    Needs at least one source; they start again from the first where a batch size needs more. `seconds` limits the
    whole, as far as `rounds_within` can; None: `chunks` full ones, or of `rows` each (`full_rounds`). Caches are sized
    for the longest source, since those of all engines are in memory at once.
    """
    pair = pair.sized_for(sources)
    deadline = None if seconds is None else time.perf_counter() + seconds
    watcher = watcher or BenchWatcher()
    contenders = Contenders(pair, config, lineup or Lineup(), watcher.skipped)
    seconds_each = None if pair.sound is None else pair.sound.seconds_each
    shares = _shares(batch_sizes, limited=seconds is not None)
    for i, batch_size in enumerate(batch_sizes):
        until = None if deadline is None else _split(deadline, len(batch_sizes) - i)
        before, share = sum(shares[:i]), shares[i]

        def on_turn(
            name: str, done: float, size: int = batch_size, before: float = before, part: float = share
        ) -> None:
            watcher.progress(size, name, before + part * done)

        # Not kept in a variable: caches of one batch size are freed before those of the next are made.
        yield from _rows(
            take_turns(pair, sources, contenders.of(batch_size), batch_size, until, on_turn, chunks, rows),
            *(batch_size, seconds_each),
        )


def _split(deadline: float, sizes_left: int) -> float:
    """When the first of the sizes that are left should be done."""
    now = time.perf_counter()
    return now + (deadline - now) / sizes_left


def _shares(batch_sizes: list[int], limited: bool) -> list[float]:
    """Roughly each size's part of the time; a row takes less the more are decoded at once, down to a floor."""
    weights = [1.0 if limited else full_rounds(size).rows / size**0.7 for size in batch_sizes]
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class Timed:
    """One contender at the end of its turns; nothing before the first timed chunk counts."""

    contender: Contender
    measured: Measured
    stats: EngineStats | None
    """None for a peer."""
    gap_nats: float
    """Log-probability gaps of the output tokens, added up."""
    lengths_2K: Lengths | None = None
    """(2, k + 1) drafting row-iterations by tokens drafted, and by tokens accepted; None for a peer."""


def take_turns(
    pair: Pair,
    sources: list[list[int]],
    contenders: list[Contender],
    batch_size: int,
    until: float | None,
    on_turn: Callable[[str, float], None],
    chunks: int = CHUNKS,
    rows: int = 0,
) -> list[Timed]:
    """Everyone decodes the same chunks in turns, once warm; `on_turn` is told the name and the share that is done."""
    rounds = _warm_up(pair, sources, contenders, batch_size, until) or full_rounds(batch_size, chunks, rows)
    turns = rounds.chunks * len(contenders)
    done = 0

    def on_chunk(name: str, chunk: int) -> None:
        nonlocal done
        done += 1
        on_turn(name, done / turns)

    return timed_turns(contenders, rounds.cut(sources, pair.max_new_tokens), on_chunk)


def timed_turns(
    contenders: list[Contender],
    chunks: Sequence[list[Request]],
    on_chunk: Callable[[str, int], None],
    enough: Callable[[dict[str, Measured]], bool] = lambda measured: False,
) -> list[Timed]:
    """Everyone, warm already, decodes the same chunks in turns, until there are no more or `enough`."""
    at_start = {one.name: (one.stats, one.gap_nats, one.lengths_2K) for one in contenders}
    decoders = {one.name: one.decoder for one in contenders}
    measured = interleave(decoders, chunks, on_chunk, is_warm=True, enough=enough)
    return [_timed(one, measured[one.name], *at_start[one.name]) for one in contenders]


def _timed(
    one: Contender, measured: Measured, stats: EngineStats | None, gap_nats: float, lengths_2K: Lengths | None
) -> Timed:
    now, lengths = one.stats, one.lengths_2K
    gained = None if now is None or stats is None else since(now, stats)
    counted = None if lengths is None or lengths_2K is None else lengths - lengths_2K
    return Timed(one, measured, gained, one.gap_nats - gap_nats, counted)


def _warm_up(
    pair: Pair, sources: list[list[int]], contenders: list[Contender], batch_size: int, until: float | None
) -> Rounds | None:
    """Decode one batch with everyone, and once more against the clock where time is limited: then what fits."""
    [batch] = Rounds(1, batch_size).cut(sources, pair.max_new_tokens)
    decoders = [one.decoder for one in contenders]
    seconds_of(decoders, batch)
    if until is None:
        return None
    seconds_per_row = seconds_of(decoders, batch) / len(batch)
    return rounds_within(until - time.perf_counter(), seconds_per_row, batch_size)


def _rows(timed: list[Timed], batch_size: int, seconds_each: float | None) -> list[BenchRow]:
    by_engine: dict[str, Measured] = {}
    for one in timed:  # of an engine at several precisions, the first
        by_engine.setdefault(one.contender.engine, one.measured)
    return [_row(one, batch_size, by_engine, seconds_each) for one in timed]


def _row(timed: Timed, batch_size: int, by_engine: dict[str, Measured], seconds_each: float | None) -> BenchRow:
    one, measured, stats = timed.contender, timed.measured, timed.stats
    low, middle, high = np.quantile(measured.rates, [0.25, 0.5, 0.75]).tolist()
    plain = paired_ratio(measured, by_engine["plain"])
    best = best_fixed(by_engine) if one.engine == "goodput" else None
    match = exact_match(measured.outputs, by_engine["plain"].outputs)
    return BenchRow(
        engine=one.engine,
        batch_size=batch_size,
        dtype=one.dtype,
        rows=len(measured.outputs),
        chunks=len(measured.seconds),
        tokens_per_second=middle,
        audio_seconds_per_second=measured.audio_per_second(seconds_each),
        chunk_low=low,
        chunk_high=high,
        ratio_to_plain=plain.value,
        ratio_low=plain.low,
        ratio_high=plain.high,
        **_ratio_fields("hf_generate", measured, by_engine.get("hf_generate")),
        **_ratio_fields("ctranslate2", measured, by_engine.get("ctranslate2")),
        **_ratio_fields("openvino", measured, by_engine.get("openvino")),
        best_fixed=best,
        **_ratio_fields("best_fixed", measured, by_engine[best] if best else None),
        drafted_tokens=stats.drafted_tokens if stats else None,
        verified_tokens=stats.verified_tokens if stats else None,
        drafter_tokens=stats.drafter_tokens if stats else None,
        tokens_per_iteration=stats.tokens_per_iteration if stats else None,
        acceptance_rate=stats.acceptance_rate if stats and stats.drafted_tokens else None,
        exact_match_to_plain=match,
        lossless=as_measured(one.lossless, match),
    )


def _ratio_fields(name: str, measured: Measured, other: Measured | None) -> dict[str, Any]:
    found: Ratio | None = None if other is None else paired_ratio(measured, other)
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return dict(zip((f"ratio_to_{name}", f"ratio_to_{name}_low", f"ratio_to_{name}_high"), values, strict=True))


def best_fixed(by_engine: dict[str, Measured]) -> str | None:
    """The fastest of the engines of policy `fixed`, where there are two or more."""
    fixed = [name for name in by_engine if name.startswith("fixed")]
    return max(fixed, key=lambda name: float(np.median(by_engine[name].rates))) if len(fixed) > 1 else None
