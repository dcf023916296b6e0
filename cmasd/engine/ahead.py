"""Iterations that run ahead of the host: each is launched before it is known which rows the one before has finished.

All that an iteration reads and writes stays in its place (slots, caches), and its shapes are decided from what the host
knows beforehand (`Extent`). So nothing in it waits, and on a GPU it is one graph: draft, verify, accept and commit. A
finished row keeps its slot for one iteration more, which leaves it as it is; the host reads it while that runs.

Not for what must look at the device while it drafts or verifies (`can_run_ahead`): that takes the iterations of
`Engine` that may, as do those that have more to catch up on than one iteration.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cmasd.core import Draft, Verdict
from cmasd.drafters import Drafter
from cmasd.engine.slots import SlotState
from cmasd.policies import Observation, Policy
from cmasd.policies.base import Float64, Int64
from cmasd.runner.base import Extent
from cmasd.runner.graphs import StateGraphs
from cmasd.verification import Verification


def can_run_ahead(policy: Policy, drafter: Drafter | None, verification: Verification) -> bool:
    """Whether an iteration of these needs the host for nothing: no decision while drafting, no account, no draw."""
    return not any(part.needs_host for part in (policy, drafter, verification) if part is not None)


class Moment:
    """A place in the device's queue of work; on a CPU, now."""

    def __init__(self, device: torch.device) -> None:
        self._seconds = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until the device has come here."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: "Moment") -> float:
        """Of the device, which has come here."""
        if self._event is None or earlier._event is None:
            return self._seconds - earlier._seconds
        return float(earlier._event.elapsed_time(self._event)) / 1000


class Snapshot:
    """The rows as the device knows them after all that was launched so far; waited for when it is read."""

    def __init__(self, state: SlotState, live: int) -> None:
        self._numbers_B2 = on_host(state.lengths_and_limits[:live])
        self._moment = Moment(state.tokens.device)

    def read(self, state: SlotState, launched_since: int) -> list[int]:
        """Slots whose rows have finished; tells `state` how long the others are, with so many tokens since then."""
        self._moment.wait()
        lengths_B, limits_B = self._numbers_B2.numpy().T
        state.reach[: len(lengths_B)] = lengths_B + launched_since
        done: list[int] = (lengths_B >= limits_B).nonzero()[0].tolist()
        return done


@dataclass(frozen=True)
class Flight:
    """An iteration that was launched and has not landed; what policies read of it is on its way to the host."""

    draft: Draft
    verdict: Verdict
    seconds: Callable[[], float]
    """Known once it has ended, as by a later snapshot."""
    is_typical: bool = True
    """See `Observation`."""
    is_usual: bool = True
    """Whether it ran as iterations do, and not to see whether another number of threads is faster."""
    tree: Draft | None = None
    """What was sent, where the draft is a path of it."""
    beside: float = 0.0
    """See `Observation`."""
    asked: bool = True
    """See `Observation`."""

    def observation(self, with_signals: bool = False) -> Observation:
        """What a policy learns from it, when it has ended."""
        if self.draft.tokens_BK.shape[1] == 0 and self.draft.made_B is None:
            zeros_B, nothing_B0 = _nothing(len(self.draft.lengths_B))
            counts = zeros_B, zeros_B, nothing_B0, zeros_B
            return Observation(*counts, self.seconds(), self.is_typical, beside=self.beside, asked=self.asked)
        components_BK3 = self.draft.components_BK3
        return Observation(
            self.draft.lengths_B.cpu().numpy(),
            self.verdict.accepted_B.cpu().numpy(),
            self.draft.confidence_BK.cpu().numpy().astype(np.float64),
            self.draft.drafted_B.cpu().numpy(),
            self.seconds(),
            self.is_typical,
            None if self.tree is None else self.tree.lengths_B.cpu().numpy(),
            components_BK3.cpu().numpy().astype(np.float64) if with_signals else None,
            self.beside,
            self.asked,
        )


class Ahead:
    """Launches iterations."""

    def __init__(
        self,
        iterate: Callable[[Extent], tuple[Draft, Verdict]],
        most: Extent,
        device: torch.device,
        insist: bool,
    ) -> None:
        """`iterate` runs a whole iteration over the slots of an extent; see `StateGraphs`."""
        self.graphs = StateGraphs(iterate, most, device, insist)
        self._device = device
        self._reading = torch.cuda.Stream(device) if device.type == "cuda" else None

    def launch(self, extent: Extent) -> Flight:
        """One iteration, over as many slots as the extent says and perhaps some closed ones."""
        began = Moment(self._device)
        draft, verdict = self.graphs(extent)
        ended = Moment(self._device)
        rows = extent.rows
        draft = replace(
            draft,
            tokens_BK=draft.tokens_BK[:rows],
            lengths_B=on_host(draft.lengths_B[:rows]),
            confidence_BK=on_host(draft.confidence_BK[:rows]),
            made_B=None if draft.made_B is None else on_host(draft.made_B[:rows]),
        )
        verdict = replace(verdict, accepted_B=on_host(verdict.accepted_B[:rows]))
        return Flight(draft, verdict, lambda: ended.seconds_since(began), asked=extent.window > 1)

    def beside(self) -> AbstractContextManager[object]:
        """Within, the device is read without a wait for what was launched after the latest snapshot."""
        return nullcontext() if self._reading is None else torch.cuda.stream(self._reading)


@cache
def _nothing(rows: int) -> tuple[Int64, Float64]:
    """Numbers of rows that drafted nothing, and their confidences: plain decoding learns from many such."""
    return np.zeros(rows, dtype=np.int64), np.zeros((rows, 0))


def on_host(tensor: Tensor) -> Tensor:
    """A copy, which is there when the device has come to a later moment."""
    return tensor.to("cpu", non_blocking=True, copy=True)
