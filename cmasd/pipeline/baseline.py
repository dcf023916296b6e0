"""The check against AR decoding, in whatever process decodes.

What is compared, and how, is the caller's: this room provides the first rows, the loaded pair and the place to run.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cmasd.config.tree import Config
from cmasd.core import RowError
from cmasd.io.plan import Plan
from cmasd.io.samples import first_rows
from cmasd.pipeline.engine_thread import set_torch_threads

if TYPE_CHECKING:
    from cmasd.engine import Pair

Previous = list[list[int] | None] | None
Compare = Callable[["Pair", Config, list[list[int]], Previous], dict[str, Any]]
"""Given sources, and what an earlier run made of them."""
Compared = tuple[dict[str, Any] | None, list[str]]
"""What was found, null when no row can be encoded; and what users should know of it."""
ENGINES = 2
"""That a comparison has in memory at once."""


def compare_from_start(config: Config, plan: Plan, compare: Compare) -> Compared:
    """In a process that has loaded nothing yet."""
    from cmasd.engine import load_pair

    set_torch_threads(config.actors.cpus_each)
    return compare_with(load_pair(config), config, plan, compare)


def compare_with(pair: "Pair", config: Config, plan: Plan, compare: Compare) -> Compared:
    """With a pair that is loaded: what was found, null when no row can be encoded; and what users should know of it."""
    from cmasd.engine.previous import previous_outputs

    rows = first_rows(config, plan, config.baseline.rows)
    encoded = zip(rows, pair.codec.encode([text for _, text in rows]), strict=True)
    good = [(one, source) for (one, _), source in encoded if not isinstance(source, RowError)]
    sources = [source for _, source in good]
    if not sources:
        return None, ["baseline.rows: not compared with AR decoding, since none of the first rows can be encoded."]
    result, notices = _with_what_fits(
        pair, config, sources, compare, previous_outputs(config, pair, [one for one, _ in good])
    )
    return {**result, "asked": asked_of(config)}, notices


def asked_of(config: Config) -> dict[str, Any]:
    """What is compared: a result that was asked for likewise is kept by later starts."""
    return asdict(config.baseline)


def _with_what_fits(
    pair: "Pair", config: Config, sources: list[list[int]], compare: Compare, previous: Previous = None
) -> tuple[dict[str, Any], list[str]]:
    """In as many slots as the run, or in fewer where two engines side by side do not fit into memory."""
    from cmasd.engine.capacity import fits, free_bytes

    slots, free = config.engine.slots, free_bytes(pair.device) // ENGINES
    if slots is None or fits(pair, config, slots, free):
        return compare(pair, config, sources, previous), []
    fewer = replace(config, engine=replace(config.engine, slots=None))
    said = (
        f"baseline.rows: compared in fewer slots than engine.slots ({slots}), since two engines need twice the memory."
    )
    return compare(pair, fewer, sources, previous), [said]
