"""The ways of decoding that `cmasd compare` sets side by side: plain AR, peers, and each part of the method by itself.

A way of ours is a policy and a verification rule; all else is the user's configuration. `adaptive_k` has the paper's
draft length and checks exactly, `adaptive_tau` has a fixed length and the paper's tolerance, `paper_*` has both. What
cannot be built, or fails on its first batch, is left out with the reason; `ar_greedy` alone must work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from cmasd.checkpoints.by_name import Model
from cmasd.config.comparing import STITCHED
from cmasd.config.speculation import FREE_DRAFTERS
from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.compare.stitch_ways import stitched
from cmasd.evaluation.speed.engines import GREEDY
from cmasd.evaluation.speed.lineup import (
    NO_DRAFTER,
    Contender,
    can_draft,
    ct2_contenders,
    hf_contender,
    our_contender,
)
from cmasd.evaluation.speed.peers import HfGenerate, load_ctranslate2, stock_verifier
from cmasd.evaluation.speed.timing import seconds_of

PLAIN = "ar_greedy"
BEAMS = 5


@dataclass(frozen=True)
class Way:
    """A policy and a verification rule."""

    policy: Any
    """`policy.kind`."""
    verification: Any
    """`verification.kind`."""
    tau_form: Any = "prose"
    """`verification.tau_form`, where verification is `modulated`."""
    drafters: tuple[str, ...] = ()
    """`drafter.kind`; none: the user's."""


WAYS = {
    PLAIN: Way("plain", "exact"),
    "fixed_exact": Way("fixed", "exact"),
    "fixed_relaxed": Way("fixed", "relaxed"),
    "adaptive_k": Way("paper", "exact"),
    "adaptive_tau": Way("fixed", "modulated"),
    "adaptive_tau_printed": Way("fixed", "modulated", "printed"),
    "paper_printed": Way("paper", "modulated", "printed"),
    "paper_prose": Way("paper", "modulated"),
    "goodput": Way("goodput", "exact"),
    "goodput_budget": Way("goodput", "budget"),
    "copy": Way("goodput", "exact", drafters=("copy",)),
    "memory": Way("goodput", "exact", drafters=("memory",)),
    "previous": Way("goodput", "exact", drafters=("previous",)),
    "all": Way("goodput", "exact", drafters=FREE_DRAFTERS),
}
"""Our own, by name."""


def way_config(name: str, config: Config) -> Config:
    """`config` with the policy and the verification of a way of ours."""
    way = WAYS[name]
    policy = replace(config.policy, kind=way.policy)
    verification = replace(
        config.verification,
        kind=way.verification,
        tau_form=way.tau_form,
        budget_nats_per_token=config.compare.quality_budget_nats_per_token,
    )
    drafter = config.drafter
    if way.drafters:
        kinds = _drafters(way, config)
        drafter = replace(drafter, kind=kinds, previous=drafter.previous if "previous" in kinds else None)
    return replace(config, policy=policy, verification=verification, drafter=drafter)


def _drafters(way: Way, config: Config) -> list[str]:
    """Those of a way; where it has several, without an earlier run that is not named, and with the user's model."""
    if len(way.drafters) == 1:
        return list(way.drafters)
    free = [kind for kind in way.drafters if kind != "previous" or config.drafter.previous is not None]
    is_there = not config.drafter.is_named or config.models.drafter is not None
    if config.drafter.model is not None and is_there:
        return [*free, config.drafter.model]
    return [kind for kind in free if kind != "recycle"]


def first_batch(
    pair: Pair, config: Config, batch_size: int, batch: list[Request], on_skip: Callable[[str, str], None]
) -> tuple[list[Contender], float]:
    """The contenders that `compare.engines` names, `ar_greedy` first, warm: each has decoded `batch` once.

    And the seconds that all of them took for it, which is what a round takes at most.
    """
    warm: list[Contender] = []
    seconds, stock = 0.0, cache(lambda: stock_verifier(pair, config))
    for name in dict.fromkeys([PLAIN, *config.compare.engines]):
        try:
            for contender in _build(name, pair, config, batch_size, warm, stock):
                seconds += seconds_of([contender.decoder], batch)
                warm.append(contender)
        except Exception as error:  # peers raise what their models make them
            if name == PLAIN:
                raise
            on_skip(name, _reason(error, name))
    return warm, seconds


def _reason(error: Exception, name: str) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix(f"{name}: ")


def _build(
    name: str, pair: Pair, config: Config, batch_size: int, warm: list[Contender], stock: Callable[[], Model]
) -> Iterator[Contender]:
    """`warm`: those before it, which have decoded the first batch. `stock`: what peers are made of, one for all."""
    if name in STITCHED:
        yield from stitched(name, pair, config, batch_size, warm)
        return
    if name in WAYS:
        own = way_config(name, config)
        if "previous" in own.drafter.free and own.drafter.previous is None:
            raise ModelError("drafter.previous names no run")
        if own.policy.kind != "plain" and not can_draft(pair, own):
            raise ModelError(NO_DRAFTER)
        yield our_contender(name, pair, own, batch_size)
        return
    if name == "ctranslate2":
        for one in ct2_contenders(pair, load_ctranslate2(pair, stock(), torch.get_num_threads()), batch_size):
            yield replace(one, engine=name if one.lossless == GREEDY else f"{name}_{one.dtype}")
    elif name == "hf_generate":
        yield hf_contender(pair, stock(), batch_size)
    else:
        assert name == "ar_beam", f"no way of decoding is called {name}"
        beam = HfGenerate(pair, batch_size, stock(), beams=BEAMS)
        yield replace(hf_contender(pair, stock(), batch_size), engine=name, lossless="beam search", decoder=beam)
