"""What is counted and traced of rows: each signal once, with its name, its place, its format and its meaning.

The classes below are tables. Their attributes are the columns, in the order of the class's body; read on an instance of
a trace an attribute is that column's values, and read on the class it is the `Signal`. From these tables follow the
output schema, the recorder, the engine's buffers, and the places that kernels in C know (`as_c`): a signal that is
added here is in all of them. Nothing here decides anything.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)
NAN = float("nan")

FROM_VERIFIER, FROM_DRAFT, FROM_COPY, FROM_MEMORY, FROM_PREVIOUS, FROM_SMALL = range(6)
"""Values of `TokenTrace.source`: who proposed a token; a draft without a name of its own is of a model. `FROM_SMALL`:
not proposed but said, by the small model of policy `stitch`, and nobody has checked it."""


class Signal(Generic[Number]):
    """One column of a table."""

    name: str
    place: int

    def __init__(self, kind: type[Number], doc: str, without_draft: float = 0.0) -> None:
        """`without_draft`: what a trace holds where nobody drafted."""
        self.kind = kind
        self.doc = doc
        self.without_draft = without_draft

    def __set_name__(self, owner: type[Table], name: str) -> None:
        known = owner.__dict__.get("signals", ())
        self.name, self.place = name, len(known)
        owner.signals = (*known, self)

    @overload
    def __get__(self, trace: None, owner: type[Table]) -> Self: ...

    @overload
    def __get__(self, trace: Trace, owner: type[Table]) -> NDArray[Number]: ...

    def __get__(self, trace: Trace | None, owner: type[Table]) -> Self | NDArray[Number]:
        if trace is None:
            return self
        return trace.values_NC[:, self.place].astype(self.kind, copy=False)


class Table:
    """Signals side by side."""

    prefix: ClassVar[str]
    """Of the names of its columns in the output, and of its places in C."""
    signals: ClassVar[tuple[Signal[Any], ...]] = ()

    @classmethod
    def width(cls) -> int:
        """Signals that there are."""
        return len(cls.signals)

    @classmethod
    def without_draft(cls) -> tuple[float, ...]:
        """A line of the table of which nobody drafted anything."""
        return tuple(signal.without_draft for signal in cls.signals)


class Trace(Table):
    """What was recorded at N moments of a row, C channels side by side; made from its columns, each (N,).

    A row's trace is one view of a whole batch's array: cutting it into columns is left to whoever reads them.
    """

    values_NC: Float32

    def __init__(self, *columns: NDArray[Any]) -> None:
        self.values_NC = np.stack(columns, axis=1).astype(np.float32)

    @classmethod
    def of(cls, values_NC: Float32) -> Self:
        """From the columns side by side, without a copy."""
        trace = cls.__new__(cls)
        trace.values_NC = values_NC
        return trace


class TokenTrace(Trace):
    """Per output token. The four scores belong to the draft of that position; they stand side by side.

    Under policy `stitch` the last three are, where nothing was drafted, of the model that spoke.
    """

    prefix = "token"
    source = Signal(
        np.int8,
        "0: the verifier's own token; else an accepted draft token: 1 of a model, 2 copied from the row's source or "
        "output, 3 of the memory of rows before, 4 of an earlier run; 5: the small model's own token, unchecked.",
        FROM_VERIFIER,
    )
    confidence = Signal(np.float32, "Drafter confidence for this token; NaN where nothing was drafted.", NAN)
    entropy = Signal(np.float32, "1 - H/ln V of the drafter's distribution (nats); policy `stitch`: of who spoke.", NAN)
    margin = Signal(np.float32, "2*sigmoid(z1 - z2) - 1 of the drafter's logits.", NAN)
    softmax = Signal(np.float32, "p1 - p2 of the drafter's distribution.", NAN)
    tau = Signal(np.float32, "Tolerance in nats in force for this token; 0 when exact.")
    gap_nats = Signal(np.float32, "Verifier log-probability of its argmax minus that of this token; NaN: not seen.")
    verifier_logprob = Signal(np.float32, "Verifier log-probability of this token; NaN where it has not seen it.")
    draft_position = Signal(np.int16, "Place of this token in its draft, from 1; 0 where nobody drafted it.")
    drafter_logprob = Signal(
        np.float32, "Log-probability of this token by the model that drafted it; NaN where none did.", NAN
    )


class IterationTrace(Trace):
    """Per iteration. The four scores are those of the first rejected draft token; they stand side by side."""

    prefix = "iteration"
    draft_length = Signal(np.int32, "Per iteration: draft tokens sent to the verifier.")
    accepted = Signal(np.int32, "Per iteration: draft tokens accepted.")
    rejected_confidence = Signal(np.float32, "Confidence of the first rejected draft token; NaN: none rejected.", NAN)
    rejected_entropy = Signal(np.float32, "Entropy component of the same token.", NAN)
    rejected_margin = Signal(np.float32, "Logit-margin component of the same token.", NAN)
    rejected_softmax = Signal(np.float32, "Softmax-margin component of the same token.", NAN)
    rejected_source = Signal(np.int8, "Who proposed the same token, as in `token_source`; 0: none was rejected.")


class RowNumbers(Table):
    """Whole numbers that the engine keeps of each row; those from `iterations` on are counters, which begin at 0."""

    prefix = "row"
    length = Signal(np.int64, "Decoder tokens that are known, the latest one not yet in any cache included.")
    limit = Signal(np.int64, "Length at which the row must stop; 0 once it has ended before.")
    prompt_length = Signal(np.int64, "Leading tokens that were not generated.")
    input_tokens = Signal(np.int64, "Tokens the encoder, or the prompt, took.")
    iterations = Signal(np.int64, "Verifier forwards this row took part in.")
    drafted_tokens = Signal(np.int64, "Draft tokens sent to the verifier.")
    accepted_tokens = Signal(np.int64, "Draft tokens the verifier accepted and the output kept.")
    drafting_row_iterations = Signal(np.int64, "Iterations with at least one draft token.")
    rollbacks = Signal(np.int64, "Iterations with a rejected draft token.")


class LogitNumbers(Table):
    """What is asked of a row of logits z, of which z1 and z2 are the largest, and of p, their softmax."""

    prefix = "logit"
    top = Signal(np.float32, "z1")
    log_mass = Signal(np.float32, "log sum exp(z - z1), so that -log_mass is the log-probability of the argmax.")
    entropy = Signal(np.float32, "1 - H(p)/ln V")
    margin = Signal(np.float32, "2*sigmoid(z1 - z2) - 1")
    softmax = Signal(np.float32, "p1 - p2")
    max_prob = Signal(np.float32, "p1")


TRACES = (TokenTrace, IterationTrace)
COUNTERS = RowNumbers.signals[RowNumbers.iterations.place :]
"""Of `RowNumbers`."""
LOGIT_SCORES = tuple(signal.name for signal in LogitNumbers.signals[LogitNumbers.entropy.place :])
"""What confidence is made from, all in [0, 1]."""
COMPONENTS = LOGIT_SCORES[:-1]
"""The three of them that a draft carries, in the order in which traces hold them behind a confidence."""


def as_c() -> str:
    """The places in all tables as enumerations: TOKEN_SOURCE, ..., and TOKEN_WIDTH behind the last."""
    lines = ["enum { FROM_VERIFIER, FROM_DRAFT, FROM_COPY, FROM_MEMORY, FROM_PREVIOUS, FROM_SMALL, SOURCES };\n"]
    for table in (*TRACES, RowNumbers, LogitNumbers):
        names = [f"{table.prefix}_{name}" for name in (*(one.name for one in table.signals), "width")]
        lines.append(f"enum {{ {', '.join(names).upper()} }};\n")
    return "".join(lines)
