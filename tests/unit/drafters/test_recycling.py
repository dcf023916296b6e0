"""What a model's draft said behind a rejected token comes again, and gives way where more is expected of the model."""

import pytest
import torch

from cmasd.core import Draft, Request
from cmasd.drafters import MixedDrafter
from cmasd.drafters.by_row import TextsByRow
from cmasd.drafters.mixed import expected
from cmasd.engine import Engine
from cmasd.kernels import Lookups
from cmasd.signals import FROM_DRAFT
from tests.unit.drafters.test_free import Rows, told
from tests.unit.engine.pairs import decode_plain, shared_pair, tiny_config, tokens_of

pytestmark = pytest.mark.usefixtures("looked_up")

DRAFT = [21, 22, 23, 24, 25]


def draft_of(*rows: list[int]) -> Draft:
    tokens_BK = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    real_BK = torch.full(tokens_BK.shape, 0.5)
    return Draft(tokens_BK, lengths_B, real_BK, real_BK[..., None].expand(-1, -1, 3))


def recycled(accepted: int, verifiers: int, drafted: list[int] = DRAFT) -> list[int]:
    """What is offered where so many tokens were accepted, and the verifier then said something else."""
    rows = Rows(["recycle"], [Request(0, [1], 9)])
    assert told(rows.draft())[0][1] == []
    rows.drafter.recycle(draft_of(drafted), torch.tensor([True]), torch.tensor([accepted]))
    rows.say([*drafted[:accepted], verifiers])
    [(source, tokens)] = told(rows.draft())
    assert source == FROM_DRAFT or not tokens
    return tokens


def test_the_rest_joins_again_behind_a_word_in_another_s_place() -> None:
    assert recycled(accepted=1, verifiers=40) == [23, 24, 25]


def test_the_rest_joins_again_where_words_were_left_out() -> None:
    assert recycled(accepted=1, verifiers=23) == [24, 25]


def test_nothing_is_left_of_a_draft_that_was_accepted_or_rejected_at_its_end() -> None:
    assert recycled(accepted=5, verifiers=40) == []
    assert recycled(accepted=4, verifiers=40) == []


def test_a_row_that_the_model_did_not_draft_for_has_nothing() -> None:
    rows = Rows(["recycle"], [Request(0, [1], 9), Request(1, [1], 9)])
    rows.draft()
    rows.drafter.recycle(draft_of(DRAFT, DRAFT), torch.tensor([False, True]), torch.tensor([0, 0]))
    rows.say([40], [40])
    assert [tokens for _, tokens in told(rows.draft())] == [[], DRAFT[1:]]


def test_a_draft_that_gives_way_is_not_judged() -> None:
    rows = Rows(["recycle"], [Request(0, [1], 9)])
    rows.draft()
    rows.drafter.recycle(draft_of(DRAFT), torch.tensor([True]), torch.tensor([0]))
    rows.say([40])
    first = rows.draft()
    rows.drafter.give_way(torch.tensor([False]))
    rows.drafter.commit(rows.context(), torch.tensor([0]))
    assert torch.equal(rows.draft().confidence_BK, first.confidence_BK)


def test_what_is_expected_of_a_draft_is_what_survives_of_what_is_sent() -> None:
    draft = draft_of([1, 2, 3], [], [1])
    assert expected(draft).tolist() == [0.875, 0.0, 0.5]


def test_recycled_drafts_are_sent_and_change_no_output() -> None:
    pair = shared_pair("marian", "noisy", max_new_tokens=24)
    requests = [Request(key, list(range(5 + 3 * key, 13 + 3 * key)), 24) for key in range(8)]
    plain = tokens_of(decode_plain(pair, requests))
    for kinds in (["recycle", "model"], ["recycle", "parallel"]):
        drafter = {"kind": kinds, "max_draft_tokens": 6}
        engine = Engine(pair, tiny_config(policy={"kind": "fixed"}, drafter=drafter))
        assert {result.key: result.token_ids.tolist() for result in engine.decode(requests)} == plain
        assert isinstance(engine.drafter, MixedDrafter)
        texts = engine.drafter.free.texts
        assert not isinstance(texts, Lookups) or texts.learned()[0][FROM_DRAFT].any(), "some were judged"
        assert not isinstance(texts, TextsByRow) or FROM_DRAFT in {source for source, _ in texts.rates.learned}
