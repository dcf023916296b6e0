"""The first rows of an input, or some from all over it, in the order of the plan. For measurements, not for runs."""

from collections.abc import Collection, Iterator
from itertools import islice

import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.io.plan import Plan, Shard, source_of
from cmasd.io.shards import read_shards

MOST_SHARDS = 32
"""That a spread sample is read from."""


def first_texts(config: Config, plan: Plan, count: int) -> list[str]:
    """The first good texts of the input."""
    return [text for _, text in first_rows(config, plan, count)]


def first_rows(config: Config, plan: Plan, count: int) -> list[tuple[str | int | None, str]]:
    """Ids and texts of the same."""
    pairs = (
        (one, text)
        for rows in tables(config, plan)
        for one, text in zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True)
        if text is not None
    )
    return list(islice(pairs, count))


def tables(config: Config, plan: Plan, chosen: Collection[Shard] | None = None) -> Iterator[pa.Table]:
    """The planned rows, or those of the chosen shards, shard by shard, as far as they are asked for."""
    for number, planned in enumerate(plan.files):
        part = plan.part(number)
        todo = {shard.index for shard in part.shards() if chosen is None or shard in chosen}
        if todo:
            for _, rows in read_shards(part, source_of(config, planned.file), todo):
                yield rows


def spread_tables(config: Config, plan: Plan, rows: int) -> Iterator[pa.Table]:
    """About so many rows from all over the input, evenly spaced in evenly spaced shards; all where it has fewer."""
    shards = list(plan.shards())
    chosen = {shards[i] for i in evenly(len(shards), MOST_SHARDS)}
    for table in tables(config, plan, chosen):
        yield table.take(evenly(table.num_rows, -(-rows // len(chosen))))


def evenly(count: int, most: int) -> list[int]:
    """At most so many of `range(count)`, evenly spaced."""
    taken = min(count, most)
    return [i * count // taken for i in range(taken)]
