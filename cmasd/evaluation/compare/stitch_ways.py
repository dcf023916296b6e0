"""The ways of decoding in which a small model speaks: alone, in turn with the large one, and at the toss of a coin.

One of each for each of `compare.taus`, and `stitch_router` by the router that `stitch.router` names. `random_router`
drops and hands back as often as `stitch` has done so far with the same tau, and as often as `stitch_router`: what is
better than it, entropy or the router has achieved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cmasd.config.comparing import STITCHED
from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.speed.lineup import NO_DRAFTER, Contender, our_contender
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config
from cmasd.policies import StitchPolicy
from cmasd.telemetry.stats import EngineStats

SMALL_ALONE, ROUTED, RANDOM = "small_alone", "stitch_router", "random_router"
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
    if name == ROUTED:
        if config.stitch.router is None:
            raise ModelError("has no router. Name the folder of one as stitch.router")
        yield our_contender(name, pair, _stitch_config(config, speculate=False, random=[]), batch_size)
        return
    for tau in config.compare.taus:
        to_large = 1.0 if name == "stitch_once" else None
        speculates = name == "stitch_speculate"
        own = _stitch_config(config, tau=tau, tau_large=to_large, speculate=speculates, random=[], router=None)
        if name != RANDOM:
            yield our_contender(f"{name} {tau:g}", pair, own, batch_size)
            continue
        yield _random_router(f"{tau:g}", f"stitch {tau:g}", pair, own, batch_size, warm)
    if name == RANDOM and _also_for_the_router(config):
        own = _stitch_config(config, tau_large=None, speculate=False, random=[], router=None)
        yield _random_router("as stitch_router", ROUTED, pair, own, batch_size, warm)


def _random_router(
    said: str, leads: str, pair: Pair, own: Config, batch_size: int, warm: Sequence[Contender]
) -> Contender:
    """Switches as often as the contender that leads."""
    leader = next((one for one in warm if one.engine == leads), None)
    if leader is None or not isinstance(leader.decoder, EngineDecoder):
        named = leads.partition(" ")[0]
        raise ModelError(f"has no {named} to be compared with. Name {named} before it in compare.engines")
    chance = replace(own.stitch, random=rates(leader.decoder.stats))
    sized = replace(own, stitch=chance, engine=replace(own.engine, slots=batch_size))
    router = RandomRouter(pair, sized, leader.decoder)
    return replace(leader, engine=f"{RANDOM} {said}", lossless=sized.lossless, decoder=router)


def _also_for_the_router(config: Config) -> bool:
    return ROUTED in config.compare.engines and config.stitch.router is not None


def engines_of(config: Config) -> int:
    """How many engines `compare.engines` comes to."""
    taus, named = len(config.compare.taus), config.compare.engines
    own = sum(taus if name in STITCHED and name not in (SMALL_ALONE, ROUTED) else 1 for name in named)
    return own + (RANDOM in named and _also_for_the_router(config))


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
