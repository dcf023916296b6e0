"""Drafts of known texts in C (`lookups.c`): one call for all rows of an iteration, in place of `cmasd.drafters.by_row`.

Built when first needed, in a second; without a compiler there are none.

Shapes: B rows, K draft, L token buffer, W ways to go on, V vocabulary.
"""

import ctypes
import logging
import subprocess
import sys
import weakref
from array import array
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.kernels.build import AS_WRITTEN, built
from cmasd.kernels.layers import PackedRule

WAYS = 4
"""To go on that a tree is made of."""
SOURCES, KINDS, COUNTS = 6, 32, 5
"""Of rates and habits, see `lookups.c`."""

log = logging.getLogger(__name__)

Ids = NDArray[np.int32]


class Asked(ctypes.Structure):
    """`struct asked`: what the rows of an iteration are, and what each may draft."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "lengths", "prompts", "rooms")),
        *((name, ctypes.c_int64) for name in ("token_stride", "length_stride", "prompt_stride", "rows", "most")),
    )


class Found(NamedTuple):
    """The best text of each row."""

    tokens_BK: Tensor
    """int64, as wide as the most that is sent of a row; 0 behind a row's text."""
    confidence_BK: Tensor
    """float32; 0 there."""
    sent_B: Tensor
    made_B: Tensor
    source_B: Tensor


class Proposal(NamedTuple):
    """One way for a row to go on."""

    tokens: list[int]
    confidence: list[float]
    source: int
    kind: int
    """Of the place, see `cmasd.drafters.proposals`."""


class Lookups:
    """The texts of all slots, and what was learned of them."""

    def __init__(
        self,
        library: ctypes.CDLL,
        vocabulary_size: int,
        max_ngram: int,
        memory_tokens: int,
        longest: int,
        copies: bool,
        copies_source: bool,
        inside_words: Collection[int],
    ) -> None:
        """`memory_tokens` 0: nothing is remembered; `longest`: tokens by which places in the memory are told apart."""
        inside_V = np.zeros(vocabulary_size, dtype=np.uint8)
        inside_V[[token for token in inside_words if 0 <= token < vocabulary_size]] = 1
        self._library, self._vocabulary_size = library, vocabulary_size
        self._remembers, self._keeps_sources = memory_tokens > 0, memory_tokens > 0 or copies_source
        sizes = vocabulary_size, max_ngram, memory_tokens, longest, int(copies), int(copies_source)
        self._state = library.lookups_new(*sizes, inside_V.ctypes.data)
        if not self._state:
            raise MemoryError("no memory for lookups")
        weakref.finalize(self, library.lookups_free, self._state)

    def enter(self, slot: int, source: Sequence[int], previous: Sequence[int]) -> None:
        """A row, and what an earlier run made of it; empty: nothing."""
        known, said = array("i", source if self._keeps_sources else ()), array("q", previous)
        self._check(self._library.lookups_enter(self._state, slot, *known.buffer_info(), *said.buffer_info()))

    def move(self, source: int, target: int) -> None:
        """The row takes its texts along."""
        self._check(self._library.lookups_move(self._state, source, target))

    def leave(self, slot: int, output: Ids) -> None:
        """It is done, and remembered."""
        said = array("i", output.tolist() if self._remembers else ())
        self._check(self._library.lookups_leave(self._state, slot, *said.buffer_info()))

    def learn(self, source: Sequence[int], output: Sequence[int]) -> None:
        """A row that others have decoded."""
        known, said = array("i", source), array("i", output)
        self._check(self._library.lookups_learn(self._state, *known.buffer_info(), *said.buffer_info()))

    def forget(self) -> None:
        """All that rows before have said."""
        self._check(self._library.lookups_forget(self._state))

    def draft(self, asked: Asked, rule: PackedRule | None) -> Found:
        """Of each row that text of which the most is expected; what is sent of it goes by the rule, if there is one."""
        rows, most = asked.rows, asked.most
        tokens_M, confidence_M = torch.empty(rows * most, dtype=torch.int64), torch.empty(rows * most)
        numbers_3B = torch.empty(3, rows, dtype=torch.int64)
        numbers, size = numbers_3B.data_ptr(), 8 * rows
        longest: int = self._library.lookups_draft(
            *(self._state, ctypes.byref(asked), None if rule is None else rule.address),
            *(tokens_M.data_ptr(), confidence_M.data_ptr(), numbers, numbers + size, numbers + 2 * size),
        )
        self._check(longest >= 0)
        shape, steps = (rows, longest), (longest, 1)
        return Found(tokens_M.as_strided(shape, steps), confidence_M.as_strided(shape, steps), *numbers_3B.unbind())

    def all(self, asked: Asked) -> list[list[Proposal]]:
        """Every text of each row but a rejected draft."""
        shape = asked.rows, WAYS
        tokens_BWK, confidence_BWK = np.zeros((*shape, asked.most), dtype=np.int32), np.zeros((*shape, asked.most))
        numbers_3BW = np.zeros((3, *shape), dtype=np.int64)
        parts = tokens_BWK, confidence_BWK, *numbers_3BW
        self._check(self._library.lookups_all(self._state, ctypes.byref(asked), *(part.ctypes.data for part in parts)))
        counts_BW, sources_BW, kinds_BW = numbers_3BW.tolist()
        return [
            [
                Proposal(tokens[:count].tolist(), confidence[:count].tolist(), source, kind)
                for tokens, confidence, count, source, kind in zip(*row, strict=True)
                if count
            ]
            for row in zip(tokens_BWK, confidence_BWK, counts_BW, sources_BW, kinds_BW, strict=True)
        ]

    def give_way(self, is_used_B: Tensor) -> None:
        """The drafts of other rows than these go no further."""
        is_used_B = is_used_B.contiguous()
        self._library.lookups_give_way(self._state, is_used_B.data_ptr())

    def commit(self, accepted_B: Tensor) -> None:
        """Count what became of the latest drafts."""
        accepted_B = accepted_B.contiguous()
        self._library.lookups_commit(self._state, accepted_B.data_ptr())

    def count(self, proposal: Proposal, sent: int, accepted: int) -> None:
        """What became of one, of which so much was sent."""
        self._library.lookups_count(self._state, proposal.source, proposal.kind, sent, accepted)

    def recycle(self, slot: int, tokens: Tensor) -> None:
        """A model drafted these for a row; what is left of them may come yet, and of none nothing."""
        tokens = tokens.contiguous()
        self._check(self._library.lookups_recycle(self._state, slot, tokens.data_ptr(), len(tokens)))

    def learned(self) -> tuple[NDArray[np.float64], list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
        """Rates (sources, kinds, 4) without what is assumed beforehand; and of new tokens of texts and of rejected
        drafts what they were as a rule (counts, 3) and by the first of them (V, 3).
        """
        rates, usual, of_token = SOURCES * KINDS * 4, COUNTS * 3, self._vocabulary_size * 3
        numbers = np.empty(rates + 2 * (usual + of_token))
        self._library.lookups_learned(self._state, numbers.ctypes.data)
        parts = np.split(numbers, np.cumsum([rates, usual, of_token, usual]))
        habits = [(parts[at].reshape(-1, 3), parts[at + 1].reshape(-1, 3)) for at in (1, 3)]
        return parts[0].reshape(SOURCES, KINDS, 4), habits

    @staticmethod
    def _check(is_done: int | bool) -> None:
        if not is_done:
            raise MemoryError("no memory for texts of rows, or no row in a slot")


def asked_of(tokens_BL: Tensor, lengths_B: Tensor, prompts_B: Tensor) -> Asked:
    """Of rows that the caller keeps; `rooms` and `most` are still to be said."""
    assert tokens_BL.stride(1) == 1, "the tokens of a row lie side by side"
    parts = tokens_BL, lengths_B, prompts_B
    addresses, steps = [part.data_ptr() for part in parts], [part.stride(0) for part in parts]
    return Asked(*addresses, None, *steps, len(lengths_B), 0)


@cache
def lookups_library() -> ctypes.CDLL | None:
    """What `Lookups` calls; built when first asked for."""
    if sys.platform != "linux":
        return None
    try:
        loaded = ctypes.CDLL(str(built("lookups.c", *AS_WRITTEN)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s", {"event": "lookups.none", "cause": str(error).splitlines()[0]})
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.lookups_new.argtypes, loaded.lookups_new.restype = [*[size] * 6, pointer], pointer
    taken: dict[str, list[Any]] = {
        "free": [],
        "enter": [size, pointer, size, pointer, size],
        "move": [size, size],
        "leave": [size, pointer, size],
        "learn": [pointer, size, pointer, size],
        "forget": [],
        "draft": [pointer] * 7,
        "all": [pointer] * 6,
        "give_way": [pointer],
        "commit": [pointer],
        "count": [size] * 4,
        "recycle": [size, pointer, size],
        "learned": [pointer],
    }
    for name, arguments in taken.items():
        call = getattr(loaded, f"lookups_{name}")
        call.argtypes, call.restype = [pointer, *arguments], size
    return loaded
