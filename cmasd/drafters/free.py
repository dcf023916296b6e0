"""Drafts that cost nothing: a row goes on as a text that is known already.

    previous   what an earlier run made of the same row
    memory     what rows before it said after the same words, or all that was made of a source nearly the same
    copy       what followed the same words in the row's own source or output
    recycle    what a model's draft said behind a token that was rejected

Of a row's drafts that with the most tokens expected to be accepted goes in (`proposals.py`). Entropy and margins do not
exist and are NaN. Texts are looked up for all rows in one call of C (`at_once.py`), or, without a compiler, row by row
in Python (`by_row.py`): with the same drafts, and the same that is learned.

Shapes: B rows, K draft.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from cmasd.core import Draft, Int32, Request, Result, Sound
from cmasd.drafters.at_once import TextsAtOnce
from cmasd.drafters.base import Context, Drafter
from cmasd.drafters.by_row import TextsByRow
from cmasd.drafters.free_tree import FreeTrees
from cmasd.drafters.texts import LookedUp
from cmasd.kernels import Found, Proposal, lookups_library
from cmasd.policies import Rule
from cmasd.runner.base import Extent
from cmasd.signals import COMPONENTS, NAN


class Texts(Protocol):
    """Known texts of all slots, and what was learned of them."""

    def enter(self, slot: int, source: Sequence[int], previous: Sequence[int]) -> None:
        """A row, and what an earlier run made of it; they are looked into when it is first drafted for."""

    def move(self, source: int, target: int) -> None:
        """The row takes its texts along."""

    def leave(self, slot: int, output: Int32) -> None:
        """It is done, and remembered."""

    def learn(self, source: Sequence[int], output: Sequence[int]) -> None:
        """A row that others have decoded."""

    def forget(self) -> None:
        """All that rows before have said."""

    def find(self, context: Context, room_B: Tensor, rule: Rule) -> Found:
        """The text of each row of which the most is expected, and how much of it the rule sends."""

    def find_all(self, context: Context, room_B: Tensor, rule: Rule) -> list[list[Proposal]]:
        """All texts of each row but rejected drafts."""

    def give_way(self, is_used_B: Tensor) -> None:
        """The drafts of other rows than these go no further."""

    def commit(self, accepted_B: Tensor) -> None:
        """Count what became of the latest drafts."""

    def count(self, proposal: Proposal, sent: int, accepted: int) -> None:
        """What became of one, of which so much was sent."""

    def recycle(self, slot: int, tokens: Tensor) -> None:
        """A model drafted these for a row; what is left of them may come yet, and of none nothing."""


class FreeDrafter(Drafter):
    """Of texts, without a model."""

    def __init__(
        self,
        kinds: Sequence[str],
        max_ngram: int,
        memory_tokens: int,
        vocabulary_size: int,
        is_encoder_decoder: bool,
        inside_words: Collection[int] = (),
    ) -> None:
        """`kinds`: some of previous, memory, copy and recycle; `vocabulary_size`: the verifier says ids below it;
        `inside_words`: those that go on with a word.
        """
        self._kinds = frozenset(kinds)
        copies, memory_tokens = "copy" in kinds, memory_tokens if "memory" in kinds else 0
        copies_source = copies and is_encoder_decoder
        asked = LookedUp(copies, copies_source, max_ngram, memory_tokens, vocabulary_size, inside_words)
        library = lookups_library()
        self.texts: Texts = TextsByRow(asked) if library is None else TextsAtOnce(library, asked)
        self._trees = FreeTrees()
        self._unknown = torch.full((), NAN)
        self._is_asked = False
        """Whether anything was, in this iteration: in many it is not, and takes no time then."""
        self.seconds = 0.0
        """Spent on all of this so far."""

    # ---------------------------------------------------------------- rows come and go

    def enter(self, slots: list[int], requests: list[Request], later: bool = False) -> None:
        """Their texts are looked into when they are first drafted for."""
        began = time.perf_counter()
        for slot, request in zip(slots, requests, strict=True):
            previous = request.previous if "previous" in self._kinds else None
            self.texts.enter(slot, [] if isinstance(request.source, Sound) else request.source, previous or [])
        self.seconds += time.perf_counter() - began

    def move(self, source: int, target: int) -> None:
        """The row takes its texts along."""
        self.texts.move(source, target)

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """What they said is remembered."""
        began = time.perf_counter()
        for slot, result in zip(slots, results, strict=True):
            self.texts.leave(slot, result.token_ids)
        self.seconds += time.perf_counter() - began

    def remember(self, rows: Iterable[tuple[list[int], list[int]]]) -> int:
        """Source and output of rows that others have decoded; gives the tokens of outputs, 0 without a memory."""
        tokens = 0
        for source, output in rows if "memory" in self._kinds else ():
            self.texts.learn([] if isinstance(source, Sound) else source, output)
            tokens += len(output)
        return tokens

    def forget(self) -> None:
        """All that rows before have said."""
        self.texts.forget()

    # ---------------------------------------------------------------- drafting

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """The best text of each row, or a tree of all."""
        self._is_asked = True
        began, device = time.perf_counter(), context.lengths_B.device
        if device.type != "cpu":
            context = on_host(context)
        if rule.nodes:
            draft = self._trees.draft(self.texts.find_all(context, room_B.cpu(), rule), rule, room_B)
        else:
            draft = self._of(self.texts.find(context, room_B.cpu(), rule), device)
        self.seconds += time.perf_counter() - began
        return draft

    def give_way(self, is_used_B: Tensor) -> None:
        """The drafts of other rows than these go no further."""
        self.texts.give_way(is_used_B.cpu())

    def recycle(self, draft: Draft, is_of_model_B: Tensor, accepted_B: Tensor) -> None:
        """A model drafted for these rows; what is left behind a rejected token may come yet."""
        began = time.perf_counter()
        drafted = draft.drafted_B.tolist()
        for slot, (is_of_model, accepted) in enumerate(zip(is_of_model_B.tolist(), accepted_B.tolist(), strict=True)):
            if is_of_model:
                kept = drafted[slot] if accepted + 1 < drafted[slot] else 0
                self.texts.recycle(slot, draft.tokens_BK[slot, :kept].cpu())
        self.seconds += time.perf_counter() - began

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """Count what became of the drafts."""
        if not self._is_asked:
            return
        began, self._is_asked = time.perf_counter(), False
        self._trees.commit(context.tokens_BL, context.lengths_B, accepted_B, self.texts.count)
        self.texts.commit(accepted_B.cpu())
        self.seconds += time.perf_counter() - began

    def _of(self, found: Found, device: torch.device) -> Draft:
        if device.type != "cpu":
            found = Found(*(part.to(device) for part in found))
            self._unknown = self._unknown.to(device)
        return Draft(
            tokens_BK=found.tokens_BK,
            lengths_B=found.sent_B,
            confidence_BK=found.confidence_BK,
            components_BK3=self._unknown.expand(*found.tokens_BK.shape, len(COMPONENTS)),
            made_B=found.made_B,
            source_B=found.source_B,
        )


def on_host(context: Context) -> Context:
    """What texts are looked up by."""
    known = {name: getattr(context, name).cpu() for name in ("tokens_BL", "lengths_B", "prompt_lengths_B")}
    return replace(context, **known)
