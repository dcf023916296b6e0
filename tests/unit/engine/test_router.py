"""Two models and a router: what it decides holds for each row alone, and without one nothing has changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.checkpoints.router_folder import load_router, save_router
from cmasd.config import from_dict
from cmasd.config.rules import check
from cmasd.core import Request
from cmasd.engine import Engine, Pair
from cmasd.errors import ConfigError, ModelError
from cmasd.models.router_network import RouterNetwork, RouterShape
from cmasd.policies.router import FEATURES, DecisionLog, Router
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of
from tests.unit.engine.test_stitch import MOST, a_tau, config_of


def network_of(tau: float = 0.0, seed: int = 0, **weights: float) -> RouterNetwork:
    """Random; or one hidden unit that adds up weights of features, with `bias` beside it."""
    network = RouterNetwork(RouterShape(FEATURES, 1 if weights else 8, tau), seed)
    if weights:
        with torch.no_grad():
            network.weight_HF.zero_()
            for name, weight in weights.items():
                if name != "bias":
                    network.weight_HF[0, FEATURES.index(name)] = weight
            network.bias_H.fill_(weights.get("bias", 0.0))
            network.out_H.fill_(1.0)
    return network


def routed(folder: Path, network: RouterNetwork, slots: int = 3, **stitch: Any) -> Any:
    save_router(network, folder)
    return config_of(0.5, slots, router=str(folder), **stitch)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "marian"])
def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path, family: str, speculate: bool) -> None:
    """Nor on the number of slots, nor on how long rows wait, and both models have their say."""
    pair, requests = shared_pair(family), ragged_requests(9, seed=4)
    network = network_of(seed=3)
    network.standardise(seen(pair, requests))

    def told(rows: list[Request], slots: int, max_wait: int) -> dict[int, Any]:
        return decode(pair, routed(tmp_path, network, slots, speculate=speculate, max_wait=max_wait), rows)

    alone = {key: one for request in requests for key, one in told([request], 1, 0).items()}
    said = sum(one.num_output_tokens for one in alone.values())
    assert 0 < sum(one.num_small_tokens for one in alone.values()) < said
    for slots, max_wait in ((1, 8), (2, 0), (9, 100)):
        assert tokens_of(told(requests, slots, max_wait)) == tokens_of(alone)
        assert tokens_of(told(requests[::2], slots, max_wait)) == {
            key: tokens for key, tokens in tokens_of(alone).items() if key % 2 == 0
        }


def seen(pair: Pair, requests: list[Request]) -> torch.Tensor:
    """Features of decisions that were left to chance."""
    engine = Engine(pair, config_of(0.5, random=[0.5, 0.5]))
    policy: Any = engine.policy
    policy.log = DecisionLog()
    list(engine.decode(requests))
    return torch.from_numpy(policy.log.take().features_NF)


@pytest.mark.parametrize("family", ["qwen2", "marian"])
def test_a_router_that_goes_by_entropy_is_plain_stitching(tmp_path: Path, family: str) -> None:
    """Asked everywhere, its log-odds cross zero at ln tau; or they never do, but it is asked above tau alone."""
    pair, requests = shared_pair(family), ragged_requests(7, seed=2)
    tau = a_tau(pair, requests)
    plain = tokens_of(decode(pair, config_of(tau), requests))
    by_entropy = network_of(log_entropy=1.0, bias=-float(np.log(tau)))
    assert tokens_of(decode(pair, routed(tmp_path / "a", by_entropy), requests)) == plain
    always = network_of(tau=tau, bias=1.0)
    assert tokens_of(decode(pair, routed(tmp_path / "b", always), requests)) == plain


def test_a_router_that_knows_one_answer_is_one_model(tmp_path: Path) -> None:
    pair, requests = shared_pair("qwen2"), ragged_requests(6, seed=3)
    assert pair.drafter is not None
    small = Pair(pair.drafter, pair.drafter, pair.codec, pair.constraints, pair.max_new_tokens, pair.max_source_tokens)
    large_alone, small_alone = (tokens_of(decode_plain(one, requests)) for one in (pair, small))
    assert tokens_of(decode(pair, routed(tmp_path / "a", network_of(bias=1.0)), requests)) == large_alone
    assert tokens_of(decode(pair, routed(tmp_path / "b", network_of(bias=-1.0)), requests)) == small_alone


def test_every_decision_is_written_down(tmp_path: Path) -> None:
    """In the order of tokens, with what was read; drawn decisions are a row's own, and as likely as the router says."""
    pair, requests = shared_pair("qwen2"), [Request(key, [5 + key % 40, 9, 3], 24) for key in range(40)]

    def told(slots: int) -> tuple[Any, dict[int, list[int]]]:
        engine = Engine(pair, config_of(0.5, slots))
        policy: Any = engine.policy
        policy.router, policy.log = Router(network_of(bias=0.5), draws=7), DecisionLog()
        said = {one.key: one.token_ids.tolist() for one in engine.decode(requests)}
        return policy.log.take(), said

    log, said = told(8)
    other, same = told(1)
    assert same == said
    for one, twin in zip(log.by_row(40), other.by_row(40), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(twin).values(), strict=True))
        kept = one.is_large_N | ~one.wants_large_N
        assert one.tokens_N[kept].tolist() == said[int(one.keys_N[0])]
        assert one.places_N[kept].tolist() == list(range(3, 27))
        assert (one.read_N >= 1).all()
        assert (one.read_N[~one.is_large_N] == 1).all()
        assert one.read_N[one.is_large_N].sum() <= 25
    share = log.wants_large_N[log.asked_N].mean()
    assert share == pytest.approx(1 / (1 + np.exp(-np.tanh(0.5))), abs=0.05)


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = network_of(tau=0.03, seed=5)
    network.standardise(torch.randn(50, len(FEATURES), dtype=torch.float64))
    save_router(network, tmp_path / "router")
    read = load_router(str(tmp_path / "router"), FEATURES)
    assert read.shape == network.shape
    assert all(
        torch.equal(a, b) for a, b in zip(read.state_dict().values(), network.state_dict().values(), strict=True)
    )
    with pytest.raises(ModelError, match="looks at"):
        load_router(str(tmp_path / "router"), FEATURES[:-1])
    (tmp_path / "router" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"stitch\.router: .*damaged"):
        load_router(str(tmp_path / "router"), FEATURES)
    with pytest.raises(ModelError, match=r"stitch\.router: no router, got nowhere; expected a folder"):
        load_router("nowhere", FEATURES)


def test_a_logit_is_the_same_in_every_batch() -> None:
    network = network_of(seed=2)
    features_RF = torch.randn(33, len(FEATURES), dtype=torch.float64)
    whole_R = network(features_RF)
    for first in range(33):
        for end in (first + 1, min(33, first + 5)):
            assert torch.equal(network(features_RF[first:end]), whole_R[first:end])


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"stitch": {"router": "r", "random": [0.5, 0.5]}}, "stitch.router: decides alone"),
        ({"stitch": {"router": "r"}, "confidence": {"margin_form": "printed"}}, "confidence.margin_form: must be full"),
    ],
)
def test_what_a_router_cannot_go_with_is_refused(sections: dict[str, Any], told: str) -> None:
    config = from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "policy": {"kind": "stitch"}, **sections})
    with pytest.raises(ConfigError, match=told):
        check(config)


def test_it_is_called_lossy_and_by_its_name(tmp_path: Path) -> None:
    config = tiny_config(
        policy={"kind": "stitch"}, stitch={"tau": 0.0, "router": "r"}, drafter={"max_draft_tokens": MOST}
    )
    assert config.lossless == "lossy"
    assert config.stitched_by == "stitch.router=r"
