"""Texts looked up in C against the same row by row in Python: the same drafts, and the same that is learned."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmasd.drafters import Context
from cmasd.drafters.at_once import TextsAtOnce
from cmasd.drafters.by_row import TextsByRow
from cmasd.drafters.free import Texts
from cmasd.drafters.texts import MOST_PLACES, LookedUp
from cmasd.kernels import lookups_library
from cmasd.kernels.lookups import COUNTS
from cmasd.policies import Rule

VOCABULARY, PLACES = 12, 64
pytestmark = pytest.mark.skipif(lookups_library() is None, reason="there is no compiler")


def both(kinds: list[str], memory_tokens: int, copies_source: bool) -> tuple[TextsByRow, TextsAtOnce]:
    copies, memory_tokens = "copy" in kinds, memory_tokens if "memory" in kinds else 0
    about = LookedUp(copies, copies and copies_source, 3, memory_tokens, VOCABULARY, {3, 4, 9})
    library = lookups_library()
    assert library is not None
    return TextsByRow(about), TextsAtOnce(library, about)


def rule_of(rng: random.Random, most: int) -> Rule:
    """Of all forms that policies give."""
    go_on, keep = (np.array([rng.random() for _ in range(most)]) ** 2 for _ in range(2))
    kind = rng.randrange(4)
    if kind == 0:
        return Rule.always(most)
    if kind == 1:
        return Rule(go_on, keep, statistic="mean")
    offsets = np.array([rng.gauss(0, 1) for _ in range(most)])
    return Rule(go_on, keep, slope=rng.random() * 2, offsets_K=offsets) if kind == 2 else Rule(go_on, keep)


class Run:
    """Rows that come, say something and leave, of which both are told."""

    def __init__(self, seed: int, kinds: list[str], memory_tokens: int, copies_source: bool) -> None:
        self.rng = random.Random(seed)
        self.by_row, self.at_once = both(kinds, memory_tokens, copies_source)
        self.said: list[list[int]] = []
        self.prompts: list[int] = []
        self.old: list[list[int]] = []

    @property
    def texts(self) -> Iterator[Texts]:
        yield from (self.by_row, self.at_once)

    def words(self, most: int, least: int = 0) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(self.rng.randint(least, most))]

    def edited(self, tokens: list[int]) -> list[int]:
        out: list[int] = []
        for token in tokens:
            kind = self.rng.random()
            out += [*self.words(2, 1), token] if kind < 0.1 else [] if kind < 0.15 else [token]
        return out

    def enter(self) -> None:
        known = self.rng.choice(self.old) if self.old and self.rng.random() < 0.6 else self.words(14)
        source, previous = self.edited(known), self.words(30) if self.rng.random() < 0.7 else []
        for texts in self.texts:
            texts.enter(len(self.said), source, previous)
        prompt = self.words(3, 1)
        self.said.append(list(prompt))
        self.prompts.append(len(prompt))
        self.old.append(known)

    def leave(self, slot: int) -> None:
        output = np.array(self.said[slot][self.prompts[slot] :], dtype=np.int32)
        last = len(self.said) - 1
        for texts in self.texts:
            texts.leave(slot, output)
            if slot != last:
                texts.move(last, slot)
        self.said[slot], self.prompts[slot] = self.said[last], self.prompts[last]
        self.said.pop()
        self.prompts.pop()

    def context(self) -> Context:
        tokens_BL = torch.full((len(self.said), PLACES), 7)
        for row, tokens in enumerate(self.said):
            tokens_BL[row, : len(tokens)] = torch.tensor(tokens)
        lengths_B = torch.tensor([len(tokens) for tokens in self.said])
        return Context(tokens_BL, lengths_B, torch.tensor(self.prompts), lengths_B * 0 + 99, tokens_BL[:, :0])

    def iterate(self) -> None:
        context, most = self.context(), self.rng.randint(1, 9)
        room_B = torch.tensor([self.rng.randint(0, 10) for _ in self.said])
        rule = rule_of(self.rng, most)
        if self.rng.random() < 0.2:
            self.look_at_all(context, room_B, rule)
            accepted_B, tokens_BK = torch.zeros_like(room_B), room_B[:, None]
        else:
            tokens_BK, accepted_B = self.draft(context, room_B, rule)
        for row, accepted in enumerate(accepted_B.tolist()):
            self.said[row] += tokens_BK[row, :accepted].tolist() + self.words(2, 1)
        for slot in reversed(range(len(self.said))):
            if len(self.said[slot]) > PLACES - 12 or self.rng.random() < 0.08:
                self.leave(slot)

    def look_at_all(self, context: Context, room_B: Tensor, rule: Rule) -> None:
        one, other = (texts.find_all(context, room_B, rule) for texts in self.texts)
        assert one == other
        for proposal in (found[0] for found in one if found):
            sent = self.rng.randint(1, len(proposal.tokens))
            accepted = self.rng.randint(0, sent)
            for texts in self.texts:
                texts.count(proposal, sent, accepted)

    def draft(self, context: Context, room_B: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """Tokens, and how many of them the verifier says as well."""
        found, other = (texts.find(context, room_B, rule) for texts in self.texts)
        for mine, theirs in zip(found, other, strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        is_used_B = torch.tensor([self.rng.random() < 0.8 for _ in self.said])
        accepted_B = torch.tensor([self.rng.randint(0, sent) for sent in (found.sent_B * is_used_B).tolist()])
        slot, drafted = self.rng.randrange(len(self.said)), torch.tensor(self.words(8), dtype=torch.int64)
        for texts in self.texts:
            texts.give_way(is_used_B)
            texts.commit(accepted_B)
            if len(drafted) > 4:
                texts.recycle(slot, drafted)
        return found.tokens_BK, accepted_B

    def check_learned(self) -> None:
        rates, habits = self.at_once.learned()
        for key, known in self.by_row.rates.learned.items():
            assert rates[key].tolist() == known
            rates[key] = 0
        assert not rates.any()
        for one, (usual, of_token) in zip((self.by_row.habits, self.by_row.habits_of_drafts), habits, strict=True):
            assert usual.tolist() == [list(one.usual.get(count, (0.9, 1.0, 1.1))) for count in range(COUNTS)]
            zeros = [0.0] * 3
            assert of_token.tolist() == [one.of_token.get(token, zeros) for token in range(VOCABULARY)]


KINDS = st.lists(st.sampled_from(["previous", "memory", "copy", "recycle"]), min_size=1, unique=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), KINDS, st.sampled_from([20, 150, 2000]), st.booleans())
def test_drafts_and_what_is_learned_are_the_same(seed: int, kinds: list[str], size: int, copies_source: bool) -> None:
    run = Run(seed, kinds, size, copies_source)
    for _ in range(60):
        while len(run.said) < 5:
            run.enter()
        if run.rng.random() < 0.05:
            source, output = run.words(9), run.words(9)
            for texts in run.texts:
                texts.learn(source, output)
        if run.rng.random() < 0.02:
            for texts in run.texts:
                texts.forget()
        run.iterate()
    run.check_learned()


@pytest.mark.parametrize("count", [MOST_PLACES - 1, MOST_PLACES, MOST_PLACES + 1, 3 * MOST_PLACES])
def test_of_many_places_the_same_are_looked_at(count: int) -> None:
    """Of a token that stands everywhere, with another behind each place."""
    rng = random.Random(count)
    text = [token for _ in range(count) for token in (1, rng.randrange(2, VOCABULARY))]
    texts = both(["previous", "copy"], 0, True)
    for one in texts:
        one.enter(0, text, text)
    said = [0]
    for _ in range(40):
        lengths_B = torch.tensor([len(said)])
        context = Context(torch.tensor([said]), lengths_B, torch.ones_like(lengths_B), lengths_B, lengths_B[None])
        mine, theirs = (each.find_all(context, torch.tensor([6]), Rule.always(6)) for each in texts)
        assert mine == theirs
        said += [rng.randrange(VOCABULARY), 1]


def test_many_rows_are_remembered_alike() -> None:
    """More than there is room for at first, in rows, marks and trigrams that many have."""
    rng, (by_row, at_once) = random.Random(0), both(["memory"], 30_000, False)
    template = [rng.randrange(VOCABULARY) for _ in range(8)]
    for number in range(6000):
        source = [*template[: rng.randint(3, 8)], *(rng.randrange(2000) for _ in range(4)), number % 5]
        output = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 5))]
        for texts in (by_row, at_once):
            texts.learn(source, output)
        if number % 10 == 0:
            again = [*source[:-2], rng.randrange(9)]
            ones_B = torch.ones(1, dtype=torch.int64)
            context = Context(ones_B[None], ones_B, ones_B, ones_B, ones_B[None])
            for texts in (by_row, at_once):
                texts.enter(0, again, [])
            mine, theirs = (each.find_all(context, torch.tensor([6]), Rule.always(6)) for each in (by_row, at_once))
            assert mine == theirs
