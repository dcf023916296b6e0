"""Finished rows as they leave the slots: the right cuts of the right rows, in the order asked."""

import numpy as np
import torch

from cmasd.engine.results import read_results
from cmasd.engine.slots import SlotShape, SlotState

SHAPE = SlotShape(slots=3, staging=2, max_prompt=4, max_new_tokens=6, max_source=5, window=3)


def filled(level: str = "token") -> SlotState:
    """Slot s holds tokens 100*s + position, and traces that name slot, step and channel."""
    state = SlotState(SHAPE, level, torch.device("cpu"))
    for slot in range(SHAPE.capacity):
        state.keys[slot] = 10 + slot
        state.tokens[slot] = 100 * slot + torch.arange(state.tokens.shape[1])
        state.prompt_lengths[slot], state.lengths[slot] = 1 + slot % 2, 3 + slot
        state.limits[slot] = 0 if slot == 4 else 3 + slot
        state.input_tokens[slot] = 5 - slot
        state.counters[slot, :3] = torch.tensor([1 + slot % 3, 2 * slot, slot])
        state.confidence_sum[slot], state.gap_sum[slot] = slot, 0.5 * slot
        for buffer in (state.token_trace, state.iteration_trace):
            if buffer is not None:
                steps, channels = buffer.shape[1:]
                names = 1000 * slot + 10 * torch.arange(steps)[:, None] + torch.arange(channels)
                buffer[slot] = names
    return state


def test_each_row_gets_its_own_cut() -> None:
    first, second = read_results(filled(), [4, 1])
    assert (first.key, first.finish_reason, second.key, second.finish_reason) == (14, "stop", 11, "length")
    assert first.token_ids.tolist() == [401, 402, 403, 404, 405, 406]
    assert second.token_ids.tolist() == [102, 103]
    assert first.token_ids.dtype == np.int32
    assert (first.num_input_tokens, first.num_iterations, first.num_drafted_tokens) == (1, 2, 8)
    assert (first.num_accepted_tokens, first.mean_confidence, first.mean_gap_nats) == (4, 0.5, 2 / 6)
    assert first.tokens is not None
    assert first.iterations is not None
    assert first.tokens.source.tolist() == [int(np.int8(np.uint8(v % 256))) for v in range(4000, 4060, 10)]
    assert first.tokens.verifier_logprob.tolist() == [4007, 4017, 4027, 4037, 4047, 4057]
    assert first.iterations.accepted.tolist() == [4001, 4011]
    assert first.iterations.rejected_softmax.tolist() == [4005, 4015]


def test_a_row_without_drafts_has_no_confidence() -> None:
    [row] = read_results(filled(), [0])
    assert np.isnan(row.mean_confidence)
    assert row.mean_gap_nats == 0


def test_a_result_does_not_change_with_its_slot() -> None:
    state = filled()
    [row] = read_results(state, [2])
    tokens, trace = row.token_ids.copy(), row.tokens and row.tokens.values_NC.copy()
    assert state.token_trace is not None
    state.tokens.zero_()
    state.token_trace.zero_()
    assert row.tokens is not None
    assert (row.token_ids == tokens).all()
    assert (row.tokens.values_NC == trace).all()


def test_levels() -> None:
    [none], [iteration] = (read_results(filled(level), [1]) for level in ("none", "iteration"))
    assert [none.tokens, none.iterations, iteration.tokens] == [None] * 3
    assert iteration.iterations is not None
