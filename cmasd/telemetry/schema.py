"""The output schema: one row per input row, every column documented in its Arrow field metadata.

Columns of what the engine counts and traces follow from `cmasd.signals`. Raise `SCHEMA_VERSION` with any change to a
name, a type or a meaning: readers depend on all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cmasd.signals import IterationTrace, RowNumbers, Signal, TokenTrace, Trace

SCHEMA_VERSION = 6
Level = Literal["none", "iteration", "token"]


def _field(name: str, kind: pa.DataType, doc: str) -> pa.Field[Any]:
    return pa.field(name, kind, metadata={"doc": doc})


def _count(signal: Signal[Any]) -> pa.Field[Any]:
    return _field(f"num_{signal.name}", pa.int32(), signal.doc)


ROW_FIELDS = (
    _field(
        "id",
        pa.string(),
        "Identity of the input row: `input.id_column`, in its own type where every row has an integer there, else as "
        "text; or `<file>:<row>`. An integer that a damaged file has lost is null, and `error` names the row.",
    ),
    _field("output", pa.string(), "Decoded text without special tokens; null when the row failed."),
    _field("finish_reason", pa.string(), "`stop` (end of sequence), `length` (token limit) or `error`."),
    _field("error", pa.string(), "Null when fine; else `<stage>: <message>`."),
    _count(RowNumbers.input_tokens),
    _field("num_output_tokens", pa.int32(), "Generated tokens, end of sequence included."),
    _count(RowNumbers.iterations),
    _count(RowNumbers.drafted_tokens),
    _count(RowNumbers.accepted_tokens),
    _field("num_small_tokens", pa.int32(), "Output tokens that the small model of policy `stitch` said, unchecked."),
    _field("num_switches", pa.int32(), "Times that the row went from one of its two models to the other."),
    _field("mean_confidence", pa.float32(), "Mean drafter confidence over verified draft tokens; null without drafts."),
    _field(
        "mean_gap_nats",
        pa.float32(),
        "Mean verifier log-probability gap of output tokens to its argmax; 0 when exact, null where one is unknown.",
    ),
)


COUNTS = tuple(field.name for field in ROW_FIELDS if field.name.startswith("num_"))
"""Columns that are attributes of a `cmasd.core.Result`, and that add up over rows."""


def _list(name: str, kind: pa.DataType, doc: str) -> pa.Field[Any]:
    return _field(name, pa.list_(kind), doc)


def trace_fields(trace: type[Trace]) -> tuple[pa.Field[Any], ...]:
    """The columns of a trace, in the order of its channels."""
    return tuple(
        _list(f"{trace.prefix}_{signal.name}", pa.from_numpy_dtype(np.dtype(signal.kind)), signal.doc)
        for signal in trace.signals
    )


ITERATION_FIELDS = trace_fields(IterationTrace)
TOKEN_FIELDS = (_list("token_id", pa.int32(), "Generated token ids."), *trace_fields(TokenTrace))


SOURCE_FIELD = _field(
    "source_text",
    pa.string(),
    "What the row was decoded from, of a recording its name; null in rows that `telemetry.keep_source` does not keep.",
)


def teacher_fields(top_k: int) -> tuple[pa.Field[Any], ...]:
    """Columns that `telemetry.teacher_top_k` adds; none for 0."""
    if top_k == 0:
        return ()
    return (
        _list("token_top_ids", pa.list_(pa.int32(), top_k), "The verifier's most likely tokens, likeliest first."),
        _list("token_top_logprobs", pa.list_(pa.float32(), top_k), "Their log-probabilities."),
    )


def output_schema(
    level: Level,
    keep: Sequence[pa.Field[Any]] = (),
    teacher_top_k: int = 0,
    id_type: pa.DataType | None = None,
    keeps_source: bool = False,
) -> pa.Schema:
    """The schema of `outputs/*.parquet` for a telemetry level, with the kept input columns at the end.

    `id_type` is that of integer ids; null: text. `keeps_source`: whether `telemetry.keep_source` keeps any.
    """
    fields = list(ROW_FIELDS)
    if id_type is not None:
        fields[0] = fields[0].with_type(id_type)
    if level in ("iteration", "token"):
        fields += ITERATION_FIELDS
    if level == "token":
        fields += TOKEN_FIELDS
    fields += teacher_fields(teacher_top_k)
    if keeps_source:
        fields.append(SOURCE_FIELD)
    metadata: dict[bytes | str, bytes | str] = {"cmasd.schema_version": str(SCHEMA_VERSION)}
    metadata["cmasd.telemetry_level"] = level
    return pa.schema([*fields, *keep], metadata=metadata)
