"""The output schema: one row per input row, every column documented in its Arrow field metadata.

Raise `SCHEMA_VERSION` with any change to a name, a type or a meaning: readers depend on all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

SCHEMA_VERSION = 4
Level = Literal["none", "iteration", "token"]


def _field(name: str, kind: pa.DataType, doc: str) -> pa.Field[Any]:
    return pa.field(name, kind, metadata={"doc": doc})


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
    _field("num_input_tokens", pa.int32(), "Tokens the encoder, or the prompt, took."),
    _field("num_output_tokens", pa.int32(), "Generated tokens, end of sequence included."),
    _field("num_iterations", pa.int32(), "Verifier forwards this row took part in."),
    _field("num_drafted_tokens", pa.int32(), "Draft tokens sent to the verifier."),
    _field("num_accepted_tokens", pa.int32(), "Draft tokens the verifier accepted and the output kept."),
    _field("num_small_tokens", pa.int32(), "Output tokens that the small model of policy `stitch` said, unchecked."),
    _field("num_switches", pa.int32(), "Times that the row went from one of its two models to the other."),
    _field("mean_confidence", pa.float32(), "Mean drafter confidence over verified draft tokens; null without drafts."),
    _field(
        "mean_gap_nats",
        pa.float32(),
        "Mean verifier log-probability gap of output tokens to its argmax; 0 when exact, null where one is unknown.",
    ),
)


def _list(name: str, kind: pa.DataType, doc: str) -> pa.Field[Any]:
    return _field(name, pa.list_(kind), doc)


ITERATION_FIELDS = (
    _list("iteration_draft_length", pa.int32(), "Per iteration: draft tokens sent to the verifier."),
    _list("iteration_accepted", pa.int32(), "Per iteration: draft tokens accepted."),
    _list(
        "iteration_rejected_confidence",
        pa.float32(),
        "Confidence of the first rejected draft token; NaN: none rejected.",
    ),
    _list("iteration_rejected_entropy", pa.float32(), "Entropy component of the same token."),
    _list("iteration_rejected_margin", pa.float32(), "Logit-margin component of the same token."),
    _list("iteration_rejected_softmax", pa.float32(), "Softmax-margin component of the same token."),
)

TOKEN_FIELDS = (
    _list("token_id", pa.int32(), "Generated token ids."),
    _list(
        "token_source",
        pa.int8(),
        "0: the verifier's own token; else an accepted draft token: 1 of a model, 2 copied from the row's source or "
        "output, 3 of the memory of rows before, 4 of an earlier run; 5: the small model's own token, unchecked.",
    ),
    _list("token_confidence", pa.float32(), "Drafter confidence for this token; NaN where nothing was drafted."),
    _list(
        "token_entropy", pa.float32(), "1 - H/ln V of the drafter's distribution (nats); policy `stitch`: of who spoke."
    ),
    _list("token_margin", pa.float32(), "2*sigmoid(z1 - z2) - 1 of the same logits."),
    _list("token_softmax", pa.float32(), "p1 - p2 of the same distribution."),
    _list("token_tau", pa.float32(), "Tolerance in nats in force for this token; 0 when exact."),
    _list(
        "token_gap_nats",
        pa.float32(),
        "Verifier log-probability of its argmax minus that of this token; NaN: not seen.",
    ),
    _list(
        "token_verifier_logprob", pa.float32(), "Verifier log-probability of this token; NaN where it has not seen it."
    ),
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
) -> pa.Schema:
    """The schema of `outputs/*.parquet` for a telemetry level, with the kept input columns at the end.

    `id_type` is that of integer ids; null: text.
    """
    fields = list(ROW_FIELDS)
    if id_type is not None:
        fields[0] = fields[0].with_type(id_type)
    if level in ("iteration", "token"):
        fields += ITERATION_FIELDS
    if level == "token":
        fields += TOKEN_FIELDS
    fields += teacher_fields(teacher_top_k)
    metadata: dict[bytes | str, bytes | str] = {"cmasd.schema_version": str(SCHEMA_VERSION)}
    metadata["cmasd.telemetry_level"] = level
    return pa.schema([*fields, *keep], metadata=metadata)
