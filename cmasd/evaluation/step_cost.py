"""Milliseconds of one forward, by rows and query tokens per row: what decides how much speculation can gain.

A verifier forward over k + 1 query tokens replaces up to k + 1 plain ones, so its cost over that of one query token
is the price of a draft; the drafter's forward over one token is the price of a drafted token. Output layers are
included; the choice of tokens, verification and the host's bookkeeping are not. All windows of a batch take turns,
so that a busy machine is fair to all.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cmasd.engine import Pair
from cmasd.runner.base import Runner
from cmasd.runner.load import load_runner
from cmasd.runner.models import Model

QUERY_TOKENS = (1, 2, 3, 4, 6, 8)
PREFIX_TOKENS = 16
"""Tokens that a row has before the window: about the middle of a sentence."""
WARM_UPS, MOST_REPEATS = 2, 30


@dataclass(frozen=True)
class StepCost:
    """One model at one shape."""

    model: str
    """`verifier` or `drafter`."""
    rows: int
    query_tokens: int
    """Per row."""
    milliseconds: float
    """Median."""
    low: float
    """Lower quartile in milliseconds."""
    high: float
    ratio_to_one: float
    """Over one query token of the same model and rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def step_costs(
    pair: Pair, sources: list[list[int]], rows: list[int], seconds: float, query_tokens: tuple[int, ...] = QUERY_TOKENS
) -> list[StepCost]:
    """Verifier at every number of rows and query tokens, drafter at one query token; in about `seconds` together."""
    models: dict[str, tuple[Model, tuple[int, ...]]] = {"verifier": (pair.verifier, query_tokens)}
    if pair.drafter is not None:
        models["drafter"] = (pair.drafter, (1,))
    share = seconds / (len(models) * len(rows))
    return [
        cost
        for count in rows
        for name, (model, windows) in models.items()
        for cost in _costs(name, pair, model, [sources[i % len(sources)] for i in range(count)], windows, share)
    ]


@torch.inference_mode()
def _costs(
    name: str, pair: Pair, model: Model, sources: list[list[int]], windows: tuple[int, ...], seconds: float
) -> list[StepCost]:
    rows, longest = len(sources), max(map(len, sources))
    starts_B = torch.tensor([PREFIX_TOKENS if pair.is_encoder_decoder else len(row) - 1 for row in sources])
    runner = load_runner(model, rows, int(starts_B.max()) + max(windows), longest)
    runner.prefill(list(range(rows)), sources)
    starts_B = starts_B.to(runner.device)
    steps = {window: _step(runner, rows, window, starts_B) for window in windows}
    times = _take_turns(steps, seconds)
    one = float(np.median(times[1])) if 1 in times else float("nan")
    costs = []
    for window, measured in times.items():
        low, middle, high = np.quantile(measured, [0.25, 0.5, 0.75]).tolist()
        costs.append(StepCost(name, rows, window, middle, low, high, middle / one))
    return costs


def _step(runner: Runner, rows: int, window: int, starts_B: torch.Tensor) -> Callable[[], None]:
    """One forward, over when its result is there; the ids do not matter to its cost."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(runner.vocabulary_size, (rows, window), generator=generator).to(runner.device)

    def step() -> None:
        runner.forward(tokens_BT, starts_B)
        if runner.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _take_turns(steps: dict[int, Callable[[], None]], seconds: float) -> dict[int, list[float]]:
    """Milliseconds of every step, three times at least and until the time is over."""
    for step in steps.values():
        for _ in range(WARM_UPS):
            step()
    times: dict[int, list[float]] = {window: [] for window in steps}
    deadline = time.perf_counter() + seconds
    for repeat in range(MOST_REPEATS):
        if repeat >= 3 and time.perf_counter() > deadline:
            break
        for window, step in steps.items():
            started = time.perf_counter()
            step()
            times[window].append(1000 * (time.perf_counter() - started))
    return times
