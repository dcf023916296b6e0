"""CTranslate2's Whisper on the same recordings: our log-mel features and first tokens in, token ids out, greedy.

Windows of a long recording follow each other by the engine's own rule (`cmasd/engine/hearing.py`), so that what is
timed is the decoding. Batches are static, sorted by length, and hold windows of one start each; how a batch is spread
over threads is tried as for texts (`ct2.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cmasd.core import DETECTED, Request, Result, Sound
from cmasd.engine import Pair
from cmasd.engine.hearing import Hearing
from cmasd.errors import ModelError
from cmasd.evaluation.speed.peers.ct2 import Converted, Layout, layouts
from cmasd.signals import Float32

TRIALS = 2
"""Of each layout; the first is for getting warm. A batch takes seconds here."""
Batch = tuple[Float32, list[list[int]], int]
"""Features (B, M, F), starts, and the most tokens that are said behind them."""


class CTranslate2Heard:
    """A converted Whisper, decoding in batches of one size."""

    def __init__(self, pair: Pair, converted: Converted, batch_size: int) -> None:
        """`converted` is one of `load_ctranslate2`."""
        if pair.sound is None:
            raise ModelError("ctranslate2: hears here, and the verifier reads.")
        self.pair = pair
        self.process = converted.process
        self.batch_size = batch_size
        self.layout: Layout | None = None
        """The fastest, from the first call on."""
        self._rules = pair.sound
        self._options = _rules(pair, converted.vocabulary_size)

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key, the end of sequence included where the last window has one."""
        waiting = self._with_languages(requests)
        hearing, outputs = Hearing(self._rules, None, feeds=False), dict[int, list[int]]()
        hearing.begin(list(range(len(waiting))), waiting)
        while waiting:
            whole, waiting = hearing.land(self._windows(waiting))
            outputs |= {result.key: result.token_ids.tolist() for result in whole}
        return outputs

    def _with_languages(self, requests: list[Request]) -> list[Request]:
        """Each with a start that says its language: where it is not given, the likeliest one of its first window."""
        found = []
        for request in requests:
            sound = _sound(request)
            if DETECTED in sound.start:
                language = self.process.run(detect, Layout(1, 1), self._features([request]))[0]
                start = tuple(language if token == DETECTED else token for token in sound.start)
                request = replace(request, source=Sound(sound.features_MF, sound.frames, start, sound.begin))
            found.append(request)
        return found

    def _windows(self, requests: list[Request]) -> list[Result]:
        """What is said in the window at which each recording is."""
        ordered = sorted(requests, key=lambda request: (_sound(request).start, -len(request.source)))
        if self.layout is None:
            some = ordered[: self.batch_size]
            self.layout = self.process.fastest(
                layouts(self.process.threads, self.batch_size),
                lambda layout: self._run(layout, self._batches(some, self.batch_size // layout.models))[1],
                TRIALS,
            )
        batches = self._batches(ordered, self.batch_size // self.layout.models)
        said = self._run(self.layout, batches)[0]
        return [self._result(request, tokens) for request, tokens in zip(ordered, said, strict=True)]

    def _run(self, layout: Layout, batches: list[Batch]) -> tuple[list[list[int]], float]:
        return self.process.run(transcribe, layout, batches, self._options)

    def _batches(self, ordered: list[Request], size: int) -> list[Batch]:
        found, first = [], 0
        while first < len(ordered):
            start = _sound(ordered[first]).start
            rows = [one for one in ordered[first : first + size] if _sound(one).start == start]
            most = max(self._most(one) for one in rows)
            found.append((self._features(rows), [list(start)] * len(rows), most))
            first += len(rows)
        return found

    def _features(self, requests: Sequence[Request]) -> Float32:
        return np.stack([_sound(one).window(self._rules.frames) for one in requests])

    def _most(self, request: Request) -> int:
        return min(request.max_new_tokens, self.pair.room(len(_sound(request).start)))

    def _result(self, request: Request, tokens: list[int]) -> Result:
        most = self._most(request)
        has_ended = len(tokens) < most
        said = [*tokens, self.pair.constraints.eos_token_ids[0]] if has_ended else tokens[:most]
        return Result(
            request.key,
            np.array(said, dtype=np.int32),
            finish_reason="stop" if has_ended else "length",
            num_input_tokens=len(request.source),
            num_iterations=0,
            num_drafted_tokens=0,
            num_accepted_tokens=0,
            mean_confidence=math.nan,
            mean_gap_nats=0.0,
            iterations=None,
            tokens=None,
        )


def transcribe(model: Any, batches: list[Batch], options: dict[str, Any]) -> list[list[int]]:
    """Runs where the model is: all batches at once, which its workers share; tokens without the end, row by row."""
    import ctranslate2

    asked = []
    for features_BMF, starts, most in batches:
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features_BMF))
        # Of `max_length` it takes half for what is said, and leaves the other half to the start.
        asked += model.generate(view, starts, asynchronous=True, max_length=2 * most, **options)
    return [list(one.result().sequences_ids[0]) for one in asked]


def detect(model: Any, features_BMF: Float32) -> int:
    """Runs where the model is: the id of the likeliest language of one window."""
    import ctranslate2

    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features_BMF))
    [[(name, _), *_]] = model.detect_language(view)
    return int(name)


def _rules(pair: Pair, kept: int) -> dict[str, Any]:
    rules = pair.constraints
    times = rules.timestamps
    most = None if times is None else times.most_initial
    return {
        "beam_size": 1,
        "suppress_blank": True,
        "suppress_tokens": [token for token in (*rules.banned, *rules.suppressed) if token < kept],
        "max_initial_timestamp_index": kept if most is None else most,
        "no_repeat_ngram_size": rules.no_repeat_ngram_size,
        "repetition_penalty": rules.repetition_penalty,
    }


def _sound(request: Request) -> Sound:
    assert isinstance(request.source, Sound), "a model that hears is given recordings"
    return request.source
