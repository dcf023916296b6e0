"""Pairs of tiny random models, without text: engines are tested on token ids."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from cmasd.codecs.text import TextCodec
from cmasd.config import Config, from_dict
from cmasd.core import Request, Result
from cmasd.engine import Engine, Pair
from cmasd.generation.constraints import Constraints
from cmasd.kernels import Bits
from cmasd.models.early_exit import early_exit
from cmasd.models.parallel_network import ParallelNetwork
from cmasd.runner.load import parallel_shape
from tests.unit.runner.tiny import tiny_model

MAX_NEW_TOKENS, MAX_SOURCE_TOKENS = 24, 12


def noisy_copy(model: PreTrainedModel, noise: float, seed: int = 1) -> PreTrainedModel:
    """The same model with perturbed weights: a drafter that is right now and then."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * noise * weight.std(correction=0))
    return other


def tiny_pair(family: str, noise: float = 0.1, eos: int | None = None, seed: int = 0, vocabulary: int = 64) -> Pair:
    """A float64 pair; `eos` replaces the checkpoint's end of sequence."""
    verifier = tiny_model(family, seed=seed, vocabulary=vocabulary).double()
    constraints = Constraints.from_generation_config(verifier.generation_config, vocabulary)
    if eos is not None:
        constraints = replace(constraints, eos_token_ids=(eos,))
    return Pair(
        verifier=verifier,
        drafter=noisy_copy(verifier, noise),
        codec=cast(TextCodec, None),
        constraints=constraints,
        max_new_tokens=MAX_NEW_TOKENS,
        max_source_tokens=MAX_SOURCE_TOKENS,
    )


QUALITIES = ("copy", "noisy", "unrelated")
"""How good a drafter is: the verifier itself, right now and then, right by chance."""


@cache
def shared_model(family: str, quality: str = "copy", seed: int = 0, vocabulary: int = 64) -> PreTrainedModel:
    """A float64 model of one layer, made once; tests must not change it."""
    if quality == "noisy":
        return noisy_copy(shared_model(family, "copy", seed, vocabulary), noise=0.6)
    shift = 100 if quality == "unrelated" else 0
    return tiny_model(family, seed=seed + shift, vocabulary=vocabulary, layers=1).double()


QUERIES = 6
"""Of parallel drafters."""


@cache
def shared_parallel(family: str, quality: str = "noisy", seed: int = 0, vocabulary: int = 64) -> ParallelNetwork:
    """A float64 parallel drafter for `shared_model`: `noisy` has learned to be right now and then, others have not."""
    verifier = shared_model(family, "copy", seed, vocabulary)
    torch.manual_seed(seed)
    shape = replace(parallel_shape(verifier), queries=QUERIES, feed_forward=16, rank=4)
    network = ParallelNetwork(shape).double()
    torch.nn.init.normal_(network.out.weight)
    return network.requires_grad_(False).eval()


def shared_pair(
    family: str,
    quality: str = "noisy",
    constraints: Constraints | None = None,
    *,
    seed: int = 0,
    vocabulary: int = 64,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Pair:
    """A pair of shared models, without an end of sequence and without rules unless told otherwise."""
    return Pair(
        verifier=shared_model(family, "copy", seed, vocabulary),
        drafter=shared_model(family, quality, seed, vocabulary),
        codec=cast(TextCodec, None),
        constraints=Constraints() if constraints is None else constraints,
        max_new_tokens=max_new_tokens,
        max_source_tokens=MAX_SOURCE_TOKENS,
        parallel=shared_parallel(family, quality, seed, vocabulary),
    )


@cache
def deep_model(family: str) -> PreTrainedModel:
    """A float64 model of three layers, made once."""
    return tiny_model(family, layers=3).double()


def self_pair(
    family: str, layers: int, constraints: Constraints | None = None, max_new_tokens: int = MAX_NEW_TOKENS
) -> Pair:
    """A verifier of three layers whose first ones draft."""
    verifier = deep_model(family)
    pair = shared_pair(family, constraints=constraints, max_new_tokens=max_new_tokens)
    return replace(pair, verifier=verifier, drafter=early_exit(verifier, layers))


def quantised(pair: Pair, bits: Bits = 8) -> Pair:
    """The pair whose verifier, rounded, drafts."""
    return replace(pair, drafter=pair.verifier, drafter_bits=bits)


def tiny_config(**sections: dict[str, Any]) -> Config:
    """A configuration for engines of three slots unless told otherwise."""
    tree: dict[str, Any] = {"input": {"path": "in"}, "output": {"path": "out"}, "engine": {"slots": 3}}
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    return from_dict(tree)


def decode(pair: Pair, config: Config, requests: list[Request]) -> dict[int, Result]:
    """All results by key."""
    results: dict[int, Result] = {}
    for result in Engine(pair, config).decode(requests):
        assert result.key not in results, "a row came out twice"
        results[result.key] = result
    return results


def tokens_of(results: dict[int, Result]) -> dict[int, list[int]]:
    """Token ids by key."""
    return {key: result.token_ids.tolist() for key, result in results.items()}


def decode_plain(pair: Pair, requests: list[Request], slots: int = 8) -> dict[int, Result]:
    """AR decoding in the same engine."""
    return decode(pair, tiny_config(policy={"kind": "plain"}, engine={"slots": slots}), requests)


def ragged_requests(count: int, seed: int, vocabulary: int = 64, max_new_tokens: int = MAX_NEW_TOKENS) -> list[Request]:
    """Sources of one token to the longest, limits from one token to the most."""
    generator = torch.Generator().manual_seed(seed)
    requests = []
    for key in range(count):
        length = int(torch.randint(1, MAX_SOURCE_TOKENS + 1, (), generator=generator))
        limit = int(torch.randint(1, max_new_tokens + 1, (), generator=generator))
        source = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        requests.append(Request(key, source, limit))
    return requests
