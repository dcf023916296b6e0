"""What each way of decoding would cost on a corpus, and what its output is worth, from a sample in one run.

Everyone decodes the same stratified chunks in turns, warm, at the batch size of a run, until the interval of every
engine's cost is narrow enough or the time is up. Speed-ups are between all chunks together, with the interval over
chunks. Rows that come up again, because the sample is small, are timed again and scored once.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cmasd.codecs.speech import SpeechCodec
from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.engine.capacity import resolve
from cmasd.engine.previous import previous_outputs
from cmasd.evaluation.compare.corpus_cost import accelerator_hours, widest
from cmasd.evaluation.compare.sample import Sample
from cmasd.evaluation.compare.stitch_ways import SMALL_ALONE, engines_of
from cmasd.evaluation.compare.ways import first_batch
from cmasd.evaluation.quality.answers import accuracy, marked
from cmasd.evaluation.quality.sets import output_texts, score
from cmasd.evaluation.quality.significance import ReferenceScores, paired_scores
from cmasd.evaluation.speed.bench import BenchWatcher, Timed, timed_turns
from cmasd.evaluation.speed.engines import as_measured
from cmasd.evaluation.speed.request_decoder import Lengths
from cmasd.evaluation.speed.timing import FEWEST_CHUNKS, Measured, exact_match, ratio, rounds_within

MOST_CHUNKS = 500


@dataclass(frozen=True)
class Compared:
    """One way of decoding."""

    name: str
    dtype: str
    lossless: str
    """`exact`, `exact but for ties` or `lossy`; of a peer `same rows`, `rows differ`, `lossy` or `beam search`."""
    batch_size: int
    rows: int
    """Timed, those that came again included."""
    chunks: int
    output_tokens: int
    tokens_per_second: float
    """Over all chunks."""
    speedup: float
    """Tokens per second over those of `ar_greedy`."""
    speedup_low: float
    """Lower end of the 95 % interval over chunks."""
    speedup_high: float
    accelerator_hours: float
    """For the whole corpus."""
    accelerator_hours_low: float
    accelerator_hours_high: float
    cost: float | None
    """For the whole corpus; None without `cost.accelerator_per_hour`."""
    cost_low: float | None
    cost_high: float | None
    drafted_tokens: int | None
    """None for a peer, as all counters. Of a way that drafted nothing the speed-up is noise: it decodes as AR does."""
    tokens_per_iteration: float | None
    acceptance_rate: float | None
    """None where nothing was drafted, as the rollback rate."""
    acceptance_by_position: list[float | None] | None
    """Share accepted of the tokens drafted at each position; None where nothing was drafted."""
    rollback_rate: float | None
    """Share of iterations with a draft that had a token rejected."""
    wasted_tokens_per_output_token: float | None
    """Draft tokens that were verified and not kept."""
    mean_gap_nats: float | None
    """Log-probability gap per output token; 0 for exact decoding."""
    exact_match: float
    """Share of scored rows with the tokens of `ar_greedy`."""
    relative_bleu: float
    """Corpus BLEU with the output of `ar_greedy` as reference."""
    scored_rows: int
    scores: ReferenceScores | None = None
    """Against references; None without."""
    seconds: float = 0.0
    """Of all chunks."""
    accuracy: float | None = None
    """Share of scored rows with the right answer; None without `compare.answer`, as its 95 % interval (Wilson)."""
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_gap: float | None = None
    """To the share of `ar_greedy`; negative where fewer are right."""
    accuracy_gap_low: float | None = None
    """Lower end of its 95 % interval, over rows in pairs."""
    accuracy_gap_high: float | None = None
    large_share: float | None = None
    """Of output tokens, those that the verifier said or checked; None for a peer."""
    switches_per_row: float | None = None
    """Times that a row went from one of two models to the other; None for a peer."""
    audio_seconds_per_second: float | None = None
    """Seconds of recordings over those that they took; None for texts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; scores side by side with the rest."""
        return {**{key: value for key, value in asdict(self).items() if key != "scores"}, **_flat(self.scores)}


def _flat(scores: ReferenceScores | None) -> dict[str, Any]:
    return asdict(scores or ReferenceScores())


@dataclass(frozen=True)
class Comparison:
    """All of them, `ar_greedy` first."""

    results: list[Compared]
    corpus_rows: float
    """Rows of the corpus that can be decoded."""
    relative_ci: float
    """Half the widest interval of a cost, over that cost."""
    signatures: dict[str, str] = field(default_factory=dict)
    """Of the scores against references, to quote."""


def compare(
    pair: Pair, config: Config, sample: Sample, seconds: float | None = None, watcher: BenchWatcher | None = None
) -> Comparison:
    """Measure every engine of `compare.engines`; `seconds` defaults to `compare.max_seconds`.

    The least is three chunks of one batch, fit or not. Caches are sized for the longest source of the sample.
    """
    started, seconds = time.perf_counter(), seconds or config.compare.max_seconds
    watcher = watcher or BenchWatcher()
    pair = pair.sized_for(sample.sources)
    slots = resolve(pair, config, engines=engines_of(config)).engine.slots
    assert slots is not None, "a resolved configuration has slots"
    previous = None if sample.ids is None else previous_outputs(config, pair, sample.ids)
    batch = _requests(pair, sample, sample.chunks(slots, 1), previous)[0]
    contenders, batch_seconds = first_batch(pair, config, slots, batch, watcher.skipped)
    left = seconds - (time.perf_counter() - started)
    places = sample.chunks(rounds_within(left, batch_seconds / slots, slots).rows, MOST_CHUNKS)
    rounds_started = time.perf_counter()

    def enough(measured: dict[str, Measured]) -> bool:
        now = time.perf_counter()
        done = len(next(iter(measured.values())).seconds)
        is_narrow = widest(list(measured.values())) <= config.compare.max_relative_ci
        is_late = now - started + (now - rounds_started) / done > seconds
        return done >= FEWEST_CHUNKS and ((is_narrow and done * len(places[0]) >= config.compare.min_rows) or is_late)

    def on_chunk(name: str, chunk: int) -> None:
        watcher.progress(slots, name, min(1.0, (time.perf_counter() - started) / seconds))

    timed = timed_turns(contenders, _requests(pair, sample, places, previous), on_chunk, enough)
    return _comparison(pair, config, sample, places, slots, timed)


def _requests(
    pair: Pair, sample: Sample, places: Sequence[Sequence[int]], previous: Sequence[list[int] | None] | None
) -> list[list[Request]]:
    """Requests of chunks, numbered through; `previous`: what an earlier run made of the sample's rows."""
    chunk_rows, before = len(places[0]), previous or [None] * len(sample.sources)
    return [
        [
            Request(i * chunk_rows + j, sample.sources[place], pair.max_new_tokens, before[place])
            for j, place in enumerate(chunk)
        ]
        for i, chunk in enumerate(places)
    ]


def _comparison(
    pair: Pair, config: Config, sample: Sample, places: Sequence[Sequence[int]], slots: int, timed: Sequence[Timed]
) -> Comparison:
    chunk_rows, flat = len(places[0]), [place for chunk in places for place in chunk]
    # Of a row that came several times, the first.
    first = {flat[key]: key for key in sorted(timed[0].measured.outputs, reverse=True)}
    keys = sorted(first.values())
    texts = {one.contender.engine: output_texts(pair, one.measured, keys) for one in timed}
    references = None if sample.references is None else [sample.references[flat[key]] for key in keys]
    normalised = pair.codec.normalised if isinstance(pair.codec, SpeechCodec) else None
    scores, signatures = paired_scores(texts, references, normalised)
    answers = None if sample.answers is None else [sample.answers[flat[key]] for key in keys]
    results = [
        _compared(
            one, timed[0], config, slots, chunk_rows, sample.corpus_rows, keys, texts, scores.get(one.contender.engine)
        )
        for one in timed
    ]
    if pair.sound is not None:
        each = pair.sound.seconds_each
        rates = [one.measured.audio_per_second(each) for one in timed]
        results = [replace(one, audio_seconds_per_second=rate) for one, rate in zip(results, rates, strict=True)]
    if answers is not None:
        right = {name: marked(config.compare, said, answers) for name, said in texts.items()}
        results = [replace(one, **accuracy(right[one.name], right[results[0].name])) for one in results]
    return Comparison(results, sample.corpus_rows, widest([one.measured for one in timed]), signatures)


def _compared(
    timed: Timed,
    plain: Timed,
    config: Config,
    slots: int,
    chunk_rows: int,
    corpus_rows: float,
    keys: Sequence[int],
    texts: dict[str, list[str]],
    scores: ReferenceScores | None,
) -> Compared:
    one, measured = timed.contender, timed.measured
    speed = ratio(measured, plain.measured)
    hours = accelerator_hours(measured, chunk_rows, corpus_rows)
    price = config.cost.accelerator_per_hour
    cost = None if price is None else hours.times(price)
    match = exact_match(measured.outputs, {key: plain.measured.outputs[key] for key in keys})
    return Compared(
        name=one.engine,
        dtype=one.dtype,
        lossless=as_measured(one.lossless, match),
        batch_size=slots,
        rows=len(measured.outputs),
        chunks=len(measured.seconds),
        output_tokens=sum(measured.tokens),
        tokens_per_second=measured.tokens_per_second,
        speedup=speed.value,
        speedup_low=speed.low,
        speedup_high=speed.high,
        accelerator_hours=hours.value,
        accelerator_hours_low=hours.low,
        accelerator_hours_high=hours.high,
        cost=None if cost is None else cost.value,
        cost_low=None if cost is None else cost.low,
        cost_high=None if cost is None else cost.high,
        **_counters(timed),
        exact_match=match,
        relative_bleu=round(score(one.engine, texts[one.engine], texts[plain.contender.engine]).bleu, 2),
        scored_rows=len(keys),
        scores=scores,
        seconds=sum(measured.seconds),
    )


def _counters(timed: Timed) -> dict[str, Any]:
    """What our engine counted; nothing of a peer."""
    stats, tokens = timed.stats, sum(timed.measured.tokens)
    drafted = stats is not None and stats.drafted_tokens > 0
    return {
        "drafted_tokens": stats.drafted_tokens if stats else None,
        "tokens_per_iteration": stats.tokens_per_iteration if stats else None,
        "acceptance_rate": stats.acceptance_rate if stats and drafted else None,
        "acceptance_by_position": None if timed.lengths_2K is None else by_position(timed.lengths_2K),
        "rollback_rate": stats.rollback_rate if stats and drafted else None,
        "wasted_tokens_per_output_token": (stats.drafted_tokens - stats.accepted_tokens) / tokens if stats else None,
        "mean_gap_nats": timed.gap_nats / tokens if stats and not math.isnan(timed.gap_nats) else None,
        "large_share": large_share(timed),
        "switches_per_row": stats.switches / len(timed.measured.outputs) if stats else None,
    }


def large_share(timed: Timed) -> float | None:
    """Share of output tokens that the verifier said or checked."""
    if timed.stats is None:
        return None
    return 0.0 if timed.contender.engine == SMALL_ALONE else 1 - timed.stats.small_tokens / timed.stats.output_tokens


def by_position(lengths_2K: Lengths) -> list[float | None] | None:
    """Acceptance at each position, from row-iterations by tokens drafted and accepted; None where none drafted."""
    if not lengths_2K.any():
        return None
    counts_2K = np.flip(np.cumsum(np.flip(lengths_2K, axis=1), axis=1), axis=1)[:, 1:]
    drafted_K, accepted_K = counts_2K[:, : max(1, int(np.count_nonzero(counts_2K[0])))].tolist()
    return [accepted / drafted if drafted else None for drafted, accepted in zip(drafted_K, accepted_K, strict=True)]
