"""A row comes out the same to the last bit at any batch size, or the engine refuses."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.config import from_dict
from cmasd.config.rules import check
from cmasd.core import Result
from cmasd.engine import Engine
from cmasd.errors import ConfigError
from cmasd.kernels import kernels
from tests.unit.engine.pairs import ragged_requests, shared_pair, tiny_config

NEEDS_KERNELS = pytest.mark.skipif(kernels(torch.float32) is None, reason="there is no C compiler")


def decoded(family: str, slots: int, **sections: Any) -> list[Result]:
    pair = shared_pair(family)
    short = {name: copy.deepcopy(getattr(pair, name)).float() for name in ("verifier", "drafter")}
    config = tiny_config(engine={"slots": slots, "fixed_shapes": True}, telemetry={"level": "token"}, **sections)
    engine = Engine(replace(pair, **short), config)
    return sorted(engine.decode(ragged_requests(7, seed=3)), key=lambda result: result.key)


@NEEDS_KERNELS
@pytest.mark.parametrize("family", ["marian", "llama"])
def test_log_probabilities_are_the_same_to_the_last_bit(family: str) -> None:
    ways: list[tuple[int, dict[str, Any]]] = [
        (5, {"policy": {"kind": "plain"}}),
        (3, {"policy": {"kind": "fixed"}}),
        (4, {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 3, "tree_nodes": 6, "tree_branching": 2}}),
    ]
    alone = decoded(family, 1, policy={"kind": "plain"})
    for slots, sections in ways:
        for one, other in zip(alone, decoded(family, slots, **sections), strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            assert one.tokens is not None
            assert other.tokens is not None
            np.testing.assert_array_equal(one.tokens.verifier_logprob, other.tokens.verifier_logprob)


def test_a_verifier_of_stock_operations_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^engine.fixed_shapes: .* got T5\w* on cpu in float64"):
        Engine(shared_pair("t5"), tiny_config(engine={"slots": 2, "fixed_shapes": True}))


def test_so_is_what_accepts_otherwise_than_exactly() -> None:
    given = {"input": {"path": "-"}, "output": {"path": "-"}, "models": {"verifier": "v", "drafter": "d"}}
    for kind, is_fine in (("exact", True), ("relaxed", False), ("sampling", False)):
        config = from_dict({**given, "engine": {"fixed_shapes": True}, "verification": {"kind": kind}})
        if is_fine:
            check(config)
            continue
        with pytest.raises(ConfigError, match=f"^engine.fixed_shapes: .* got verification.kind {kind} "):
            check(config)
