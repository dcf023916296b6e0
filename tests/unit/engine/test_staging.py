"""A device without room for a whole batch of new rows: the engine goes on with halves, and nothing else changes."""

import pytest
import torch
from torch import Tensor

from cmasd.core import Request
from cmasd.engine import Engine
from cmasd.models.bart import BartEncoder
from cmasd.policies import Rule
from tests.unit.engine.pairs import decode, ragged_requests, shared_pair, tiny_config, tokens_of


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_a_batch_too_large_for_memory_is_split(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, config = shared_pair(family), tiny_config(policy={"kind": "fixed"}, engine={"slots": 5})
    requests = ragged_requests(17, seed=3)
    expected = tokens_of(decode(pair, config, requests))
    engine = Engine(pair, config)
    assert engine.drafter is not None
    real, sizes = engine.drafter.enter, []

    def once(slots: list[int], rows: list[Request], later: bool) -> None:
        sizes.append(len(slots))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        real(slots, rows, later)

    monkeypatch.setattr(engine.drafter, "enter", once)
    found = {result.key: result.token_ids.tolist() for result in engine.decode(requests)}
    assert found == expected
    assert sizes[1] + sizes[2] == sizes[0] > 1


@pytest.mark.parametrize(("shared", "rounds"), [(True, 1), (False, 2)])
@pytest.mark.parametrize("every", [1, 3])
def test_a_drafter_with_the_verifiers_encoder_encodes_nothing(
    every: int, shared: bool, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are encoded once for both models; with another encoder, once for each. So are those that enter while nothing
    is drafted, in two of three iterations.
    """
    pair = shared_pair("marian", "copy" if shared else "unrelated")
    assert pair.drafter is not None
    encoded = 0
    real = BartEncoder._encode

    def counted(self: BartEncoder, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        nonlocal encoded
        encoded += len(ids_BS)
        return real(self, ids_BS, lengths_B)

    monkeypatch.setattr(BartEncoder, "_encode", counted)
    requests = ragged_requests(11, seed=5)
    engine = Engine(pair, tiny_config(policy={"kind": "fixed"}, engine={"slots": 3}))
    monkeypatch.setattr(engine.policy, "plan", lambda rows: None if engine.stats.iterations % every else Rule.always(2))
    drafted = list(engine.decode(requests))
    assert encoded == rounds * len(requests) if every == 1 else encoded <= rounds * len(requests)
    assert encoded >= len(requests)
    assert sum(result.num_drafted_tokens for result in drafted) > 0
