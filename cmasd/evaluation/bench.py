"""Speed of every way of decoding, batch size by batch size, against plain AR in the same engine."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cmasd.config import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.evaluation.baseline import EngineDecoder, plain_config
from cmasd.evaluation.peers import HfGenerate
from cmasd.evaluation.speed import Decoder, Measured, exact_match, interleave, ratio

CHUNKS = 5


@dataclass(frozen=True)
class BenchRow:
    """One engine at one batch size."""

    engine: str
    batch_size: int
    dtype: str
    rows: int
    tokens_per_second: float
    """Over all chunks."""
    chunk_median: float
    """Median tokens per second over chunks."""
    chunk_low: float
    """Lower quartile over chunks."""
    chunk_high: float
    ratio_to_plain: float
    ratio_low: float
    """Lower end of the 95 % interval over chunks."""
    ratio_high: float
    tokens_per_iteration: float | None
    """None for engines without speculation counters."""
    acceptance_rate: float | None
    exact_match_to_plain: float
    """Share of rows with the same tokens as plain."""
    lossless: str
    """`exact`, `in distribution` or `lossy`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def variants(config: Config) -> dict[str, Config]:
    """The engines that a bench compares, by name; `config` gives everything they share but policy and verification."""
    exact = replace(config.verification, kind="exact")
    modulated = replace(config.verification, kind="modulated")
    exact_config = replace(config, verification=exact)

    def with_policy(base: Config, kind: Any) -> Config:
        return replace(base, policy=replace(base.policy, kind=kind))

    return {
        "plain": plain_config(exact_config),
        "fixed": with_policy(exact_config, "fixed"),
        "paper": with_policy(exact_config, "paper"),
        "paper_modulated": with_policy(replace(config, verification=modulated), "paper"),
        "survival": with_policy(exact_config, "survival"),
    }


def bench(
    pair: Pair,
    config: Config,
    sources: list[list[int]],
    batch_sizes: list[int],
    on_chunk: Callable[[int, str, int], None] = lambda batch_size, name, chunk: None,
) -> Iterator[BenchRow]:
    """Measure every engine at every batch size; rows come out as a batch size is done.

    Needs at least one source. A pair without a drafter is measured without the engines that draft.
    """
    compared = variants(config)
    if pair.drafter is None and config.drafter.kind == "model":
        compared = {"plain": compared["plain"]}
    for batch_size in batch_sizes:
        requests = [Request(i, source, pair.max_new_tokens) for i, source in enumerate(sources[: rows_for(batch_size)])]
        chunks = [chunk for i in range(CHUNKS) if (chunk := requests[i::CHUNKS])]
        configs = {n: replace(c, engine=replace(c.engine, slots=batch_size)) for n, c in compared.items()}
        engines = {name: EngineDecoder(pair, one) for name, one in configs.items()}
        decoders: dict[str, Decoder] = {**engines, "hf_generate": HfGenerate(pair, batch_size)}
        measured = interleave(decoders, chunks, partial(on_chunk, batch_size))
        for name, one in measured.items():
            yield _row(name, batch_size, pair, one, measured["plain"], engines.get(name), configs.get(name))


def rows_for(batch_size: int) -> int:
    """Enough rows that every chunk fills the batch more than once, and few enough at batch 1."""
    return CHUNKS * max(8, 3 * batch_size)


def _row(
    name: str,
    batch_size: int,
    pair: Pair,
    measured: Measured,
    plain: Measured,
    engine: EngineDecoder | None,
    config: Config | None,
) -> BenchRow:
    low, middle, high = np.quantile(measured.rates, [0.25, 0.5, 0.75]).tolist()
    speedup = ratio(measured, plain)
    stats = engine.stats if engine else None
    return BenchRow(
        engine=name,
        batch_size=batch_size,
        dtype=str(pair.verifier.dtype).removeprefix("torch."),
        rows=len(measured.outputs),
        tokens_per_second=measured.tokens_per_second,
        chunk_median=middle,
        chunk_low=low,
        chunk_high=high,
        ratio_to_plain=speedup.value,
        ratio_low=speedup.low,
        ratio_high=speedup.high,
        tokens_per_iteration=stats.tokens_per_iteration if stats else None,
        acceptance_rate=stats.acceptance_rate if stats else None,
        exact_match_to_plain=exact_match(measured.outputs, plain.outputs),
        lossless=config.lossless if config else "exact",
    )
