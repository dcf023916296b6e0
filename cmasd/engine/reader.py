"""A model that runs now and then: it reads all that it has not seen of some rows, in one window, and says what follows.

Rows are prefilled when they are first read, so one that never is costs nothing. What was read stays in the cache up to
the length that `rewind` leaves.

Shapes: R rows of those that are live, N tokens, V vocabulary.
"""

import torch
from torch import Tensor

from cmasd.core import Logits
from cmasd.drafters import Context
from cmasd.generation.constraints import Constraints
from cmasd.runner.base import Runner
from cmasd.runner.decoder_only import PREFILL_TOKENS
from cmasd.window import Window


class Reader:
    """Follows the engine's slots, as a drafter does."""

    def __init__(self, runner: Runner, constraints: Constraints) -> None:
        self._runner = runner
        self._constraints = constraints
        self._held = torch.zeros(runner.slots, dtype=torch.int64, device=runner.device)
        self._later: dict[int, list[int]] = {}

    def prefill(self, slots: list[int], sources: list[list[int]]) -> None:
        """New rows enter these slots; nothing is run before they are read."""
        self._later.update(zip(slots, sources, strict=True))

    def leave(self, slots: list[int]) -> None:
        """The rows in these slots are done."""
        for slot in slots:
            self._later.pop(slot, None)
        self._runner.leave(slots)

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` is now in slot `target`."""
        self._later.pop(target, None)
        if source in self._later:
            self._later[target] = self._later.pop(source)
            return
        self._runner.move(source, target)
        self._held[target] = self._held[source]

    def read(self, context: Context, rows_R: Tensor, heard_R: Tensor) -> tuple[Logits, Tensor]:
        """Of each row the logits behind its last token, and behind `heard_R` (R,) tokens that lie beyond it in its
        buffer; and how many tokens were read (R,).
        """
        self._prefill_late(rows_R.tolist())
        lengths_R = context.lengths_B[rows_R]
        ends_R, starts_R = lengths_R + heard_R, self._held[rows_R]
        unseen_R = ends_R - starts_R
        covers_first = len(rows_R) == len(context.lengths_B)
        starts_R = self._catch_up(context, rows_R, starts_R, lengths_R - 1)
        window = Window.stretch(context.tokens_BL, rows_R, starts_R, ends_R, covers_first)
        firsts_R1 = torch.nn.functional.pad((heard_R + 1).cumsum(0), (1, 0))
        runs_N = torch.arange(len(rows_R), device=rows_R.device).repeat_interleave(heard_R + 1)
        steps_N = torch.arange(len(runs_N), device=rows_R.device) - firsts_R1[:-1][runs_N]
        asked_N = (window.firsts_R1[1:] - 1 - heard_R)[runs_N] + steps_N
        logits = Logits(self._runner.run(window, asked_N), firsts_R1, 1 + int(heard_R.max()))
        self._held[rows_R] = ends_R
        return self._constrained(context, rows_R, logits), unseen_R

    @property
    def device(self) -> torch.device:
        """Of its tensors."""
        return self._runner.device

    def run(self, window: Window, asked_Q: Tensor | None = None) -> Tensor:
        """Of rows in these slots; see `Runner.run`. What they have there counts as read."""
        self._prefill_late(window.slots_R.tolist())
        self._held[window.slots_R] = window.starts_R + window.firsts_R1.diff()
        return self._runner.run(window, asked_Q)

    def rewind(self, rows_R: Tensor, lengths_R: Tensor) -> None:
        """Of these rows, what the cache holds from `lengths_R` on is of no use."""
        self._held[rows_R] = self._held[rows_R].minimum(lengths_R)

    def _prefill_late(self, rows: list[int]) -> None:
        late = [slot for slot in rows if slot in self._later]
        if not late:
            return
        sources = [self._later.pop(slot) for slot in late]
        self._runner.prefill(late, sources)
        held = [0 if self._runner.is_encoder_decoder else len(source) - 1 for source in sources]
        self._held[late] = torch.tensor(held, device=self._held.device)

    def _catch_up(self, context: Context, rows_R: Tensor, starts_R: Tensor, ends_R: Tensor) -> Tensor:
        """Read long stretches in pieces, as prompts are, so that they take no more memory; gives where to go on."""
        piece = max(1, PREFILL_TOKENS[self._runner.device.type] // len(rows_R))
        while bool((left_R := ends_R - starts_R > piece).any()):
            until_R = starts_R[left_R] + piece
            window = Window.stretch(context.tokens_BL, rows_R[left_R], starts_R[left_R], until_R)
            self._runner.run(window, window.firsts_R1[1:2] - 1)
            starts_R = starts_R.masked_scatter(left_R, until_R)
        return starts_R

    def _constrained(self, context: Context, rows_R: Tensor, logits: Logits) -> Logits:
        if self._constraints.is_free:
            return logits
        starts_R = context.lengths_B[rows_R] - 1
        steps_T = torch.arange(logits.longest, device=rows_R.device)
        tokens_RL = context.tokens_BL[rows_R]
        return Logits.rectangle(
            self._constraints.apply(
                logits.padded_BTV,
                tokens_RL,
                starts_R,
                context.prompt_lengths_B[rows_R],
                context.limits_B[rows_R],
                tokens_RL.gather(1, starts_R[:, None] + steps_T),
            )
        )
