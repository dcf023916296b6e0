"""Recordings in the engine: how a row begins, and how windows of one recording follow each other.

A window's first tokens are fed when it is prefilled; where the language is not given, the verifier's likeliest one
behind the first token is taken, once for each recording. When a window has ended, the next begins where the last whole
segment ended: the rule of transformers' long-form decoding. What was said behind that is forgotten and said again. The
results of all windows come out as one, by the row's key.

Shapes: R rows, T tokens of a start, V vocabulary.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.core import DETECTED, Request, Result, Sound, Teaching
from cmasd.signals import FROM_SMALL, IterationTrace, TokenTrace, Trace
from cmasd.window import Window

Kind = TypeVar("Kind", bound=Trace)
Places = NDArray[np.int64]


@dataclass(frozen=True)
class SoundRules:
    """What the engine must know of a model that hears."""

    start: int
    """The decoder's first token."""
    most_start: int
    """Tokens of the longest start."""
    languages: tuple[int, ...]
    """Ids of those that can be found out; none where the model knows one language."""
    first_timestamp: int
    frames: int
    """Of a window."""
    frames_each: int
    """Of one place of the encoder, which is also what timestamps count."""
    seconds_each: float
    """Of one place."""


class Kept(NamedTuple):
    """What of a window counts."""

    tokens: int
    """Leading ones."""
    frames: int
    """By which the next window begins later."""


@dataclass
class _Open:
    """A recording whose windows are not all done."""

    request: Request
    start: list[int]
    results: list[Result] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    @property
    def begin(self) -> int:
        """Of the next window."""
        return sum(one.frames for one in self.kept)


class Listening(Protocol):
    """What hears."""

    @property
    def device(self) -> torch.device:
        """Of its tensors."""

    def run(self, window: Window, asked_Q: Tensor | None = None) -> Tensor:
        """See `Runner.run`."""


class Hearing:
    """Recordings from their first window to their last."""

    def __init__(self, rules: SoundRules, verifier: Listening | None, feeds: bool = True) -> None:
        """`feeds`: unless the verifier reads by itself whatever it has not seen of a row. Without a verifier nothing is
        fed, and all languages are given.
        """
        self._rules = rules
        self._verifier = verifier
        self._feeds = feeds
        self._open: dict[int, _Open] = {}

    def begin(self, slots: list[int], requests: list[Request]) -> list[list[int]]:
        """The first tokens of rows whose sources were prefilled in these slots; all but the last are fed."""
        fresh = [(slot, one) for slot, one in zip(slots, requests, strict=True) if one.key not in self._open]
        starts = {request.key: list(_sound(request).start) for _, request in fresh}
        unknown = [(slot, request.key) for slot, request in fresh if DETECTED in starts[request.key]]
        if unknown:
            found = self._languages([slot for slot, _ in unknown])
            for (_, key), language in zip(unknown, found, strict=True):
                starts[key] = [language if token == DETECTED else token for token in starts[key]]
        self._open.update((request.key, _Open(request, starts[request.key])) for _, request in fresh)
        begun = [self._open[request.key].start for request in requests]
        if self._feeds:
            self._feed(slots, [start[:-1] for start in begun])
        return begun

    def _languages(self, slots: list[int]) -> list[int]:
        """The likeliest of each row."""
        assert self._verifier is not None, "languages are given"
        device = self._verifier.device
        slots_R = torch.tensor(slots, device=device)
        starts_R = torch.zeros_like(slots_R)
        window = Window.singles(torch.full_like(slots_R, self._rules.start), slots_R, starts_R)
        ids = torch.tensor(self._rules.languages, device=device)
        likeliest_R = self._verifier.run(window)[:, ids].argmax(-1)
        found: list[int] = ids[likeliest_R].tolist()
        return found

    def _feed(self, slots: list[int], starts: list[list[int]]) -> None:
        fed = [(slot, start) for slot, start in zip(slots, starts, strict=True) if start]
        if not fed:
            return
        assert self._verifier is not None, "what is fed has a verifier"
        device, longest = self._verifier.device, max(len(start) for _, start in fed)
        tokens_RT = torch.tensor([start + [0] * (longest - len(start)) for _, start in fed], device=device)
        lengths_R = torch.tensor([len(start) for _, start in fed], device=device)
        window = Window.prefixes(tokens_RT, lengths_R, torch.tensor([slot for slot, _ in fed], device=device))
        self._verifier.run(window, window.firsts_R1[1:] - 1)

    def land(self, results: list[Result]) -> tuple[list[Result], list[Request]]:
        """Of windows that ended, the recordings that are whole, and the next windows of the others."""
        whole, more = [], []
        for result in results:
            one = self._open[result.key]
            sound = _sound(one.request)
            left = sound.features_MF.shape[1] - one.begin
            one.results.append(result)
            one.kept.append(self._kept(one, result, min(left, self._rules.frames)))
            if one.begin < sound.features_MF.shape[1]:
                more.append(self._next(one, sound))
            else:
                del self._open[result.key]
                whole.append(_joined(one, len(sound)))
        return whole, more

    def _next(self, one: _Open, sound: Sound) -> Request:
        rest = Sound(sound.features_MF, sound.frames, sound.start, one.begin)
        said = sum(kept.tokens for kept in one.kept)
        previous = None if one.request.previous is None else one.request.previous[said:]
        return replace(one.request, source=rest, previous=previous or None)

    def _kept(self, one: _Open, result: Result, frames: int) -> Kept:
        """As `_retrieve_segment` of transformers has it; a window that would begin where it began is skipped."""
        tokens = result.token_ids
        said = len(tokens) - (result.finish_reason == "stop")
        is_time = tokens[:said] >= self._rules.first_timestamp
        pairs = np.flatnonzero(is_time[:-1] & is_time[1:])
        ends_in_one = said >= 1 and bool(is_time[-1]) and not (said >= 2 and bool(is_time[-2])) and said >= 2
        if len(pairs) == 0 or ends_in_one:
            return Kept(said, frames)
        place = int(pairs[-1])
        later = (int(tokens[place]) - self._rules.first_timestamp) * self._rules.frames_each
        return Kept(place + 2, later) if later > 0 else Kept(said, frames)


def _sound(request: Request) -> Sound:
    assert isinstance(request.source, Sound), "a model that hears is given recordings"
    return request.source


def _joined(one: _Open, places: int) -> Result:
    """One result of all windows: tokens and their traces as far as they count, and the last window's end."""
    last = one.results[-1]
    if len(one.results) == 1 and one.kept[0].tokens + (last.finish_reason == "stop") == last.num_output_tokens:
        return replace(last, num_input_tokens=places, windows=((one.kept[0].tokens, 0),))
    begins = [sum(kept.frames for kept in one.kept[:i]) for i in range(len(one.kept))]
    counts = [slice(0, kept.tokens) for kept in one.kept]
    chosen = [np.arange(result.num_output_tokens)[part] for result, part in zip(one.results, counts, strict=True)]
    if last.finish_reason == "stop":
        chosen[-1] = np.append(chosen[-1], last.num_output_tokens - 1)
    drafted = [result.num_drafted_tokens for result in one.results]
    confidence = [result.mean_confidence * count for result, count in zip(one.results, drafted, strict=True) if count]
    weights = [result.num_output_tokens for result in one.results]
    gaps = [result.mean_gap_nats * weight for result, weight in zip(one.results, weights, strict=True)]
    return replace(
        last,
        token_ids=np.concatenate([result.token_ids[ids] for result, ids in zip(one.results, chosen, strict=True)]),
        num_input_tokens=places,
        num_iterations=sum(result.num_iterations for result in one.results),
        num_drafted_tokens=sum(drafted),
        num_accepted_tokens=sum(result.num_accepted_tokens for result in one.results),
        mean_confidence=sum(confidence) / sum(drafted) if sum(drafted) else math.nan,
        mean_gap_nats=sum(gaps) / max(1, sum(weights)),
        iterations=_traces(IterationTrace, [result.iterations for result in one.results], None),
        tokens=_traces(TokenTrace, [result.tokens for result in one.results], chosen),
        teaching=_teaching([result.teaching for result in one.results], chosen),
        num_small_tokens=sum(_small(result, ids) for result, ids in zip(one.results, chosen, strict=True)),
        num_switches=sum(result.num_switches for result in one.results),
        windows=tuple((kept.tokens, begin) for kept, begin in zip(one.kept, begins, strict=True)),
    )


def _small(result: Result, chosen: Places) -> int:
    """Tokens among those that count which the small model said; without a trace, as many as may be."""
    if result.tokens is None:
        return min(result.num_small_tokens, len(chosen))
    return int((result.tokens.source[chosen] == FROM_SMALL).sum())


def _traces(kind: type[Kind], traces: list[Kind | None], chosen: list[Places] | None) -> Kind | None:
    known = [trace.values_NC for trace in traces if trace is not None]
    if not known:
        return None
    parts = known if chosen is None else [values_NC[ids] for values_NC, ids in zip(known, chosen, strict=True)]
    return kind.of(np.concatenate(parts))


def _teaching(taught: list[Teaching | None], chosen: list[Places]) -> Teaching | None:
    known = [one for one in taught if one is not None]
    if not known:
        return None
    ids = [one.ids_Nk[part] for one, part in zip(known, chosen, strict=True)]
    logprobs = [one.logprobs_Nk[part] for one, part in zip(known, chosen, strict=True)]
    return Teaching(np.concatenate(ids), np.concatenate(logprobs))
