"""`generate` of transformers on recordings: greedy or by beam search, long ones by its long-form rule.

Rows of one start (language, task, timestamps) are decoded in one batch, recordings longer than a window one by one, as
`generate` wants padding of its own for them.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cmasd.core import DETECTED, Request, Sound
from cmasd.engine import Pair
from cmasd.engine.hearing import SoundRules


def generate_heard(
    model: Any, pair: Pair, rules: SoundRules, batch: Sequence[Request], beams: int
) -> dict[int, list[int]]:
    """Token ids by request key, the end of sequence included where the last window has one."""
    groups: dict[object, list[Request]] = {}
    for request in batch:
        sound = _sound(request)
        is_long = sound.features_MF.shape[1] > rules.frames
        groups.setdefault((sound.start, request.key if is_long else None), []).append(request)
    outputs: dict[int, list[int]] = {}
    for rows in groups.values():
        outputs |= _generated(model, pair, rules, rows, beams)
    return outputs


def _generated(model: Any, pair: Pair, rules: SoundRules, rows: list[Request], beams: int) -> dict[int, list[int]]:
    start = _sound(rows[0]).start
    features_BMF = torch.stack([torch.from_numpy(_sound(row).features_MF) for row in rows])
    made = model.generate(
        features_BMF.to(pair.device, model.dtype),
        **_asked(model.generation_config, rules, start),
        num_beams=beams,
        max_new_tokens=max(min(row.max_new_tokens, pair.room(len(start))) for row in rows),
        return_segments=True,
    )
    ends = set(pair.constraints.eos_token_ids)
    outputs = {}
    for row, segments in zip(rows, made["segments"], strict=True):
        tokens = [token for segment in segments for token in segment["tokens"].tolist()]
        has_ended = bool(segments) and not ends.isdisjoint(_of_window(segments[-1], len(start)))
        outputs[row.key] = [*tokens, *(pair.constraints.eos_token_ids[:1] if has_ended else ())]
    return outputs


def _of_window(segment: Any, prompt: int) -> list[int]:
    """All that was generated in the window of a segment."""
    result = segment["result"]
    ids: list[int] = (result["sequences"] if isinstance(result, dict) else result).tolist()
    return ids[prompt:]


def _asked(generation: Any, rules: SoundRules, start: tuple[int, ...]) -> dict[str, Any]:
    """A start in the words of `generate`."""
    languages = {token: name for name, token in (getattr(generation, "lang_to_id", None) or {}).items()}
    tasks = {token: name for name, token in (getattr(generation, "task_to_id", None) or {}).items()}
    asked: dict[str, Any] = {"return_timestamps": start[-1] != rules.first_timestamp - 1}
    for token in start[1:]:
        if token in tasks:
            asked["task"] = tasks[token]
        elif token != DETECTED and token in languages:
            asked["language"] = languages[token]
    return asked


def _sound(request: Request) -> Sound:
    assert isinstance(request.source, Sound), "a model that hears is given recordings"
    return request.source
