"""Finished rows, read out of the slot tensors in one copy per tensor."""

import numpy as np
import torch

from cmasd.core import IterationTrace, Result, TokenTrace
from cmasd.engine.slots import SlotState


def read_results(state: SlotState, slots: list[int], ended: list[bool]) -> list[Result]:
    """Results of the rows in `slots`; `ended` says which produced an end of sequence."""
    index = torch.tensor(slots, device=state.tokens.device)

    def fetch(tensor: torch.Tensor) -> np.ndarray:
        return tensor[index].cpu().numpy()

    longest = int(state.lengths[index].max())
    tokens, lengths, prompts = fetch(state.tokens[:, :longest]), fetch(state.lengths), fetch(state.prompt_lengths)
    sources, counters = fetch(state.source_lengths), fetch(state.counters)
    confidence, gaps = fetch(state.confidence_sum), fetch(state.gap_sum)
    token_trace = None if state.token_trace is None else fetch(state.token_trace[:, :longest])
    most = int(counters[:, 0].max())
    iteration_trace = None if state.iteration_trace is None else fetch(state.iteration_trace[:, :most])
    results = []
    for i, slot in enumerate(slots):
        new = int(lengths[i] - prompts[i])
        iterations, drafted, accepted = (int(n) for n in counters[i, :3])
        results.append(
            Result(
                key=state.keys[slot],
                token_ids=tokens[i, prompts[i] : lengths[i]].astype(np.int32),
                finish_reason="stop" if ended[i] else "length",
                num_input_tokens=int(sources[i]),
                num_iterations=iterations,
                num_drafted_tokens=drafted,
                num_accepted_tokens=accepted,
                mean_confidence=float(confidence[i] / drafted) if drafted else float("nan"),
                mean_gap_nats=float(gaps[i] / new) if new else 0.0,
                iterations=None if iteration_trace is None else _iterations(iteration_trace[i, :iterations]),
                tokens=None if token_trace is None else _tokens(token_trace[i, :new]),
            )
        )
    return results


def _tokens(trace_NC: np.ndarray) -> TokenTrace:
    columns = np.ascontiguousarray(trace_NC.T)
    return TokenTrace(columns[0].astype(np.int8), *columns[1:])


def _iterations(trace_IC: np.ndarray) -> IterationTrace:
    columns = np.ascontiguousarray(trace_IC.T)
    return IterationTrace(columns[0].astype(np.int32), columns[1].astype(np.int32), *columns[2:])
