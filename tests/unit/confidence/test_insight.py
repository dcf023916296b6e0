"""Confidence from behind the logits: what its two kinds are worth in cases that can be worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmasd.confidence.insight import CANDIDATES, MASKS, Insight
from cmasd.config.speculation import INSIGHTS
from cmasd.drafters import ModelDrafter
from cmasd.engine import Engine
from cmasd.window import Window
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of

WIDTH, VOCABULARY = 12, 20
WEIGHT_Vd = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def insight(kind: str, weight_Vd: Tensor = WEIGHT_Vd, **more: Any) -> Insight:
    return Insight(kind, lambda columns: weight_Vd[columns], lambda states: states @ weight_Vd.T, **more)


def states(rows: int = 5) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_candidates_that_mean_the_same_take_nothing_away() -> None:
    logits_FV = states() @ WEIGHT_Vd.T
    top_Fn = logits_FV.softmax(-1).topk(CANDIDATES).values
    alike = insight("similarity", torch.ones(VOCABULARY, WIDTH))(logits_FV, states())
    assert torch.allclose(alike.double(), top_Fn.sum(-1), atol=1e-6)
    strangers = insight("similarity", torch.eye(VOCABULARY))(logits_FV, states())
    assert torch.allclose(strangers.double(), top_Fn[:, 0], atol=1e-6)
    between = insight("similarity")(logits_FV, states())
    assert bool(((strangers - 1e-6 <= between) & (between <= alike + 1e-6)).all())


def test_what_cannot_be_said_is_no_candidate() -> None:
    """It may not even have a row in the output layer."""
    logits_FV = torch.full((1, VOCABULARY + 5), -torch.inf)
    logits_FV[0, :2] = torch.tensor([1.0, 0.0])
    expected = 1 / (1 + math.exp(-1))
    assert insight("similarity", torch.eye(VOCABULARY))(logits_FV, states(1)).item() == pytest.approx(expected)
    weight_Vd = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    assert insight("dropout", weight_Vd)(logits_FV, states(1)).item() == pytest.approx(1.0)


def test_masks_that_leave_nothing_out_agree() -> None:
    logits_FV = states() @ WEIGHT_Vd.T
    assert torch.allclose(insight("dropout", rate=0.0)(logits_FV, states()).double(), torch.ones(5).double())


def test_masks_that_contradict_each_other_leave_no_confidence() -> None:
    """Each makes another token certain: the mean is uniform over them, and none of them doubts."""

    class Contrary(Insight):
        asked = -1

        def certain(self, hidden: Tensor) -> Tensor:
            self.asked += 1
            return torch.nn.functional.one_hot(torch.tensor([self.asked % MASKS]), VOCABULARY) * 1e4

    one = Contrary("dropout", lambda columns: columns, lambda hidden: one.certain(hidden))
    assert one(torch.zeros(1, VOCABULARY), states(1)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", INSIGHTS)
def test_a_row_has_its_confidence_whatever_is_beside_it(kind: str) -> None:
    logits_FV, every = states() @ WEIGHT_Vd.T, insight(kind)
    together = every(logits_FV, states())
    assert bool(((together >= 0) & (together <= 1)).all())
    alone = torch.cat([insight(kind)(logits_FV[[row]], states()[[row]]) for row in range(5)])
    assert torch.allclose(together, alone)
    assert len(set(together.tolist())) == 5


@pytest.mark.parametrize("nodes", [0, 5])
@pytest.mark.parametrize("family", ["marian", "llama", "t5"])
@pytest.mark.parametrize("kind", INSIGHTS)
def test_output_is_that_of_plain_decoding(kind: str, family: str, nodes: int) -> None:
    """With a policy that stops where confidence ends, and confidences that are not those of logits alone."""
    pair, requests = shared_pair(family), ragged_requests(7, seed=2)
    drafter = {"max_draft_tokens": 4, "tree_nodes": nodes}
    sections: dict[str, Any] = {"policy": {"kind": "survival", "threshold": 1e-4}, "drafter": drafter}
    found = {
        name: decode(pair, tiny_config(**sections, confidence={"kind": name}), requests) for name in (kind, "max_prob")
    }
    assert tokens_of(found[kind]) == tokens_of(found["max_prob"]) == tokens_of(decode_plain(pair, requests))
    told = [[result.mean_confidence for result in one.values()] for one in found.values()]
    assert told[0] != told[1]
    assert sum(result.num_accepted_tokens for result in found[kind].values()) > 0


@pytest.mark.parametrize("kind", INSIGHTS)
def test_a_drafter_asks_its_own_model(kind: str) -> None:
    """What it says of a token is what an insight into that model says, worked out from its states."""
    config = tiny_config(policy={"kind": "fixed"}, confidence={"kind": kind}, drafter={"max_draft_tokens": 1})
    drafter = Engine(shared_pair("llama"), config).drafter
    assert isinstance(drafter, ModelDrafter)
    model: Any = shared_pair("llama").drafter
    prompt = [5, 9, 20, 33]
    drafter.prefill([0], [prompt])
    output = model(torch.tensor([prompt]), output_hidden_states=True)
    weight_Vd = model.lm_head.weight
    expected = Insight(kind, lambda columns: weight_Vd[columns], lambda states: states @ weight_Vd.T)(
        output.logits[:, -1], output.hidden_states[-1][:, -1]
    )
    logits = drafter.behind(Window.singles(torch.tensor([33]), torch.tensor([0]), torch.tensor([3])))
    assert torch.allclose(drafter.score(logits)[0].double(), expected.double(), atol=1e-6)
