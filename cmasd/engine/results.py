"""Finished rows, read out of the slot tensors.

A step finishes few rows, so what a row costs is mostly the overhead of each call on a tensor. Every tensor is read once
per batch; rows then share the batch's arrays by views, and nothing is copied row by row.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.core import Result, Teaching
from cmasd.engine.slots import SlotState
from cmasd.signals import NAN, IterationTrace, RowNumbers, TokenTrace


def read_results(state: SlotState, slots: list[int]) -> list[Result]:
    """Results of the rows in `slots`."""
    fetch = _Fetch(slots, state.tokens.device)
    numbers = dict(zip((one.name for one in RowNumbers.signals), fetch(state.numbers).T.tolist(), strict=True))
    lengths, prompts, limits = numbers["length"], numbers["prompt_length"], numbers["limit"]
    iterations, drafted, accepted = numbers["iterations"], numbers["drafted_tokens"], numbers["accepted_tokens"]
    confidence, gaps = fetch(state.confidence_sum).tolist(), fetch(state.gap_sum).tolist()
    tokens = fetch(state.tokens[:, : max(lengths)]).astype(np.int32)
    most_tokens, most_iterations = max(map(int.__sub__, lengths, prompts)), max(iterations)
    token_trace = None if state.token_trace is None else fetch(state.token_trace[:, :most_tokens])
    iteration_trace = None if state.iteration_trace is None else fetch(state.iteration_trace[:, :most_iterations])
    top = None if state.top is None else [fetch(values[:, :most_tokens]) for values in state.top]
    results = []
    for i, slot in enumerate(slots):
        new = lengths[i] - prompts[i]
        results.append(
            Result(
                state.keys[slot],
                tokens[i, prompts[i] : lengths[i]],
                "stop" if limits[i] == 0 else "length",
                numbers["input_tokens"][i],
                iterations[i],
                drafted[i],
                accepted[i],
                confidence[i] / drafted[i] if drafted[i] else NAN,
                gaps[i] / new if new else 0.0,
                None if iteration_trace is None else IterationTrace.of(iteration_trace[i, : iterations[i]]),
                None if token_trace is None else TokenTrace.of(token_trace[i, :new]),
                None if top is None else Teaching(top[0][i, :new].astype(np.int32), top[1][i, :new]),
            )
        )
    return results


class _Fetch:
    """Takes the same rows of one tensor after the other."""

    def __init__(self, slots: list[int], device: torch.device) -> None:
        self._on_host = device.type == "cpu"
        self._slots = np.array(slots)
        self._index = torch.from_numpy(self._slots).to(device)

    def __call__(self, tensor: Tensor) -> NDArray[Any]:
        """On the host numpy indexes, which costs a fifth of a call of torch."""
        rows: NDArray[Any]
        rows = tensor.numpy()[self._slots] if self._on_host else tensor[self._index].cpu().numpy()
        return rows
