"""Drafts that cost nothing: a row goes on as a text that is known already.

    previous   what an earlier run made of the same row
    memory     what rows before it said after the same words, or all that was made of a source nearly the same
    copy       what followed the same words in the row's own source or output

Of a row's drafts that with the most tokens expected to be accepted goes in. Confidence of a token is the share of the
places that go on with it, times how often tokens of that source, after so many that agreed, were accepted lately, the
first of a draft apart from those that follow it: PRIOR is assumed beforehand, and old evidence fades, so that what a
policy has given up is tried again. Entropy and margins do not exist and are NaN.

Shapes: B rows, K draft, S sources, G kinds of places; 2 the first token, and those behind it.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cmasd.core import FROM_COPY, FROM_MEMORY, FROM_PREVIOUS, Draft, Request, Result, Sound
from cmasd.drafters.base import Context
from cmasd.drafters.memory import Memory
from cmasd.drafters.rejoin import Habits, Old
from cmasd.drafters.texts import Text, copied
from cmasd.policies import Rule
from cmasd.runner.base import Extent

PRIOR_ACCEPTED, PRIOR_JUDGED = 4.0, 5.0
"""Assumed before the first draft; hopeful, because a policy that never drafts never learns."""
FADE = 0.99
"""Weight that evidence keeps per iteration."""
KINDS = 32
"""Of places: by the tokens that agree before them, in the same text (`rejoin`), or else in others from `ALIKE` on."""
ALIKE = 12
TOLD_APART = 8
"""Tokens by which places in the memory are, at least: it holds many."""
ENOUGH = 0.9
"""Of the room: a draft that is expected to be accepted so far is not set beside others."""


@dataclass(frozen=True)
class Proposal:
    """One way to go on."""

    tokens: list[int]
    confidence: list[float]
    source: int
    kind: int

    @property
    def expected(self) -> float:
        """Tokens that will be accepted: the sum of what survives to each."""
        return float(sum(accumulate(self.confidence, operator.mul)))


NONE = Proposal([], [], FROM_COPY, 0)


@dataclass
class Row:
    """What is known of the row in a slot."""

    request: Request
    text: Text
    """Its source, then its decoder tokens."""
    first: int
    """Where those begin."""
    known: int = 0
    """How many of them there are."""
    output: list[int] = field(default_factory=list)
    previous: Old | None = None
    repeated: Old | None = None
    """The output of a row with nearly the same source."""
    was_looked_up: bool = False


class Rates:
    """How often tokens were accepted, by source and kind: a place that was found wrong fails at once, or not at all."""

    def __init__(self) -> None:
        self._accepted_SG2 = np.zeros((FROM_PREVIOUS + 1, KINDS, 2))
        self._judged_SG2 = np.zeros((FROM_PREVIOUS + 1, KINDS, 2))

    def fade(self) -> None:
        """An iteration later."""
        self._accepted_SG2 *= FADE
        self._judged_SG2 *= FADE

    def __call__(self, source: int, kind: int, count: int) -> list[float]:
        """Share accepted of those that were judged, for so many tokens."""
        accepted_2 = self._accepted_SG2[source, kind] + PRIOR_ACCEPTED
        first, later = (accepted_2 / (self._judged_SG2[source, kind] + PRIOR_JUDGED)).tolist()
        return [first, *[later] * (count - 1)][:count]

    def count(self, proposal: Proposal, sent: int, accepted: int) -> None:
        """What the verifier said of a draft of which so much was sent; behind a rejection it says nothing."""
        judged = min(accepted + 1, sent)
        self._accepted_SG2[proposal.source, proposal.kind] += min(accepted, 1), max(accepted - 1, 0)
        self._judged_SG2[proposal.source, proposal.kind] += min(judged, 1), max(judged - 1, 0)


class FreeDrafter:
    """Of texts, without a model."""

    one_pass = True
    caught_up = True

    def __init__(
        self,
        kinds: Sequence[str],
        max_ngram: int,
        memory_tokens: int,
        vocabulary_size: int,
        is_encoder_decoder: bool,
    ) -> None:
        """`kinds`: some of previous, memory and copy; `vocabulary_size`: the verifier says ids below it."""
        self.max_ngram = max_ngram
        self._kinds = frozenset(kinds)
        self._memory = Memory(memory_tokens, max(max_ngram, TOLD_APART)) if "memory" in kinds else None
        self._vocabulary_size = vocabulary_size
        self._is_encoder_decoder = is_encoder_decoder
        self._rows: dict[int, Row] = {}
        self._rates = Rates()
        self._habits = Habits()
        self._sent: tuple[list[Proposal], Tensor] | None = None

    # ---------------------------------------------------------------- rows come and go

    def prefill(self, slots: list[int], sources: list[list[int]], later: bool = False) -> None:
        """Nothing to do: see `enter`."""

    def rehearse(self, slots: list[int], sources: list[list[int]]) -> None:
        """Nothing to time."""

    def enter(self, slots: list[int], requests: list[Request]) -> None:
        """Their texts are looked into when they are first drafted for."""
        for slot, request in zip(slots, requests, strict=True):
            text = Text(request.source if self._is_encoder_decoder else ())
            text.close()
            self._rows[slot] = Row(request, text, len(text.tokens))

    def move(self, source: int, target: int) -> None:
        """The row takes its texts along."""
        self._rows[target] = self._rows.pop(source)

    def leave(self, slots: list[int], results: list[Result]) -> None:
        """What they said is remembered."""
        for slot, result in zip(slots, results, strict=True):
            row = self._rows.pop(slot)
            if self._memory is not None:
                self._memory.learn(row.request.source, result.token_ids.tolist())

    def forget(self) -> None:
        """All that rows before have said."""
        if self._memory is not None:
            self._memory = self._memory.emptied()

    def reserve(self, extent: Extent) -> bool:
        """It always looks: as far as texts go on, and no further."""
        return False

    # ---------------------------------------------------------------- drafting

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        """The best text of each row."""
        self._rates.fade()
        lengths, prompts = context.lengths_B.tolist(), context.prompt_lengths_B.tolist()
        tokens_BL = context.tokens_BL.cpu().numpy()
        chosen = []
        for slot, room in enumerate(room_B.tolist()):
            row = self._rows[slot]
            self._read(row, tokens_BL[slot, row.known : lengths[slot]].tolist(), prompts[slot])
            chosen.append(self._best(row, min(room, rule.most)) if room else NONE)
        draft = self._written(chosen, rule, context.lengths_B.device)
        self._sent = chosen, draft.lengths_B
        return draft

    def commit(self, context: Context, accepted_B: Tensor) -> None:
        """Count what became of the drafts."""
        if self._sent is None:
            return
        chosen, lengths_B = self._sent
        self._sent = None
        for proposal, sent, accepted in zip(chosen, lengths_B.tolist(), accepted_B.tolist(), strict=True):
            if sent:
                self._rates.count(proposal, sent, accepted)

    def _read(self, row: Row, tokens: list[int], prompt: int) -> None:
        """What the row has said since it was drafted for last."""
        new = tokens[max(0, prompt - row.known) :]
        row.text.extend(tokens)
        row.known += len(tokens)
        row.output += new
        if not row.was_looked_up:
            row.was_looked_up = True
            self._look_up(row)
            new = row.output
        for old in (row.previous, row.repeated):
            if old is not None:
                old.follow(row.output, len(new))

    def _look_up(self, row: Row) -> None:
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

    def _best(self, row: Row, room: int) -> Proposal:
        best, most = NONE, 0.0
        for propose in (self._of_previous, self._of_alike, self._of_memory, self._of_own):
            proposal = propose(row, room)
            if proposal is not None and proposal.tokens and (expected := proposal.expected) > most:
                best, most = proposal, expected
                if most >= ENOUGH * room:
                    break
        return best

    def _of_previous(self, row: Row, room: int) -> Proposal | None:
        return self._of_old(row.previous, FROM_PREVIOUS, room)

    def _of_alike(self, row: Row, room: int) -> Proposal | None:
        return self._of_old(row.repeated, FROM_MEMORY, room)

    def _of_old(self, old: Old | None, source: int, room: int) -> Proposal | None:
        if old is None:
            return None
        tokens, kind = old.rest(room), old.kind
        return Proposal(tokens, self._rates(source, kind, len(tokens)), source, kind)

    def _of_memory(self, row: Row, room: int) -> Proposal | None:
        recalled = None if self._memory is None else self._memory.recall(row.output, room)
        if recalled is None:
            return None
        kind = ALIKE + min(recalled.matched, KINDS - ALIKE - 1)
        rates = self._rates(FROM_MEMORY, kind, len(recalled.tokens))
        confidence = [rate * share for rate, share in zip(rates, recalled.shares, strict=True)]
        return Proposal(recalled.tokens, confidence, FROM_MEMORY, kind)

    def _of_own(self, row: Row, room: int) -> Proposal | None:
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
        tokens_BK = np.zeros((len(chosen), most), dtype=np.int64)
        confidence_BK = np.zeros((len(chosen), most), dtype=np.float32)
        for row, proposal in enumerate(chosen):
            count = len(proposal.tokens)
            tokens_BK[row, :count] = proposal.tokens
            confidence_BK[row, :count] = proposal.confidence
        confidence = torch.from_numpy(confidence_BK).to(device)
        made_B = torch.tensor([len(proposal.tokens) for proposal in chosen], device=device)
        return Draft(
            tokens_BK=torch.from_numpy(tokens_BK).to(device),
            lengths_B=rule.lengths(confidence, made_B),
            confidence_BK=confidence,
            components_BK3=confidence.new_full((*confidence.shape, 3), torch.nan),
            made_B=made_B,
            source_B=torch.tensor([proposal.source for proposal in chosen], device=device),
        )
