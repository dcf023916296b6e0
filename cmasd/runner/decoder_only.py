"""The runner of decoder-only models: prompts lie in the same slot cache as outputs.

Llama's kin run windows as they are, in one call (`rotary.py`); others as rectangles through transformers' modules.

Shapes: B rows, T window, N tokens, d model width.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cmasd.kernels import Bits
from cmasd.models.families import Family
from cmasd.models.masks import Branches
from cmasd.models.rotary import rotary_decoder
from cmasd.runner.base import Pass
from cmasd.runner.cache import Geometry
from cmasd.runner.prefix import Prefix
from cmasd.runner.prompts import flat_passes, padded_passes, side_by_side, window_of
from cmasd.runner.runners import _SlotRunner
from cmasd.window import Window

PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Of prompts, padding included, that one forward runs over: enough to be fast, and no more memory than for so many."""


class DecoderOnlyRunner(_SlotRunner):
    """The prompt lies in the same cache as the output."""

    is_encoder_decoder = False
    shares_prefixes = True
    """Whether what many prompts begin with is computed once."""

    def _take(self, model: PreTrainedModel, family: Family, geometry: Geometry, bits: Bits) -> None:
        self._decoder: Any = model.base_model
        width = int(model.config.get_text_config().hidden_size)
        self._none_0d = torch.zeros(0, width, dtype=self.dtype, device=self.device)
        self._prefix = Prefix()
        self._spans = family.spans(model.config)
        self._last_position = self.max_positions - 1 if family.has_position_table and self.max_positions else None
        self._whole = None if self.wants_all else rotary_decoder(model, self._spans, self.max_length)

    @torch.no_grad()
    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """See `Runner.prefill`. What many prompts begin with is computed once (`prefix.py`)."""
        assert all(0 < len(source) <= self.max_length for source in sources), "a prompt is empty or too long"
        self.ran = self.hidden_BTd = None
        prompts = [source[:-1] for source in sources]
        longest = max(map(len, prompts))
        self._cache.begin(slots)
        if longest == 0:
            return
        if (fresh := self._prefix.fresh(prompts) if self.shares_prefixes else None) is not None:
            [states_Ld] = self._run_prompts(slots[:1], [fresh], [0])
            self._prefix.keep(fresh, self._cache.buffer_KSHLP[:, slots[0]], states_Ld if self.wants_states else None)
        known = [self._prefix.shared(prompt) if self.shares_prefixes else 0 for prompt in prompts]
        for slot, length in zip(slots, known, strict=True):
            self._prefix.place(length, slot, self._cache.buffer_KSHLP)
            self._cache.extend([slot], length)
        states = self._run_prompts(slots, prompts, known)
        if self.wants_states:
            begun = [self._prefix.states(length) if length else states[0][:0] for length in known]
            whole = [torch.cat(both) for both in zip(begun, states, strict=True)]
            self.hidden_BTd = side_by_side(whole, longest)

    def _run_prompts(self, slots: list[int], prompts: list[list[int]], starts: list[int]) -> list[Tensor]:
        """(L, d) of each row: the last hidden states behind what was not known, where anyone wants them."""
        most, ends = PREFILL_TOKENS[self.device.type], list(map(len, prompts))
        cut = padded_passes if self._whole is None else flat_passes
        parts: list[list[Tensor]] = [[self._none_0d] for _ in slots]
        for pieces in cut(starts, ends, most):
            window = window_of(pieces, slots, prompts)
            states_Nd = self._run_piece(window)
            if self.wants_states:
                runs = states_Nd.split([piece.stop - piece.start for piece in pieces])
                for piece, states_Ld in zip(pieces, runs, strict=True):
                    parts[piece.row].append(states_Ld)
        return [torch.cat(part) for part in parts]

    def _run_piece(self, window: Window) -> Tensor:
        """(N, d). Rows of a rectangle are right-padded; causality hides the padding."""
        slots, start = window.slots_R.tolist(), int(window.starts_R.max())
        if self._whole is not None:
            for slot, end in zip(slots, (window.starts_R + window.firsts_R1.diff()).tolist(), strict=True):
                self._cache.extend([slot], end)
            return self._whole(window, self._cache.buffer_KSHLP)
        extent = self.extent(len(slots), window.longest, start, slots)
        window = window.to(self.device)
        if start > 0:
            return window.flat(self._rectangle(window, extent))
        positions_1T = self._steps_L[None, : window.longest]
        self._cache.open_prompt(window.slots_R, positions_1T)
        return window.flat(self._decode(window.padded(window.tokens_N), positions_1T, window.longest))

    def _is_whole(self) -> bool:
        return self._whole is not None

    def _flat(self, window: Window) -> Tensor | None:
        return None if self._whole is None else self._whole(window, self._cache.buffer_KSHLP)

    def _hidden(self, given: Pass) -> Tensor:
        positions_BT, branches = self._open_window(given)
        return self._decode(given.tokens_BT, positions_BT, given.extent.length, branches)

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
