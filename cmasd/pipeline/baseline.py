"""The check against AR decoding, as one Ray task with an actor's resources.

What is compared, and how, is the caller's: this room provides the first rows, the loaded pair and the place to run.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cmasd.config.tree import Config
from cmasd.core import RowError
from cmasd.io.plan import Plan
from cmasd.io.samples import first_texts
from cmasd.pipeline.cluster import Resources
from cmasd.pipeline.engine_thread import set_torch_threads

if TYPE_CHECKING:
    from cmasd.engine import Pair

Compare = Callable[["Pair", Config, list[list[int]]], dict[str, Any]]


def compare_in_cluster(config: Config, plan: Plan, has: Resources, compare: Compare) -> dict[str, Any] | None:
    """Null when no row can be encoded."""
    import ray

    task = ray.remote(num_cpus=has.cpus_each, num_gpus=has.gpus_each, max_retries=1)(_compare)
    result: dict[str, Any] | None = ray.get(task.remote(config, plan, compare))
    return result


def _compare(config: Config, plan: Plan, compare: Compare) -> dict[str, Any] | None:
    from cmasd.engine import load_pair

    set_torch_threads(config.actors.cpus_each)
    pair = load_pair(config)
    texts = first_texts(config, plan, config.baseline.rows)
    sources = [source for source in pair.codec.encode(list(texts)) if not isinstance(source, RowError)]
    return {**compare(pair, config, sources), "rows_asked": config.baseline.rows} if sources else None
