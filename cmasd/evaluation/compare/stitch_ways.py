"""The ways of decoding in which a small model speaks: alone, in turn with the large one, and at the toss of a coin.

One of each for each of `compare.taus`. `random_router` drops and hands back as often as `stitch` has done so far
with the same tau: what is better than it, entropy has achieved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cmasd.config.tree import STITCHED, Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.speed.lineup import NO_DRAFTER, Contender, our_contender
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config
from cmasd.policies import StitchPolicy
from cmasd.telemetry.stats import EngineStats

SMALL_ALONE = "small_alone"
SPEAKERS = ("model", "self", "quantised")
"""Of `drafter.kind`, those that speak token by token."""


def stitched(name: str, pair: Pair, config: Config, batch_size: int, warm: Sequence[Contender]) -> Iterator[Contender]:
    """The contenders of one name of `STITCHED`; raises `ModelError` where the pair has no small model."""
    if pair.drafter is None or config.drafter.model not in SPEAKERS:
        raise ModelError(NO_DRAFTER)
    small, pair = pair.drafter, replace(pair, shortlist=None, parallel=None)
    if name == SMALL_ALONE:
        alone = replace(pair, verifier=small, drafter=None, bits=pair.drafter_bits)
        exact = replace(config, verification=replace(config.verification, kind="exact"))
        yield replace(our_contender(name, alone, plain_config(exact), batch_size), lossless="lossy")
        return
    for tau in config.compare.taus:
        own = _stitch_config(config, tau=tau, speculate=name == "stitch_speculate", random=[])
        if name != "random_router":
            yield our_contender(f"{name} {tau:g}", pair, own, batch_size)
            continue
        leader = next((one for one in warm if one.engine == f"stitch {tau:g}"), None)
        if leader is None or not isinstance(leader.decoder, EngineDecoder):
            raise ModelError("has no stitch to be compared with. Name stitch before it in compare.engines")
        chance = replace(own.stitch, random=rates(leader.decoder.stats))
        sized = replace(own, stitch=chance, engine=replace(own.engine, slots=batch_size))
        router = RandomRouter(pair, sized, leader.decoder)
        yield replace(leader, engine=f"{name} {tau:g}", lossless=sized.lossless, decoder=router)


def engines_of(config: Config) -> int:
    """How many engines `compare.engines` comes to."""
    return sum(len(config.compare.taus) if name in STITCHED[1:] else 1 for name in config.compare.engines)


def _stitch_config(config: Config, **keys: Any) -> Config:
    return replace(
        config,
        policy=replace(config.policy, kind="stitch"),
        stitch=replace(config.stitch, **keys),
        verification=replace(config.verification, kind="exact"),
        drafter=replace(config.drafter, kind=config.drafter.model, shortlist=None),
        telemetry=replace(config.telemetry, teacher_top_k=0),
    )


class RandomRouter(EngineDecoder):
    """Switches by chance, as often as another engine."""

    def __init__(self, pair: Pair, config: Config, leader: EngineDecoder) -> None:
        super().__init__(pair, config)
        self._leader = leader

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """At the rates that the other one has come to by now."""
        policy = self.engine.policy
        assert isinstance(policy, StitchPolicy), "the configuration is of that policy"
        assert policy.chance is not None, "and of chance"
        dropped, returned = rates(self._leader.stats)
        policy.chance = replace(policy.chance, dropped=dropped, returned=returned)
        return super().decode(requests)


def rates(stats: EngineStats) -> list[float]:
    """Per small token made, and per large token; of an engine that has finished its rows, without speculation."""
    dropped = stats.drafter_tokens - stats.small_tokens
    returned = stats.switches - dropped
    shares = dropped / max(1, stats.drafter_tokens), returned / max(1, stats.row_iterations)
    return [min(1.0, max(0.0, share)) for share in shares]
