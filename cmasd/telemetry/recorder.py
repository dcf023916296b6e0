"""Results of one shard -> an Arrow table in the output schema, and the shard's totals.

Per-token arrays of all rows are concatenated once and cut by offsets, so recording costs a few microseconds a row.
Invariants: one output row per input row, in input order; a failed row has null output, zero counts and empty lists.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cmasd.core import Result, RowError
from cmasd.telemetry.schema import Level, output_schema

Values = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """What became of one input row."""

    id: str
    result: Result | RowError
    output: str | None
    """Decoded text; null for a `RowError`."""


def record(rows: Sequence[Row], level: Level, keep: pa.Table | None = None) -> pa.Table:
    """The shard's table; `keep` holds the kept input columns, row for row."""
    schema = output_schema(level, list(keep.schema) if keep is not None else ())
    results = [row.result if isinstance(row.result, Result) else None for row in rows]
    columns = _row_columns(rows, results)
    if level in ("iteration", "token"):
        columns |= _list_columns([_iteration_arrays(result) if result else None for result in results], schema)
    if level == "token":
        columns |= _list_columns([_token_arrays(result) if result else None for result in results], schema)
    if keep is not None:
        columns |= {name: keep[name] for name in keep.column_names}
    arrays = [_typed(columns.get(field.name, [[]] * len(rows)), field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _typed(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, kind)


def _row_columns(rows: Sequence[Row], results: Sequence[Result | None]) -> dict[str, Any]:
    return {
        "id": [row.id for row in rows],
        "output": [row.output if result else None for row, result in zip(rows, results, strict=True)],
        "finish_reason": [result.finish_reason if result else "error" for result in results],
        "error": [str(row.result) if isinstance(row.result, RowError) else None for row in rows],
        "num_input_tokens": [result.num_input_tokens if result else 0 for result in results],
        "num_output_tokens": [result.num_output_tokens if result else 0 for result in results],
        "num_iterations": [result.num_iterations if result else 0 for result in results],
        "num_drafted_tokens": [result.num_drafted_tokens if result else 0 for result in results],
        "num_accepted_tokens": [result.num_accepted_tokens if result else 0 for result in results],
        "mean_confidence": [_number(result.mean_confidence) if result else None for result in results],
        "mean_gap_nats": [result.mean_gap_nats if result else 0.0 for result in results],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _iteration_arrays(result: Result) -> dict[str, Values]:
    trace = result.iterations
    assert trace is not None, "the engine traces iterations at the configured telemetry level"
    return {
        "iteration_draft_length": trace.draft_length,
        "iteration_accepted": trace.accepted,
        "iteration_rejected_confidence": trace.rejected_confidence,
        "iteration_rejected_entropy": trace.rejected_entropy,
        "iteration_rejected_margin": trace.rejected_margin,
        "iteration_rejected_softmax": trace.rejected_softmax,
    }


def _token_arrays(result: Result) -> dict[str, Values]:
    trace = result.tokens
    assert trace is not None, "the engine traces tokens at the configured telemetry level"
    return {
        "token_id": result.token_ids,
        "token_source": trace.source,
        "token_confidence": trace.confidence,
        "token_entropy": trace.entropy,
        "token_margin": trace.margin,
        "token_softmax": trace.softmax,
        "token_tau": trace.tau,
        "token_gap_nats": trace.gap_nats,
        "token_verifier_logprob": trace.verifier_logprob,
    }


def _list_columns(rows: Sequence[dict[str, Values] | None], schema: pa.Schema) -> "dict[str, pa.Array[Any]]":
    """One list column per key; rows without arrays get empty lists."""
    present = [row for row in rows if row is not None]
    names = present[0].keys() if present else ()
    return {name: _list_column([row[name] if row else _EMPTY for row in rows], schema.field(name)) for name in names}


_EMPTY: Values = np.empty(0, dtype=np.int8)


def _list_column(arrays: Sequence[Values], field: "pa.Field[Any]") -> "pa.Array[Any]":
    kind = cast(Any, field.type).value_type
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    flat = np.concatenate(arrays).astype(kind.to_pandas_dtype(), copy=False)
    # From numpy with from_pandas=False, so that NaN stays NaN and does not become null.
    values = pa.array(flat, kind, from_pandas=False)
    return pa.ListArray.from_arrays(cast(Any, pa.array(offsets)), values, type=field.type)
