"""The first rows of an input, read in the order of the plan. For checks and measurements, not for runs."""

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.io.plan import Plan, source_of
from cmasd.io.shards import read_shards


def first_texts(config: Config, plan: Plan, count: int) -> list[str]:
    """The first good texts of the input."""
    texts = (text for rows in tables(config, plan) for text in rows["text"].to_pylist() if text is not None)
    return list(islice(texts, count))


def tables(config: Config, plan: Plan) -> Iterator[pa.Table]:
    """The planned rows, shard by shard, as far as they are asked for."""
    for number, planned in enumerate(plan.files):
        part = plan.part(number)
        todo = {shard.index for shard in part.shards()}
        for _, rows in read_shards(part, source_of(config, planned.file), todo):
            yield rows
