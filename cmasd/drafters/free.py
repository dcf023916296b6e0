"""Drafts that cost nothing: a row goes on as a text that is known already.

    previous   what an earlier run made of the same row
    memory     what rows before it said after the same words, or all that was made of a source nearly the same
    copy       what followed the same words in the row's own source or output
    recycle    what a model's draft said behind a token that was rejected

Of a row's drafts that with the most tokens expected to be accepted goes in (`proposals.py`). Entropy and margins do not
exist and are NaN.

Shapes: B rows, K draft.
"""

import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cmasd.core import Draft, Request, Result, Sound
from cmasd.drafters.base import Context, Drafter
from cmasd.drafters.free_tree import FreeTrees
from cmasd.drafters.memory import Memory
from cmasd.drafters.proposals import ALIKE, KINDS, NONE, Proposal, Rates
from cmasd.drafters.rejoin import Habits, Old
from cmasd.drafters.texts import Text, copied
from cmasd.policies import Rule
from cmasd.runner.base import Extent
from cmasd.signals import COMPONENTS, FROM_COPY, FROM_DRAFT, FROM_MEMORY, FROM_PREVIOUS

TOLD_APART = 8
"""Tokens by which places in the memory are, at least: it holds many."""
ENOUGH = 0.9
"""Of the room: a draft that is expected to be accepted so far is not set beside others."""


@dataclass
class SlotRow:
    """What is known of the row in a slot."""

    request: Request
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


class FreeDrafter(Drafter):
    """Of texts, without a model."""

    def __init__(
        self,
        kinds: Sequence[str],
        max_ngram: int,
        memory_tokens: int,
        vocabulary_size: int,
        is_encoder_decoder: bool,
        inside_words: Container[int] = (),
    ) -> None:
        """`kinds`: some of previous, memory, copy and recycle; `vocabulary_size`: the verifier says ids below it;
        `inside_words`: those that go on with a word.
        """
        self.max_ngram = max_ngram
        self._kinds = frozenset(kinds)
        self._memory = Memory(memory_tokens, max(max_ngram, TOLD_APART)) if "memory" in kinds else None
        self._vocabulary_size = vocabulary_size
        self._is_encoder_decoder = is_encoder_decoder
        self._rows: dict[int, SlotRow] = {}
        self._rates = Rates()
        self._habits = Habits(inside_words)
        self._habits_of_drafts = Habits()
        self._trees = FreeTrees()
        self._sent: tuple[list[Proposal], Tensor] | None = None
        self.seconds = 0.0
        """Spent on all of this so far."""

    # ---------------------------------------------------------------- rows come and go

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """Their texts are looked into when they are first drafted for."""
        began = time.perf_counter()
        for slot, request in zip(slots, requests, strict=True):
            text = Text(request.source if self._is_encoder_decoder and "copy" in self._kinds else ())
            text.close()
            self._rows[slot] = SlotRow(request, text, len(text.tokens))
        self.seconds += time.perf_counter() - began

    def move(self, source: int, target: int) -> None:
        """The row takes its texts along."""
        self._rows[target] = self._rows.pop(source)

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """What they said is remembered."""
        began = time.perf_counter()
        for slot, result in zip(slots, results, strict=True):
            row = self._rows.pop(slot)
            if self._memory is not None:
                self._memory.learn(row.request.source, result.token_ids.tolist())
        self.seconds += time.perf_counter() - began

    def remember(self, rows: Iterable[tuple[list[int], list[int]]]) -> int:
        """Source and output of rows that others have decoded; gives the tokens of outputs, 0 without a memory."""
        if self._memory is None:
            return 0
        tokens = 0
        for source, output in rows:
            self._memory.learn(source, output)
            tokens += len(output)
        return tokens

    def forget(self) -> None:
        """All that rows before have said."""
        if self._memory is not None:
            self._memory = self._memory.emptied()

    # ---------------------------------------------------------------- drafting

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """The best text of each row, or a tree of all."""
        began = time.perf_counter()
        self._rates.fade()
        lengths, prompts = context.lengths_B.tolist(), context.prompt_lengths_B.tolist()
        tokens_BL = context.tokens_BL.cpu().numpy()
        rows = [self._rows[slot] for slot in range(len(lengths))]
        for slot, row in enumerate(rows):
            self._read(row, tokens_BL[slot, row.known : lengths[slot]].tolist(), prompts[slot])
        rooms = [min(room, rule.most) for room in room_B.tolist()]
        if rule.nodes:
            found = [self._all(row, room) if room else [] for row, room in zip(rows, rooms, strict=True)]
            return self._trees.draft(found, rule, room_B)
        chosen = [self._best(row, room) if room else NONE for row, room in zip(rows, rooms, strict=True)]
        draft = self._written(chosen, rule, context.lengths_B.device)
        self._sent = chosen, draft.lengths_B
        self.seconds += time.perf_counter() - began
        return draft

    def give_way(self, is_used_B: Tensor) -> None:
        """The drafts of other rows than these go no further."""
        if self._sent is not None:
            chosen, lengths_B = self._sent
            self._sent = chosen, lengths_B * is_used_B

    def recycle(self, draft: Draft, is_of_model_B: Tensor, accepted_B: Tensor) -> None:
        """A model drafted for these rows; what is left behind a rejected token may come yet."""
        began = time.perf_counter()
        drafted = draft.drafted_B.tolist()
        for slot, (is_of_model, accepted) in enumerate(zip(is_of_model_B.tolist(), accepted_B.tolist(), strict=True)):
            if is_of_model:
                is_left = accepted + 1 < drafted[slot]
                tokens = draft.tokens_BK[slot, : drafted[slot]].tolist() if is_left else []
                self._rows[slot].rejected = Old(tokens, self._habits_of_drafts) if is_left else None
        self.seconds += time.perf_counter() - began

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """Count what became of the drafts."""
        self._trees.commit(context.tokens_BL, context.lengths_B, accepted_B, self._rates)
        if self._sent is None:
            return
        began = time.perf_counter()
        chosen, lengths_B = self._sent
        self._sent = None
        for proposal, sent, accepted in zip(chosen, lengths_B.tolist(), accepted_B.tolist(), strict=True):
            if sent:
                self._rates.count(proposal, sent, accepted)
        self.seconds += time.perf_counter() - began

    def _read(self, row: SlotRow, tokens: list[int], prompt: int) -> None:
        """What the row has said since it was drafted for last."""
        new = tokens[max(0, prompt - row.known) :]
        if "copy" in self._kinds:
            row.text.extend(tokens)
        row.known += len(tokens)
        row.output += new
        if not row.was_looked_up:
            row.was_looked_up = True
            self._look_up(row)
            new = row.output
        for old in (row.previous, row.repeated, row.rejected):
            if old is not None:
                old.follow(row.output, len(new))

    def _look_up(self, row: SlotRow) -> None:
        previous = row.request.previous if "previous" in self._kinds else None
        if previous:
            row.previous = Old(self._sayable(previous), self._habits)
        elif self._memory is not None and not isinstance(row.request.source, Sound):
            alike = self._memory.alike(row.request.source)
            row.repeated = None if alike is None else Old(alike, self._habits)

    def _sayable(self, tokens: list[int]) -> list[int]:
        """As far as the verifier could say them: other tokenizers have other ids."""
        stop = next((i for i, token in enumerate(tokens) if not 0 <= token < self._vocabulary_size), None)
        return tokens[:stop]

    def _best(self, row: SlotRow, room: int) -> Proposal:
        best, most = NONE, 0.0
        for propose in (self._of_previous, self._of_alike, self._of_memory, self._of_own, self._of_rejected):
            proposal = propose(row, room)
            if proposal is not None and proposal.tokens and (expected := proposal.expected) > most:
                best, most = proposal, expected
                if most >= ENOUGH * room:
                    break
        return best

    def _all(self, row: SlotRow, room: int) -> list[Proposal]:
        found = [of(row, room) for of in (self._of_previous, self._of_alike, self._of_memory, self._of_own)]
        return [proposal for proposal in found if proposal is not None and proposal.tokens]

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
        return Proposal(tokens, self._rates(source, kind, len(tokens)), source, kind)

    def _of_memory(self, row: SlotRow, room: int) -> Proposal | None:
        recalled = None if self._memory is None else self._memory.recall(row.output, room)
        if recalled is None:
            return None
        kind = ALIKE + min(recalled.matched, KINDS - ALIKE - 1)
        rates = self._rates(FROM_MEMORY, kind, len(recalled.tokens))
        confidence = [rate * share for rate, share in zip(rates, recalled.shares, strict=True)]
        return Proposal(recalled.tokens, confidence, FROM_MEMORY, kind)

    def _of_own(self, row: SlotRow, room: int) -> Proposal | None:
        if "copy" not in self._kinds:
            return None
        at = row.first + row.known - len(row.output)
        tokens, found = copied(row.text, at, row.known, room, self.max_ngram)
        kind = ALIKE + min(found, KINDS - ALIKE - 1)
        tokens = self._sayable(tokens)
        return Proposal(tokens, self._rates(FROM_COPY, kind, len(tokens)), FROM_COPY, kind)

    @staticmethod
    def _written(chosen: list[Proposal], rule: Rule, device: torch.device) -> Draft:
        most = max(len(proposal.tokens) for proposal in chosen)
        padding, unsure = [0] * most, [0.0] * most
        tokens = [(proposal.tokens + padding)[:most] for proposal in chosen]
        tokens_BK = np.array(tokens, dtype=np.int64).reshape(len(chosen), most)
        sure = [(proposal.confidence + unsure)[:most] for proposal in chosen]
        confidence_BK = np.array(sure, dtype=np.float32).reshape(len(chosen), most)
        confidence = torch.from_numpy(confidence_BK).to(device)
        made_B = torch.tensor([len(proposal.tokens) for proposal in chosen], device=device)
        return Draft(
            tokens_BK=torch.from_numpy(tokens_BK).to(device),
            lengths_B=rule.lengths(confidence, made_B),
            confidence_BK=confidence,
            components_BK3=confidence.new_full((*confidence.shape, len(COMPONENTS)), torch.nan),
            made_B=made_B,
            source_B=torch.tensor([proposal.source for proposal in chosen], device=device),
        )
