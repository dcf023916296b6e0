"""The first texts of an input, read in the order of the plan. For checks and measurements, not for runs."""

from collections.abc import Iterator
from itertools import islice

from cmasd.config.tree import Config
from cmasd.io.plan import Plan, source_of
from cmasd.io.shards import read_shards


def first_texts(config: Config, plan: Plan, count: int) -> list[str]:
    """The first good texts of the input."""
    return list(islice(_texts(config, plan), count))


def _texts(config: Config, plan: Plan) -> Iterator[str]:
    for number, planned in enumerate(plan.files):
        part = plan.part(number)
        todo = {shard.index for shard in part.shards()}
        for _, rows in read_shards(part, source_of(config, planned.file), todo):
            yield from (text for text in rows["text"].to_pylist() if text is not None)
