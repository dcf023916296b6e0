"""The runner of decoder-only models: prompts lie in the same slot cache as outputs.

Llama's kin run windows as they are, in one call (`rotary.py`); others as rectangles through transformers' modules.

Shapes: B rows, T window, N tokens, d model width.
"""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cmasd.runner.base import Extent
from cmasd.runner.cache import Geometry
from cmasd.runner.families import Family
from cmasd.runner.masks import Branches
from cmasd.runner.rotary import RotaryDecoder, rotary_decoder
from cmasd.runner.runners import _SlotRunner, padded
from cmasd.window import Window

PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Of prompts, padding included, that one forward runs over: enough to be fast, and no more memory than for so many."""


class DecoderOnlyRunner(_SlotRunner):
    """The prompt lies in the same cache as the output."""

    is_encoder_decoder = False

    def _take(self, model: PreTrainedModel, family: Family, geometry: Geometry, int8: bool) -> None:
        self._decoder: Any = model.base_model
        self._width = int(model.config.get_text_config().hidden_size)
        self._spans = family.spans(model.config)
        self._last_position = self.max_positions - 1 if family.has_position_table and self.max_positions else None
        self._whole = None if self.wants_all else rotary_decoder(model, self._spans, self.max_length)

    @torch.no_grad()
    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """See `Runner.prefill`. Rows are right-padded; causality hides the padding."""
        assert all(0 < len(source) <= self.max_length for source in sources), "a prompt is empty or too long"
        self.ran = self.hidden_BTd = None
        longest = max(map(len, sources)) - 1
        if longest == 0:
            return
        step = max(1, PREFILL_TOKENS[self.device.type] // longest)
        parts = [slice(first, first + step) for first in range(0, len(slots), step)]
        run = self._prompts if self._whole is None else partial(self._prompts_flat, self._whole)
        states = [run(slots[part], sources[part], longest) for part in parts]
        self.hidden_BTd = states[0] if len(states) == 1 else torch.cat(states)

    def _prompts_flat(self, whole: RotaryDecoder, slots: list[int], sources: list[list[int]], longest: int) -> Tensor:
        """The same, of the tokens that there are."""
        ids_BT, lengths_B = padded([source[:-1] for source in sources], 0, self.device)
        window = Window.prefixes(ids_BT, lengths_B, torch.tensor(slots))
        self._cache.begin(slots, ids_BT.shape[1])
        states_BTd = torch.zeros(len(slots), longest, self._width, dtype=self.dtype)
        if len(window.tokens_N):
            states_BTd[window.runs_N, window.steps_N] = whole(window, self._cache.buffer_KSHLP)
        return states_BTd

    def _prompts(self, slots: list[int], sources: list[list[int]], longest: int) -> Tensor:
        """(B, longest, d): the states behind all tokens but the last, padded."""
        ids_BT, _ = padded([source[:-1] for source in sources], 0, self.device)
        length = ids_BT.shape[1]
        if length == 0:
            return torch.zeros(len(slots), longest, self._width, dtype=self.dtype, device=self.device)
        positions_1T = self._steps_L[None, :length]
        self._cache.open_prompt(torch.tensor(slots, device=self.device), positions_1T)
        return F.pad(self._decode(ids_BT, positions_1T, length), (0, 0, 0, longest - length))

    def _flat(self, window: Window) -> Tensor | None:
        return None if self._whole is None else self._whole(window, self._cache.buffer_KSHLP)

    def _hidden(
        self,
        tokens_BT: Tensor,
        starts_B: Tensor,
        extent: Extent,
        live: Tensor | None = None,
        slots_B: Tensor | None = None,
        window: Window | None = None,
    ) -> Tensor:
        positions_BT, branches = self._open_window(starts_B, extent, live, slots_B, window)
        return self._decode(tokens_BT, positions_BT, extent.length, branches)

    def _decode(
        self, tokens_BT: Tensor, positions_BT: Tensor, read_length: int, branches: Branches | None = None
    ) -> Tensor:
        mask = self._mask(positions_BT, read_length, branches)
        if self._last_position is not None and read_length > self._last_position:
            positions_BT = positions_BT.clamp(max=self._last_position)
        output = self._decoder(
            input_ids=tokens_BT,
            attention_mask=mask,
            position_ids=positions_BT,
            past_key_values=self._cache,
            use_cache=True,
        )
        return cast(Tensor, output.last_hidden_state)

    def _mask(self, positions_BT: Tensor, read_length: int, branches: Branches | None) -> Tensor | dict[str, Tensor]:
        about = positions_BT, read_length
        if not isinstance(self._spans, dict):
            return self._causal.window(*about, self._spans, branches)
        return {kind: self._causal.window(*about, span, branches) for kind, span in self._spans.items()}
