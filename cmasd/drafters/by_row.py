"""Texts of rows looked up row by row, in Python: where there is no compiler for `at_once`, which does the same in C.

Shapes: B rows, K draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cmasd.core import Int32
from cmasd.drafters.base import Context
from cmasd.drafters.memory import Memory
from cmasd.drafters.proposals import ALIKE, ENOUGH, KINDS, NONE, Rates, expected
from cmasd.drafters.rejoin import Habits, Old
from cmasd.drafters.texts import LookedUp, Text, copied, sayable
from cmasd.kernels import Found, Proposal
from cmasd.policies import Rule
from cmasd.signals import FROM_COPY, FROM_DRAFT, FROM_MEMORY, FROM_PREVIOUS


@dataclass
class SlotRow:
    """What is known of the row in a slot."""

    source: Sequence[int]
    text: Text
    """Its source, then its decoder tokens; empty where nobody copies."""
    first: int
    """Where those begin."""
    known: int = 0
    """How many of them there are."""
    output: list[int] = field(default_factory=list)
    previous: Old | None = None
    repeated: Old | None = None
    """The output of a row with nearly the same source."""
    rejected: Old | None = None
    """A model's latest draft, of which something is left."""
    was_looked_up: bool = False


class TextsByRow:
    """See `Texts` of `free`."""

    def __init__(self, asked: LookedUp) -> None:
        self._max_ngram = asked.max_ngram
        self._copies = asked.copies
        self._copies_source = asked.copies_source
        self._memory = Memory(asked.memory_tokens, asked.longest) if asked.memory_tokens else None
        self._vocabulary_size = asked.vocabulary_size
        self._rows: dict[int, SlotRow] = {}
        self._sent: list[tuple[Proposal, int]] = []
        self.rates = Rates()
        self.habits = Habits(asked.inside_words)
        self.habits_of_drafts = Habits()

    # ---------------------------------------------------------------- rows come and go

    def enter(self, slot: int, source: Sequence[int], previous: Sequence[int]) -> None:
        """See `Texts.enter`."""
        text = Text(source if self._copies_source else ())
        text.close()
        said = sayable(previous, self._vocabulary_size)
        self._rows[slot] = SlotRow(
            source, text, len(text.tokens), previous=Old(said, self.habits) if previous else None
        )

    def move(self, source: int, target: int) -> None:
        """See `Texts.move`."""
        self._rows[target] = self._rows.pop(source)

    def leave(self, slot: int, output: Int32) -> None:
        """See `Texts.leave`."""
        self.learn(self._rows.pop(slot).source, output.tolist())

    def learn(self, source: Sequence[int], output: Sequence[int]) -> None:
        """See `Texts.learn`."""
        if self._memory is not None:
            self._memory.learn(source, output)

    def forget(self) -> None:
        """See `Texts.forget`."""
        if self._memory is not None:
            self._memory = self._memory.emptied()

    # ---------------------------------------------------------------- drafting

    def find(self, context: Context, room_B: Tensor, rule: Rule) -> Found:
        """See `Texts.find`."""
        rows = self._read_all(context)
        rooms = [min(room, rule.most) for room in room_B.tolist()]
        chosen = [self._best(row, room) if room else NONE for row, room in zip(rows, rooms, strict=True)]
        found = written(chosen, rule)
        self._sent = list(zip(chosen, found.sent_B.tolist(), strict=True))
        return found

    def find_all(self, context: Context, room_B: Tensor, rule: Rule) -> list[list[Proposal]]:
        """See `Texts.find_all`."""
        rows, ways = self._read_all(context), (self._of_previous, self._of_alike, self._of_memory, self._of_own)
        found = []
        for row, room in zip(rows, room_B.clamp_max(rule.most).tolist(), strict=True):
            proposals = [propose(row, room) for propose in ways] if room else []
            found.append([proposal for proposal in proposals if proposal is not None and proposal.tokens])
        return found

    def give_way(self, is_used_B: Tensor) -> None:
        """See `Texts.give_way`."""
        used = is_used_B.tolist()
        self._sent = [(proposal, sent * is_used) for (proposal, sent), is_used in zip(self._sent, used, strict=True)]

    def recycle(self, slot: int, tokens: Tensor) -> None:
        """See `Texts.recycle`."""
        self._rows[slot].rejected = Old(tokens.tolist(), self.habits_of_drafts) if len(tokens) else None

    def commit(self, accepted_B: Tensor) -> None:
        """See `Texts.commit`."""
        for (proposal, sent), accepted in zip(self._sent, accepted_B.tolist(), strict=False):
            if sent:
                self.count(proposal, sent, accepted)
        self._sent = []

    def count(self, proposal: Proposal, sent: int, accepted: int) -> None:
        """See `Texts.count`."""
        self.rates.count(proposal, sent, accepted)

    def _read_all(self, context: Context) -> list[SlotRow]:
        self.rates.fade()
        lengths, prompts = context.lengths_B.tolist(), context.prompt_lengths_B.tolist()
        tokens_BL = context.tokens_BL.numpy()
        rows = [self._rows[slot] for slot in range(len(lengths))]
        for slot, row in enumerate(rows):
            self._read(row, tokens_BL[slot, row.known : lengths[slot]].tolist(), prompts[slot])
        return rows

    def _read(self, row: SlotRow, tokens: list[int], prompt: int) -> None:
        """What the row has said since it was drafted for last."""
        new = tokens[max(0, prompt - row.known) :]
        if self._copies:
            row.text.extend(tokens)
        row.known += len(tokens)
        row.output += new
        if not row.was_looked_up:
            row.was_looked_up = True
            new = row.output
            alike = None if row.previous is not None or self._memory is None else self._memory.alike(row.source)
            row.repeated = None if alike is None else Old(alike, self.habits)
        for old in (row.previous, row.repeated, row.rejected):
            if old is not None:
                old.follow(row.output, len(new))

    def _best(self, row: SlotRow, room: int) -> Proposal:
        best, most = NONE, 0.0
        for propose in (self._of_previous, self._of_alike, self._of_memory, self._of_own, self._of_rejected):
            proposal = propose(row, room)
            if proposal is not None and (tokens := expected(proposal)) > most:
                best, most = proposal, tokens
                if most >= ENOUGH * room:
                    break
        return best

    def _of_previous(self, row: SlotRow, room: int) -> Proposal | None:
        return self._of_old(row.previous, FROM_PREVIOUS, room)

    def _of_alike(self, row: SlotRow, room: int) -> Proposal | None:
        return self._of_old(row.repeated, FROM_MEMORY, room)

    def _of_rejected(self, row: SlotRow, room: int) -> Proposal | None:
        return self._of_old(row.rejected, FROM_DRAFT, room)

    def _of_old(self, old: Old | None, source: int, room: int) -> Proposal | None:
        if old is None:
            return None
        tokens, kind = old.rest(room), old.kind
        return Proposal(tokens, self.rates(source, kind, len(tokens)), source, kind)

    def _of_memory(self, row: SlotRow, room: int) -> Proposal | None:
        recalled = None if self._memory is None else self._memory.recall(row.output, room)
        if recalled is None:
            return None
        kind = ALIKE + min(recalled.matched, KINDS - ALIKE - 1)
        rates = self.rates(FROM_MEMORY, kind, len(recalled.tokens))
        confidence = [rate * share for rate, share in zip(rates, recalled.shares, strict=True)]
        return Proposal(recalled.tokens, confidence, FROM_MEMORY, kind)

    def _of_own(self, row: SlotRow, room: int) -> Proposal | None:
        if not self._copies:
            return None
        at = row.first + row.known - len(row.output)
        tokens, found = copied(row.text, at, row.known, room, self._max_ngram)
        kind = ALIKE + min(found, KINDS - ALIKE - 1)
        tokens = sayable(tokens, self._vocabulary_size)
        return Proposal(tokens, self.rates(FROM_COPY, kind, len(tokens)), FROM_COPY, kind)


def written(chosen: list[Proposal], rule: Rule) -> Found:
    """One for each row, side by side."""
    most = max(len(proposal.tokens) for proposal in chosen)
    padding, unsure = [0] * most, [0.0] * most
    tokens = [(proposal.tokens + padding)[:most] for proposal in chosen]
    sure = [(proposal.confidence + unsure)[:most] for proposal in chosen]
    confidence_BK = torch.from_numpy(np.array(sure, dtype=np.float32).reshape(len(chosen), most))
    made_B = torch.tensor([len(proposal.tokens) for proposal in chosen])
    sent_B = rule.lengths(confidence_BK, made_B)
    longest = max(sent_B.tolist())
    return Found(
        tokens_BK=torch.from_numpy(np.array(tokens, dtype=np.int64).reshape(len(chosen), most))[:, :longest],
        confidence_BK=confidence_BK[:, :longest],
        sent_B=sent_B,
        made_B=made_B,
        source_B=torch.tensor([proposal.source for proposal in chosen]),
    )
