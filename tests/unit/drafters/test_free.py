"""Which of a row's texts goes in, and what is thought of it."""

import numpy as np
import pytest
import torch

from cmasd.core import Draft, Request, Result
from cmasd.drafters import Context, FreeDrafter
from cmasd.drafters.proposals import FADE, Rates
from cmasd.drafters.proposals import PRIOR as PRIORS
from cmasd.kernels import Proposal
from cmasd.policies import Rule
from cmasd.signals import FROM_COPY, FROM_MEMORY, FROM_PREVIOUS

pytestmark = pytest.mark.usefixtures("looked_up")

PRIOR = PRIORS[0][0] / PRIORS[0][1]
START = 0
SOURCE = list(range(20, 30))


class Rows:
    """Rows as an engine has them, for a drafter."""

    def __init__(self, kinds: list[str], requests: list[Request], most: int = 4, vocabulary: int = 64) -> None:
        self.drafter = FreeDrafter(kinds, 3, 1000, vocabulary, is_encoder_decoder=True)
        self.drafter.enter(list(range(len(requests))), requests)
        self.rows = [[START] for _ in requests]
        self.most = most

    def context(self) -> Context:
        tokens_BL = torch.zeros(len(self.rows), 40, dtype=torch.int64)
        for row, tokens in enumerate(self.rows):
            tokens_BL[row, : len(tokens)] = torch.tensor(tokens)
        lengths_B = torch.tensor([len(tokens) for tokens in self.rows])
        ones_B = torch.ones_like(lengths_B)
        return Context(tokens_BL, lengths_B, ones_B, ones_B * 99, torch.full((len(self.rows), 0), -1))

    def draft(self) -> Draft:
        room_B = torch.full((len(self.rows),), self.most)
        return self.drafter.draft(self.context(), room_B, Rule.always(self.most))

    def say(self, *tokens: list[int], accepted: list[int] | None = None) -> None:
        if accepted is not None:
            self.drafter.commit(self.context(), torch.tensor(accepted))
        for row, new in zip(self.rows, tokens, strict=True):
            row += new


def result_of(key: int, tokens: list[int]) -> Result:
    return Result(key, np.array(tokens, dtype=np.int32), "stop", 1, 1, 0, 0, float("nan"), 0.0, None, None)


def told(draft: Draft) -> list[tuple[int, list[int]]]:
    assert draft.source_B is not None
    rows = zip(draft.source_B.tolist(), draft.tokens_BK.tolist(), draft.lengths_B.tolist(), strict=True)
    return [(source, tokens[:length]) for source, tokens, length in rows]


def test_the_draft_with_the_most_expected_tokens_goes_in() -> None:
    """An old output that ends soon against a copy that goes on."""
    rows = Rows(
        ["previous", "copy"], [Request(0, SOURCE, 9, previous=[21, 22]), Request(1, SOURCE, 9, previous=SOURCE)]
    )
    rows.say([21], [21])
    assert told(rows.draft()) == [(FROM_COPY, [22, 23, 24, 25]), (FROM_PREVIOUS, [22, 23, 24, 25])]


def test_what_was_often_wrong_gives_way() -> None:
    wrong = [9, 8, 7, 6, 5]
    rows = Rows(["previous", "copy"], [Request(0, SOURCE, 9, previous=[*SOURCE[:3], *wrong])])
    rows.say(SOURCE[:3])
    for _ in range(20):
        source, tokens = told(rows.draft())[0]
        rows.say([], accepted=[4 if source == FROM_COPY else 0])
    assert (source, tokens) == (FROM_COPY, SOURCE[3:7])


def test_only_what_was_asked_for_drafts() -> None:
    rows = Rows(["memory"], [Request(0, SOURCE, 9, previous=SOURCE)])
    rows.say(SOURCE[:3])
    draft = rows.draft()
    assert told(draft) == [(FROM_COPY, [])]
    assert draft.tokens_BK.shape == (1, 0)


def test_rows_take_their_texts_along_and_leave_them_in_the_memory() -> None:
    rows = Rows(["previous", "memory"], [Request(key, SOURCE[key:], 9, previous=[30 + key, 40]) for key in range(3)])
    rows.drafter.leave([0], [result_of(0, [50, 51, 52, 53])])
    rows.drafter.move(2, 0)
    rows.rows = rows.rows[:2]
    assert told(rows.draft()) == [(FROM_PREVIOUS, [32, 40]), (FROM_PREVIOUS, [31, 40])]
    rows.say([50, 51], [30])
    assert told(rows.draft())[0] == (FROM_MEMORY, [52, 53]), "an old output that was wrong at once gives way"


def test_the_likest_earlier_row_drafts_for_rows_without_an_output() -> None:
    rows = Rows(["previous", "memory"], [Request(0, SOURCE, 9)])
    rows.drafter.leave([0], [result_of(0, [50, 51, 52])])
    rows.drafter.enter([0], [Request(1, [*SOURCE[:-1], 63], 9)])
    assert told(rows.draft()) == [(FROM_MEMORY, [50, 51, 52])]


@pytest.mark.parametrize("previous", [[21, 64, 22], [21, -1, 22]])
def test_ids_that_the_verifier_does_not_have_end_a_text(previous: list[int]) -> None:
    rows = Rows(["previous"], [Request(0, SOURCE, 9, previous=previous)])
    assert told(rows.draft()) == [(FROM_PREVIOUS, [21])]


def test_a_copy_ends_where_the_verifier_has_no_such_id() -> None:
    rows = Rows(["copy"], [Request(0, [21, 22, 99, 23], 9)])
    rows.say([21])
    assert told(rows.draft()) == [(FROM_COPY, [22])]


def test_rates_are_by_source_and_kind_and_fade() -> None:
    rates = Rates()
    assert rates(FROM_MEMORY, 3, 3) == pytest.approx([PRIOR] * 3)
    rates.count(Proposal([1] * 5, [1.0] * 5, FROM_MEMORY, 3), sent=5, accepted=2)
    assert rates(FROM_MEMORY, 3, 2) == pytest.approx([5 / 6, 5 / 7])
    assert rates(FROM_MEMORY, 4, 1) == rates(FROM_COPY, 3, 1) == pytest.approx([PRIOR])
    assert rates(FROM_PREVIOUS, 3, 1) == pytest.approx([0.95])
    for _ in range(2000):
        rates.fade()
    assert rates(FROM_MEMORY, 3, 2) == pytest.approx([PRIOR] * 2)


def test_rates_are_discounted_counts_however_long_a_run_is() -> None:
    """Beyond where new evidence would weigh too much for a number."""
    rng, rates = np.random.default_rng(0), Rates()
    accepted_G2, judged_G2 = np.zeros((3, 2)), np.zeros((3, 2))
    for iteration in range(3000):
        rates.fade()
        accepted_G2, judged_G2 = FADE * accepted_G2, FADE * judged_G2
        kind, sent = int(rng.integers(3)), int(rng.integers(1, 6))
        accepted = int(rng.integers(sent + 1))
        rates.count(Proposal([1] * sent, [0.5] * sent, FROM_COPY, kind), sent, accepted)
        judged = min(accepted + 1, sent)
        accepted_G2[kind] += min(accepted, 1), max(accepted - 1, 0)
        judged_G2[kind] += 1, judged - 1
        if iteration % 100 == 99:
            share_G2 = (accepted_G2 + np.array(PRIORS)[:, 0]) / (judged_G2 + np.array(PRIORS)[:, 1])
            for known in range(3):
                assert rates(FROM_COPY, known, 3) == pytest.approx([share_G2[known, 0], *[share_G2[known, 1]] * 2])
