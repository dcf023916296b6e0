"""Measures what forwards cost on this machine, once per pair and machine: the goodput policy's table.

The table is kept in the user's cache folder under a name made of everything it depends on: both models, precision,
device, threads, versions and shapes. A file that is missing or unreadable is measured anew.
"""

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmasd import __version__
from cmasd.drafters import Drafter
from cmasd.engine.pair import Pair
from cmasd.kernels import cache_folder, kernels
from cmasd.policies.costs import StepTable
from cmasd.policies.latency import ForwardPrice, Latency, PricePoint
from cmasd.policies.lengths import tried
from cmasd.runner.base import Runner

SOURCE_TOKENS, PREFIX_TOKENS = 16, 16
"""Of the made-up rows: about a sentence."""
WARM_UPS, REPEATS, MOST_REPEATS = 3, 5, 25
REPEAT_SECONDS = 0.05
"""Steps are repeated up to `MOST_REPEATS` times while they take no longer than this together."""
LONG_SECONDS, FEWEST = 0.5, 3
"""That the repeats of a step take together, and a third of it its warm-ups, from which on one warm-up and so many
repeats are enough: those of large models would take minutes."""


def depends_on(pair: Pair, graphs: str) -> list[Any]:
    """What costs depend on besides devices, versions and shapes."""
    drafting = [pair.drafter and pair.drafter.config, pair.parallel and pair.parallel.shape, pair.shortlist]
    return [pair.verifier.config, *drafting, pair.bits, pair.drafter_bits, graphs]


def step_table(verifier: Runner, drafter: Drafter | None, about: list[Any], slots: int, window: int) -> StepTable:
    """The table for up to `slots` rows and `window` tokens each; slots 0..slots-1 of both are overwritten.

    `about`: see `depends_on`, for the name under which it is kept.
    """
    path = _folder() / f"{_name(verifier, drafter, about, slots, window)}.json"
    try:
        return _from_json(path.read_text(), window)
    except (OSError, ValueError, KeyError, TypeError):
        table = measure(verifier, drafter, slots, window)
    keep_whole(path, json.dumps(asdict(table)))
    return table


@torch.inference_mode()
def measure(verifier: Runner, drafter: Drafter | None, slots: int, window: int) -> StepTable:
    """Seconds of each forward, at row counts that grow fourfold up to `slots`; of long windows some, those between by
    interpolation.
    """
    counts = sorted({min(4**i, slots) for i in range(slots.bit_length() // 2 + 2)})
    verify, draft = [], []
    prefix, forward = _made_up(verifier, drafter, slots, window)
    windows = [1, *(1 + tried(window - 1)).tolist()] if window > 1 else [1]
    for rows in counts:
        starts_B = torch.full((rows,), prefix, device=verifier.device)
        seconds = [_verification(verifier, starts_B, tokens) for tokens in windows]
        verify.append(tuple(np.interp(np.arange(1, window + 1), windows, seconds).tolist()))
        draft.append(0.0 if forward is None else _seconds(partial(forward, starts_B)))
    return StepTable(tuple(counts), tuple(verify), tuple(draft), drafter is not None and drafter.one_pass)


@torch.inference_mode()
def warm_up(verifier: Runner, drafter: Drafter | None, window: int) -> None:
    """One made-up row through both models, in slot 0: what fails or is slow the first time is so before rows wait."""
    prefix, forward = _made_up(verifier, drafter, 1, window)
    starts_B = torch.full((1,), prefix, device=verifier.device)
    for tokens in (1, window):
        verifier.forward(torch.zeros((1, tokens), dtype=torch.int64, device=verifier.device), starts_B)[..., 0].tolist()
    if forward is not None:
        forward(starts_B)


@torch.inference_mode()
def measured_latency(verifier: Runner, drafter: Drafter, table: StepTable, rows: int) -> Latency:
    """What a row pays for forwards of so many rows: of windows by the table, of long rows measured now; the first slots
    of both are overwritten.
    """
    window = len(table.verify[0])
    prefix, forward = _made_up(verifier, drafter, rows, window)
    assert forward is not None, "a drafter with a model"
    far = verifier.max_length - window
    near_B, far_B = (torch.full((rows,), place, device=verifier.device) for place in (prefix, far))
    growth = [_verification(verifier, far_B, 1) - _verification(verifier, near_B, 1)]
    growth.append(_seconds(partial(forward, far_B)) - _seconds(partial(forward, near_B)))
    windows = [PricePoint(t, prefix, table.verify_seconds(rows, rows * t) / rows) for t in range(1, window + 1)]
    one = table.draft_seconds(rows) / rows
    longer = [
        PricePoint(1, far, max(0.0, first + more / rows))
        for first, more in zip((windows[0].seconds, one), growth, strict=True)
    ]
    return Latency(
        small=ForwardPrice.fit([PricePoint(1, prefix, one), longer[1]]), large=ForwardPrice.fit([*windows, longer[0]])
    )


def _made_up(
    verifier: Runner, drafter: Drafter | None, slots: int, window: int
) -> tuple[int, Callable[[Tensor], None] | None]:
    """Rows enter the first slots of both; returns how many tokens each has, and the drafter's forward."""
    length = min(SOURCE_TOKENS, verifier.max_source_length, verifier.max_length - window)
    sources = [verifier.made_up(length)] * slots
    verifier.prefill(list(range(slots)), sources)
    forward = None if drafter is None else drafter.rehearse(list(range(slots)), sources)
    return min(PREFIX_TOKENS, verifier.max_length - window) if verifier.is_encoder_decoder else length - 1, forward


def _verification(verifier: Runner, starts_B: Tensor, tokens: int) -> float:
    tokens_BT = torch.zeros((len(starts_B), tokens), dtype=torch.int64, device=verifier.device)
    return _seconds(lambda: verifier.forward(tokens_BT, starts_B)[:, 0].argmax(-1).tolist())


def _seconds(step: Callable[[], object]) -> float:
    """The lower quartile: what disturbs a step lengthens it."""
    warm_ups: list[float] = []
    while len(warm_ups) < WARM_UPS and sum(warm_ups) < LONG_SECONDS / WARM_UPS:
        warm_ups.append(_timed(step))
    times: list[float] = []
    while _is_short(times):
        times.append(_timed(step))
    return sorted(times)[len(times) // 4]


def _is_short(times: list[float]) -> bool:
    """Whether a step is to be repeated once more."""
    if len(times) >= REPEATS:
        return len(times) < MOST_REPEATS and sum(times) < REPEAT_SECONDS
    return len(times) < FEWEST or sum(times) < LONG_SECONDS


def _timed(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _folder() -> Path:
    return cache_folder() / "step-costs"


def _name(verifier: Runner, drafter: Drafter | None, about: list[Any], slots: int, window: int) -> str:
    parts = machine_parts(verifier, drafter, about)
    parts += [str(one) for one in (verifier.max_length, verifier.max_source_length, slots, window)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def machine_parts(verifier: Runner, drafter: Drafter | None, about: list[Any]) -> list[str]:
    """What forwards depend on, shapes apart. `about`: see `depends_on`."""
    device = torch.cuda.get_device_name(verifier.device) if verifier.device.type == "cuda" else platform.processor()
    native = kernels(verifier.dtype)
    models = [*map(str, about), type(drafter).__name__, str(verifier.dtype), "" if native is None else native.name]
    machine = [platform.node(), device, str(torch.get_num_threads())]
    return [*models, *machine, __version__, version("torch"), version("transformers")]


def _from_json(text: str, window: int) -> StepTable:
    """Raises ValueError, KeyError or TypeError for anything but a whole table."""
    table = StepTable.of(json.loads(text))
    shape = [len(table.verify), len(table.draft), *map(len, table.verify)]
    if not table.rows or shape != [len(table.rows)] * 2 + [window] * len(table.rows):
        raise ValueError(f"a table of another shape: {shape}")
    return table


def keep_whole(path: Path, text: str) -> None:
    """Whole or not at all; a folder that cannot be written to costs a measurement at the next start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError:
        return
