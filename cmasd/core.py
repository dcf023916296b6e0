"""The vocabulary that every room shares: what goes into the engine and what comes out.

Plain frozen dataclasses. What travels between processes holds numpy arrays, and torch is named in
annotations only, so that this module loads without it.

Shapes: B rows, K draft positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cmasd.signals import Float32, IterationTrace, TokenTrace

if TYPE_CHECKING:
    from torch import Tensor

Int32 = NDArray[np.int32]
FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class RowError:
    """Why one input row has no output; the job goes on without it."""

    stage: str
    """`read`, `encode`, `decode`, `detokenise`, or `crash` for a row that kills its worker."""
    message: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}"


class Sound(list[int]):
    """A source that is heard: a recording, or what is left of one, window by window. Of token ids it has none.

    Its length is that of what is left, in places of the encoder: one for two frames, and at least one.
    """

    def __init__(self, features_MF: Float32, frames: int, start: tuple[int, ...], begin: int = 0) -> None:
        super().__init__()
        self.features_MF = features_MF
        """Log-mel, M bins of F frames: of the whole recording, silence behind it up to one window at least."""
        self.frames = frames
        """Of these, those that are not such silence."""
        self.start = start
        """The decoder's first tokens; `DETECTED` for a language that the verifier is to find out."""
        self.begin = begin
        """The frame at which the window begins."""

    def __len__(self) -> int:
        return max(1, -(-(self.frames - self.begin) // 2))

    def __eq__(self, other: object) -> bool:
        """One recording is not another, though neither has ids."""
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:  # type: ignore[override]  # lists have none
        return id(self)

    def window(self, length: int) -> Float32:
        """(M, length) frames from `begin` on, zeros behind the last."""
        found_MF = self.features_MF[:, self.begin : self.begin + length]
        return np.pad(found_MF, ((0, 0), (0, length - found_MF.shape[1])))


DETECTED = -1
"""See `Sound.start`."""


@dataclass(frozen=True)
class Request:
    """One row to decode."""

    key: int
    """Chosen by the caller; comes back in the result."""
    source: list[int]
    """Encoder input ids, or the prompt of a decoder-only model; or a `Sound`."""
    max_new_tokens: int
    previous: list[int] | None = None
    """What an earlier run made of the same row, its end of sequence included; None: it made nothing of it."""


@dataclass(frozen=True)
class Teaching:
    """What else the verifier might have said for each of N output tokens: its k most likely ones, likeliest first."""

    ids_Nk: Int32
    logprobs_Nk: Float32


@dataclass(frozen=True)
class Result:
    """One decoded row."""

    key: int
    token_ids: Int32
    """(tokens,) generated ids, the end-of-sequence token included when it was produced."""
    finish_reason: FinishReason
    num_input_tokens: int
    num_iterations: int
    """Verifier forwards that this row took part in."""
    num_drafted_tokens: int
    """Draft tokens sent to the verifier."""
    num_accepted_tokens: int
    """Of those, the ones accepted and kept in the output."""
    mean_confidence: float
    """Over the draft tokens sent to the verifier; NaN without drafts."""
    mean_gap_nats: float
    """Over the output tokens; 0 under exact verification, NaN where the small model said some of them."""
    iterations: IterationTrace | None
    """None at telemetry level `none`."""
    tokens: TokenTrace | None
    """None below telemetry level `token`."""
    teaching: Teaching | None = None
    """None unless `telemetry.teacher_top_k` asks for it."""
    num_small_tokens: int = 0
    """Output tokens that the small model of policy `stitch` said; the others are the verifier's, or checked by it."""
    num_switches: int = 0
    """Times that another of the two models was to speak than the one before."""
    windows: tuple[tuple[int, int], ...] = ()
    """Of a recording: tokens said in each window, and the frame at which that began."""

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens, end of sequence included."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Draft:
    """What the drafter proposes for all live rows in one iteration."""

    tokens_BK: Tensor
    """(B, K) int64; any valid id past a row's length."""
    lengths_B: Tensor
    """(B,) int64: tokens that go to the verifier."""
    confidence_BK: Tensor
    """(B, K) float32 in [0, 1]; NaN where nothing was drafted."""
    components_BK3: Tensor
    """(B, K, 3) float32: entropy, margin, softmax; NaN where the drafter has no logits."""
    probs_BKV: Tensor | None = None
    """(B, K, V) float32 drafter distribution, for speculative sampling; None: certain of its token."""
    made_B: Tensor | None = None
    """(B,) int64: tokens that the drafter made, those that do not go to the verifier included; None: no others."""
    source_B: Tensor | None = None
    """(B,) int64: who proposed each row's, as in `TokenTrace.source`; None: a model."""
    logprob_BK: Tensor | None = None
    """(B, K) float32 log-probability that the drafter gave each token; NaN or None where it has none."""
    parents_BK: Tensor | None = None
    """(B, K) int64, of trees: which token of the draft each one follows, -1 the row's last; parents come first. None:
    the one before."""
    source_BK: Tensor | None = None
    """(B, K) int64, of trees: `source_B` for each token."""

    @property
    def drafted_B(self) -> Tensor:
        """(B,) int64: tokens that the drafter made."""
        return self.lengths_B if self.made_B is None else self.made_B

    def cut(self, longest: int) -> Draft:
        """The same draft in buffers that are no wider than its longest row."""
        if longest == self.tokens_BK.shape[1]:
            return self
        return replace(
            self,
            tokens_BK=self.tokens_BK[:, :longest],
            confidence_BK=self.confidence_BK[:, :longest],
            components_BK3=self.components_BK3[:, :longest],
            probs_BKV=None if self.probs_BKV is None else self.probs_BKV[:, :longest],
            logprob_BK=None if self.logprob_BK is None else self.logprob_BK[:, :longest],
            parents_BK=None if self.parents_BK is None else self.parents_BK[:, :longest],
            source_BK=None if self.source_BK is None else self.source_BK[:, :longest],
        )


@dataclass(frozen=True)
class Logits:
    """The verifier's, as a flat list: of each row those behind its last token, then those behind its draft's tokens."""

    values_NV: Tensor
    """(N, V)"""
    firsts_B1: Tensor
    """(B + 1,) int64: where each row's begin, and where the last row's end."""
    longest: int
    """T: the most of a row."""

    @classmethod
    def rectangle(cls, logits_BTV: Tensor) -> Logits:
        """As many of every row."""
        rows, longest, columns = logits_BTV.shape
        firsts_B1 = logits_BTV.new_ones(rows + 1).long().cumsum(0).sub_(1).mul_(longest)
        return cls(logits_BTV.reshape(-1, columns), firsts_B1, longest)

    def by_row(self, values_N: Tensor) -> Tensor:
        """(B, T, ...) of what there is of each (N, ...); behind a row's last, that again."""
        rows = len(self.firsts_B1) - 1
        if len(values_N) == rows * self.longest:
            return values_N.view(rows, self.longest, *values_N.shape[1:])
        steps_T = self.firsts_B1.new_ones(self.longest).cumsum(0) - 1
        index_BT = (self.firsts_B1[:-1, None] + steps_T).minimum(self.firsts_B1[1:, None] - 1)
        result: Tensor = values_N[index_BT]
        return result

    @property
    def padded_BTV(self) -> Tensor:
        """(B, T, V)"""
        return self.by_row(self.values_NV)


@dataclass(frozen=True)
class Verdict:
    """The verifier's answer to one draft per row."""

    accepted_B: Tensor
    """(B,) int64: length of the accepted prefix."""
    next_B: Tensor
    """(B,) int64: the verifier's own token after that prefix."""
    tau_BK: Tensor
    """(B, K) float32: tolerance in nats in force at each draft position."""
