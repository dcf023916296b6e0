"""What a drafter gains on test sets: tokens per iteration at fixed draft lengths, exact verification."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cmasd.config.tree import Config
from cmasd.core import Request, RowError
from cmasd.engine import Pair
from cmasd.evaluation.quality.sets import TestSets, read_sets
from cmasd.evaluation.speed.request_decoder import EngineDecoder


@dataclass(frozen=True)
class DrafterGain:
    """One test set at one draft length."""

    name: str
    rows: int
    draft_tokens: int
    """k: drafted in every iteration."""
    tokens_per_iteration: float
    acceptance_rate: float


def draft_sets(
    pair: Pair,
    config: Config,
    sets: TestSets,
    lengths: list[int],
    on_set: Callable[[DrafterGain], None] = lambda drafting: None,
) -> list[DrafterGain]:
    """Decode every set at every draft length."""
    found = []
    for length in lengths:
        drafter = replace(config.drafter, max_draft_tokens=length, min_draft_tokens=1)
        exact = replace(config.verification, kind="exact")
        fixed = replace(config, drafter=drafter, verification=exact, policy=replace(config.policy, kind="fixed"))
        for name, rows in read_sets(sets).items():
            decoder = EngineDecoder(pair, fixed)
            encoded = pair.codec.encode([source for source, _ in rows])
            taken = [ids for ids in encoded if not isinstance(ids, RowError)]
            decoder.decode([Request(i, ids, pair.max_new_tokens) for i, ids in enumerate(taken)])
            stats = decoder.stats
            found.append(DrafterGain(name, len(taken), length, stats.tokens_per_iteration, stats.acceptance_rate))
            on_set(found[-1])
    return found
