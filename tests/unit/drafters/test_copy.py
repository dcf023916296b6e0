"""Copies of a row's own texts against a search in plain Python, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.core import Draft, Request
from cmasd.drafters import Context, FreeDrafter
from cmasd.drafters.proposals import FADE, PRIOR
from cmasd.policies import FixedPolicy, Policy, Rule, SurvivalPolicy

pytestmark = pytest.mark.usefixtures("looked_up")

LONGEST, MOST_TOKENS, MOST_SOURCE = 4, 12, 8
TOKEN = st.integers(0, 3)
ROW = st.tuples(
    st.lists(TOKEN, max_size=MOST_SOURCE),
    st.lists(TOKEN, min_size=1, max_size=MOST_TOKENS),
    st.integers(0, LONGEST),
)
"""Encoder source, decoder tokens, room."""


def context(
    rows: list[tuple[list[int], list[int], int]], width: int = MOST_SOURCE, prompt: int = 1
) -> tuple[Context, torch.Tensor]:
    """The rows as the engine hands them over, with noise past their lengths."""
    tokens_BL = torch.randint(0, 4, (len(rows), MOST_TOKENS + LONGEST), generator=torch.Generator().manual_seed(0))
    source_BS = torch.full((len(rows), width), -1)
    for row, (source, tokens, _) in enumerate(rows):
        tokens_BL[row, : len(tokens)] = torch.tensor(tokens)
        source_BS[row, : len(source)] = torch.tensor(source, dtype=torch.int64)
    lengths_B = torch.tensor([len(tokens) for _, tokens, _ in rows])
    prompts_B = torch.tensor([min(prompt, len(tokens)) for _, tokens, _ in rows])
    return Context(tokens_BL, lengths_B, prompts_B, lengths_B * 0 + 99, source_BS), torch.tensor(
        [room for _, _, room in rows]
    )


def drafter_of(rows: list[tuple[list[int], list[int], int]], max_ngram: int) -> FreeDrafter:
    """It has been told of the rows."""
    drafter = FreeDrafter(["copy"], max_ngram, 100, vocabulary_size=64, is_encoder_decoder=True)
    drafter.enter(list(range(len(rows))), [Request(key, source, 9) for key, (source, _, _) in enumerate(rows)])
    return drafter


def rule_of(policy: Policy) -> Rule:
    rule = policy.plan(rows=1)
    assert rule is not None
    return rule


def search(source: list[int], tokens: list[int], prompt: int, room: int, max_ngram: int) -> list[int]:
    """What follows the longest suffix that occurs before: lately in the output, else first in source or prompt."""
    for size in range(min(max_ngram, len(tokens)), 0, -1):
        suffix = tokens[-size:]
        found = [
            (text, start + size)
            for text in (source, tokens)
            for start in range(len(text) - size)
            if text[start : start + size] == suffix
        ]
        late = [after for text, after in found if text is tokens and after >= prompt]
        if found:
            text, after = (tokens, late[-1]) if late else found[0]
            return text[after:][:room]
    return []


def proposals(draft: Draft) -> list[list[int]]:
    return [row[:length] for row, length in zip(draft.tokens_BK.tolist(), draft.lengths_B.tolist(), strict=True)]


@settings(max_examples=60)
@given(
    st.lists(ROW, min_size=1, max_size=6).filter(lambda rows: any(room for _, _, room in rows)),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_drafts_equal_a_plain_search(rows: list[tuple[list[int], list[int], int]], max_ngram: int, prompt: int) -> None:
    drafter = drafter_of(rows, max_ngram)
    rule = rule_of(FixedPolicy(LONGEST))
    draft = drafter.draft(*context(rows, prompt=prompt), rule)
    expected = [search(source, tokens, min(prompt, len(tokens)), room, max_ngram) for source, tokens, room in rows]
    assert proposals(draft) == expected
    assert (draft.tokens_BK >= 0).all()
    assert draft.confidence_BK.shape == draft.tokens_BK.shape
    assert draft.components_BK3.isnan().all()
    assert draft.probs_BKV is None


def test_a_decoder_only_row_looks_in_its_prompt() -> None:
    rows: list[tuple[list[int], list[int], int]] = [([], [1, 2, 3, 0, 1, 2], 3)]
    rule = rule_of(FixedPolicy(3))
    draft = drafter_of(rows, 2).draft(*context(rows, width=0), rule)
    assert proposals(draft) == [[3, 0, 1]]


def test_of_equal_matches_the_latest_of_the_output_wins_else_the_first_of_the_source() -> None:
    source = [1, 0, 3, 1, 2, 3]
    rows = [(source, [2, 1], 2), (source, [2, 1, 3, 3, 1, 2, 1], 2)]
    rule = rule_of(FixedPolicy(2))
    draft = drafter_of(rows, 1).draft(*context(rows), rule)
    assert proposals(draft) == [[0, 3], [2, 1]]


def test_a_match_does_not_cross_from_source_to_output() -> None:
    rows = [([3, 1], [2, 0, 1], 3)]
    rule = rule_of(FixedPolicy(3))
    draft = drafter_of(rows, 3).draft(*context(rows), rule)
    assert proposals(draft) == [[]], "1 ends the source; what follows it there is not text"


ROWS: list[tuple[list[int], list[int], int]] = [([], [1, 2, 3, 0, 1, 2], 3), ([], [3, 0, 1, 3, 2, 0], 3)]
"""Match suffixes of 2 and of 1 token."""


def test_confidence_is_the_acceptance_rate_of_the_suffix_length() -> None:
    """Each draft counts its accepted tokens and the first rejected one; those after it were not judged. The first token
    of a draft is told apart.
    """
    drafter = drafter_of(ROWS, 2)
    rule = rule_of(FixedPolicy(3))
    first = drafter.draft(*context(ROWS, width=0), rule)
    assert proposals(first) == [[3, 0, 1], [1, 3, 2]]
    assert first.confidence_BK[:, 0].tolist() == pytest.approx([PRIOR[0][0] / PRIOR[0][1]] * 2)
    drafter.commit(context(ROWS, width=0)[0], torch.tensor([3, 1]))
    second = drafter.draft(*context(ROWS, width=0), rule)

    def rate(accepted: int, judged: int) -> float:
        return (PRIOR[0][0] + FADE * accepted) / (PRIOR[0][1] + FADE * judged)

    assert second.confidence_BK[0].tolist() == pytest.approx([rate(1, 1), rate(2, 2), rate(2, 2)])
    assert second.confidence_BK[1].tolist() == pytest.approx([rate(1, 1), rate(0, 1), rate(0, 1)])


def test_a_length_that_failed_is_tried_again() -> None:
    """Under a survival policy rejections end the drafting, but not for ever."""
    drafter = drafter_of(ROWS, 2)
    rule = rule_of(SurvivalPolicy(0.4, 3))
    sent = []
    for _ in range(60):
        draft = drafter.draft(*context(ROWS[:1], width=0), rule)
        sent.append(int(draft.lengths_B[0]) > 0)
        if sent[-1]:
            drafter.commit(context(ROWS[:1], width=0)[0], torch.tensor([0]))
    assert all(sent[:5]), "one bad draft says little"
    assert sent.count(False) > 30
    assert any(sent[sent.index(False) :])


def test_the_policy_cuts_the_draft() -> None:
    """At the rate assumed beforehand, 0.8, two tokens survive with probability 0.64 and three with 0.512."""
    rows: list[tuple[list[int], list[int], int]] = [([1, 2, 3, 0, 1], [1, 2], 4), ([], [1], 4)]
    rule = rule_of(SurvivalPolicy(0.6, 4))
    draft = drafter_of(rows, 2).draft(*context(rows), rule)
    assert proposals(draft) == [[3, 0], []], "the second row has nothing to copy"
