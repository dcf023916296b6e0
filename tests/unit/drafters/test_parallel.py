"""The parallel drafter: fewer queries give the same first tokens, and policies cut without looking ahead."""

from typing import cast

import pytest
import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.config.tree import ConfidenceConfig
from cmasd.drafters import Context, ParallelDrafter
from cmasd.drafters.choice import Choice
from cmasd.engine import Engine
from cmasd.policies import Policy
from cmasd.policies.fixed import FixedPolicy
from cmasd.runner import load_runner
from cmasd.runner.parallel import ParallelModel
from tests.unit.engine.pairs import QUERIES, shared_model, shared_pair, shared_parallel, tiny_config

LENGTH, ROWS = 24, 3


class Cut(Policy):
    """Stops behind the first confidence below a half; remembers what it was shown."""

    max_draft_tokens = QUERIES

    def __init__(self) -> None:
        self.shown: list[int] = []

    def go_on(self, confidence_BJ: Tensor) -> Tensor:
        self.shown.append(confidence_BJ.shape[1])
        return confidence_BJ[:, -1] >= 0.5


def drafter_of(
    family: str, policy: Policy, eos: tuple[int, ...] = (), temperature: float | None = None
) -> ParallelDrafter:
    """Three rows prefilled and fed a few tokens."""
    verifier = load_runner(shared_model(family), slots=4, max_length=LENGTH, max_source_length=8)
    choose = Choice(temperature, 0, None, verifier.vocabulary_size, verifier.device)
    model = ParallelModel(shared_parallel(family), shared_model(family))
    eos_ids = torch.tensor(eos, dtype=torch.int64)
    drafter = ParallelDrafter(model, verifier, policy, build_confidence(ConfidenceConfig(), "head"), choose, eos_ids)
    slots = list(range(ROWS))
    verifier.prefill(slots, [[5, 6, 7], [9, 10], [11, 3, 4, 8]])
    drafter.prefill(slots, [])
    return drafter


def context(lengths: list[int]) -> Context:
    tokens_BL = (torch.arange(LENGTH) * 7 % 61)[None].repeat(len(lengths), 1)
    lengths_B = torch.tensor(lengths)
    ones_B = torch.ones_like(lengths_B)
    return Context(tokens_BL, lengths_B, ones_B, ones_B * 20, torch.empty(len(lengths), 0, dtype=torch.int64))


def verified(drafter: ParallelDrafter, lengths: list[int], accepted: list[int]) -> None:
    """The verifier sees each row's tokens; of a draft, so many are accepted."""
    starts_B = torch.zeros(len(lengths), dtype=torch.int64)
    drafter.verifier.forward(context(lengths).tokens_BL[:, : max(lengths)], starts_B)
    drafter.commit(torch.tensor(accepted))


@pytest.mark.parametrize("family", ["marian", "t5", "llama"])
@torch.no_grad()
def test_fewer_queries_give_the_same_first_tokens(family: str) -> None:
    drafter = drafter_of(family, FixedPolicy(QUERIES))
    verified(drafter, [4, 5, 6], [2, 3, 4])
    rows = context([4, 5, 6])
    whole = drafter.draft(rows, torch.full((ROWS,), QUERIES))
    for most in range(1, QUERIES):
        part = drafter.draft(rows, torch.full((ROWS,), most))
        assert torch.equal(part.tokens_BK, whole.tokens_BK[:, :most])
        torch.testing.assert_close(part.confidence_BK, whole.confidence_BK[:, :most])
        assert part.lengths_B.tolist() == [most] * ROWS


@torch.no_grad()
def test_a_row_drafts_alone_what_it_drafts_among_others() -> None:
    """And stale keys of a slot's former row do not matter, least of all to a row of which nothing is cached."""
    drafter = drafter_of("marian", FixedPolicy(QUERIES))
    verified(drafter, [4, 5, 6], [2, 3, 4])
    room_B = torch.full((ROWS,), QUERIES)
    among = drafter.draft(context([1, 5, 1]), room_B).tokens_BK
    fresh = drafter_of("marian", FixedPolicy(QUERIES))
    assert torch.equal(fresh.draft(context([1, 1, 1]), room_B).tokens_BK[[0, 2]], among[[0, 2]])


@torch.no_grad()
def test_it_follows_the_last_accepted_token() -> None:
    """The vector that is remembered is the hidden state at that place of the window, of each row its own."""
    drafter = drafter_of("llama", FixedPolicy(QUERIES))
    verified(drafter, [6, 6, 6], [0, 2, 5])
    assert drafter.verifier.hidden_BTd is not None
    expected = drafter.verifier.hidden_BTd[torch.arange(ROWS), [0, 2, 5]]
    assert torch.equal(drafter._seen_Sd[:ROWS], expected)
    drafter.move(2, 0)
    assert torch.equal(drafter._seen_Sd[0], expected[2])


@torch.no_grad()
def test_the_policy_cuts_a_draft_where_it_would_have_stopped_drafting() -> None:
    policy = Cut()
    confidence_BK = torch.tensor([[0.9, 0.4, 0.9, 0.9], [0.4, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.1]])
    cut_B = policy.cut(confidence_BK, torch.tensor([4, 4, 4]))
    assert cut_B.tolist() == [2, 1, 4]
    assert policy.shown == [1, 2, 3]
    assert policy.cut(confidence_BK, torch.tensor([1, 0, 3])).tolist() == [1, 0, 3]


@torch.no_grad()
def test_nothing_is_drafted_behind_an_end_or_beyond_the_room() -> None:
    free = drafter_of("marian", FixedPolicy(QUERIES))
    verified(free, [4, 5, 6], [2, 3, 4])
    rows, room_B = context([4, 5, 6]), torch.tensor([QUERIES, 2, QUERIES])
    tokens_BK = free.draft(rows, room_B).tokens_BK
    eos = int(tokens_BK[0, 1])
    drafter = drafter_of("marian", FixedPolicy(QUERIES), eos=(eos,))
    verified(drafter, [4, 5, 6], [2, 3, 4])
    lengths = drafter.draft(rows, room_B).lengths_B.tolist()
    first = tokens_BK[0].tolist().index(eos)
    assert lengths[0] == first + 1
    assert lengths[1] <= 2


@torch.no_grad()
def test_sampled_drafts_carry_their_distribution() -> None:
    drafter = drafter_of("marian", FixedPolicy(QUERIES), temperature=1.0)
    verified(drafter, [4, 5, 6], [2, 3, 4])
    draft = drafter.draft(context([4, 5, 6]), torch.full((ROWS,), QUERIES))
    assert draft.probs_BKV is not None
    assert draft.probs_BKV.shape == (ROWS, QUERIES, drafter.verifier.vocabulary_size)
    torch.testing.assert_close(draft.probs_BKV.sum(-1), torch.ones(ROWS, QUERIES, dtype=torch.float32))


def test_confidence_is_the_heads_unless_told_otherwise() -> None:
    def first_confidence(kind: str) -> Tensor:
        config = tiny_config(
            policy={"kind": "fixed"}, drafter={"kind": "parallel", "max_draft_tokens": 2}, confidence={"kind": kind}
        )
        engine = Engine(shared_pair("marian"), config)
        drafter = cast(ParallelDrafter, engine.drafter)
        drafter.verifier.prefill([0], [[5, 6]])
        with torch.no_grad():
            return drafter.draft(context([1]), torch.tensor([2])).confidence_BK

    assert torch.equal(first_confidence("auto"), first_confidence("head"))
    assert not torch.equal(first_confidence("auto"), first_confidence("max_prob"))
