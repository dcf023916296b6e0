"""The vocabulary that every room shares: what goes into the engine and what comes out.

Plain frozen dataclasses. What travels between processes holds numpy arrays, and torch is named in
annotations only, so that this module loads without it.

Shapes: B rows, K draft positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Int32 = NDArray[np.int32]
Int8 = NDArray[np.int8]
Float32 = NDArray[np.float32]
FinishReason = Literal["stop", "length", "error"]

FROM_VERIFIER, FROM_DRAFT = 0, 1
"""Values of `TokenTrace.source`."""


@dataclass(frozen=True)
class RowError:
    """Why one input row has no output; the job goes on without it."""

    stage: str
    """`read`, `encode`, `decode` or `detokenise`."""
    message: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}"


@dataclass(frozen=True)
class Request:
    """One row to decode."""

    key: int
    """Chosen by the caller; comes back in the result."""
    source: list[int]
    """Encoder input ids, or the prompt of a decoder-only model."""
    max_new_tokens: int


@dataclass(frozen=True)
class TokenTrace:
    """Per output token telemetry; every array is (tokens,).

    Confidence, entropy, margin and softmax belong to the draft of that position; NaN where nothing was drafted.
    """

    source: Int8
    """0 the verifier's own token, 1 an accepted draft."""
    confidence: Float32
    entropy: Float32
    margin: Float32
    softmax: Float32
    tau: Float32
    """Tolerance in nats in force when the token was verified; 0 under exact verification."""
    gap_nats: Float32
    """Verifier log-probability of its argmax minus that of this token."""
    verifier_logprob: Float32


@dataclass(frozen=True)
class IterationTrace:
    """Per iteration telemetry; every array is (iterations,)."""

    draft_length: Int32
    accepted: Int32
    rejected_confidence: Float32
    """Of the first rejected draft token; NaN when all were accepted. The next three likewise."""
    rejected_entropy: Float32
    rejected_margin: Float32
    rejected_softmax: Float32


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
    """Over the output tokens; 0 under exact verification."""
    iterations: IterationTrace | None
    """None at telemetry level `none`."""
    tokens: TokenTrace | None
    """None below telemetry level `token`."""

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


@dataclass(frozen=True)
class Verdict:
    """The verifier's answer to one draft per row."""

    accepted_B: Tensor
    """(B,) int64: length of the accepted prefix."""
    next_B: Tensor
    """(B,) int64: the verifier's own token after that prefix."""
    tau_BK: Tensor
    """(B, K) float32: tolerance in nats in force at each draft position."""
