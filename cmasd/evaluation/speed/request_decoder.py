"""An engine that decodes lists of requests: what measurements and audits are made with."""

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from cmasd.config.tree import Config
from cmasd.core import Request, Sound
from cmasd.drafters import FreeDrafter, MixedDrafter
from cmasd.engine import Engine, Pair
from cmasd.engine.capacity import resolve
from cmasd.telemetry.stats import EngineStats

Lengths = NDArray[np.int64]


class EngineDecoder:
    """An engine that decodes a list of requests to the end."""

    def __init__(self, pair: Pair, config: Config, recalls: bool = False) -> None:
        """Building the engine is its start-up: caches, and what the policy measures. Decoding does none of it.

        `recalls`: begin with what runs have learned on this machine, as a run does.
        """
        self.engine = Engine(pair, resolve(pair, config))
        if recalls:
            self.engine.experience.recall()
        self._decoded: set[int] = set()
        """Hashes of sources, since the engine was new or had forgotten what rows said."""
        self.gap_nats = 0.0
        """Log-probability gaps of all output tokens so far, added up."""

    @property
    def stats(self) -> EngineStats:
        """The engine's counters, warm-up included."""
        return self.engine.stats

    @property
    def lengths_2K(self) -> Lengths:
        """(2, k + 1) row-iterations that had a draft so far, by tokens drafted, and by tokens accepted."""
        counted: Lengths = self.engine.state.lengths_2K.cpu().numpy().copy()
        return counted

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key. What comes again is not remembered: no corpus would have told it before."""
        hashes = {hash(one if isinstance(one := request.source, Sound) else tuple(one)) for request in requests}
        drafter = self.engine.drafter
        if hashes & self._decoded and isinstance(drafter, FreeDrafter | MixedDrafter):
            drafter.forget()
            self._decoded.clear()
        self._decoded |= hashes
        outputs = {}
        for result in self.engine.decode(requests):
            outputs[result.key] = result.token_ids.tolist()
            self.gap_nats += result.mean_gap_nats * result.num_output_tokens
        return outputs


def since(now: EngineStats, start: EngineStats) -> EngineStats:
    """What an engine did since `start`: warm-ups are not counted."""
    return EngineStats(*(getattr(now, field.name) - getattr(start, field.name) for field in fields(EngineStats)))


def plain_config(config: Config) -> Config:
    """The same engine without drafting, by greedy AR (by AR sampling when sampling was asked for)."""
    sampling = config.verification.kind == "sampling"
    exact = replace(config.verification, kind="sampling" if sampling else "exact")
    return replace(config, policy=replace(config.policy, kind="plain"), verification=exact)
