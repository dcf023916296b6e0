"""Slot tensors: what enters, what moves, and that nothing of an earlier row stays behind."""

from typing import Any

import torch

from cmasd.engine.slots import NewRow, SlotShape, SlotState

SHAPE = SlotShape(slots=2, staging=3, max_prompt=4, max_new_tokens=6, max_source=5, window=3)


def state(level: str = "token") -> SlotState:
    return SlotState(SHAPE, level, torch.device("cpu"))


def snapshot(slots: SlotState, slot: int) -> dict[str, Any]:
    return {name: value[slot].tolist() for name, value in by_slot(slots).items()}


def by_slot(slots: SlotState) -> dict[str, torch.Tensor]:
    """The tensors that hold something for each slot."""
    tensors = {name: value for name, value in vars(slots).items() if isinstance(value, torch.Tensor)}
    return {name: value for name, value in tensors.items() if len(value) == SHAPE.capacity}


def test_buffers_have_room_for_a_window_past_the_limit() -> None:
    assert SHAPE.capacity == 5
    assert SHAPE.length == 4 + 6 + 3
    assert state().tokens.shape == (5, 13)


def test_telemetry_levels_decide_what_is_allocated() -> None:
    held = {level: (state(level).iteration_trace, state(level).token_trace) for level in ("none", "iteration", "token")}
    assert [tuple(trace is not None for trace in held[level]) for level in held] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_a_row_enters_clean() -> None:
    slots = state()
    for tensor in (slots.tokens, slots.counters, slots.confidence_sum, slots.gap_sum, slots.source):
        tensor.fill_(9)
    slots.enter(3, [NewRow(key=17, prompt=[0], source=[5, 6], limit=7)])
    assert slots.keys[3] == 17
    assert (int(slots.lengths[3]), int(slots.prompt_lengths[3]), int(slots.limits[3])) == (1, 1, 7)
    assert slots.tokens[3, 0] == 0
    assert slots.source[3].tolist() == [5, 6, -1, -1, -1]
    assert slots.input_tokens[3] == 2
    assert slots.counters[3].tolist() == [0] * 5
    assert float(slots.confidence_sum[3]) == float(slots.gap_sum[3]) == 0
    slots.enter(2, [NewRow(19, [4], [], 5), NewRow(key=18, prompt=[7, 8, 9], source=[], limit=9)])
    assert slots.keys[2:4] == [19, 18]
    assert slots.reach[2:4].tolist() == [1, 3]
    assert slots.tokens[2, 0] == 4
    assert slots.tokens[3, :3].tolist() == [7, 8, 9]
    assert slots.source[3].tolist() == [-1] * 5
    assert slots.input_tokens[3] == 3, "a decoder-only row's input is its prompt"


def test_everything_moves_with_a_row() -> None:
    slots = state()
    generator = torch.Generator().manual_seed(0)
    for value in by_slot(slots).values():
        value.copy_(torch.randint(0, 99, value.shape, generator=generator))
    slots.keys = [0, 1, 2, 3, 4]
    before = {slot: snapshot(slots, slot) for slot in range(5)}
    slots.move([4, 3], [1, 0])
    assert slots.keys == [3, 4, 2, 3, 4]
    for slot, origin in enumerate([3, 4, 2, 3, 4]):
        assert snapshot(slots, slot) == before[origin]


def test_the_context_is_a_view_of_the_live_rows() -> None:
    slots = state()
    context = slots.context(2)
    context.tokens_BL[1, 0] = 42
    assert slots.tokens[1, 0] == 42
    assert context.lengths_B.shape == (2,)
    assert context.source_BS.shape == (2, 5)
