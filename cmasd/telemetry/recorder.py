"""Results of one shard -> an Arrow table in the output schema.

The traces of all rows are joined once and cut into list columns by shared offsets, so recording costs a few
microseconds a row.
Invariants: one output row per input row, in input order; a failed row has null output, zero counts and empty lists.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cmasd.core import Result, RowError, Teaching
from cmasd.signals import IterationTrace, TokenTrace, Trace
from cmasd.telemetry.schema import COUNTS, SOURCE_FIELD, Level, output_schema, trace_fields

SAMPLES_EACH_WAY = 6
"""Rows of a shard whose sources are kept as samples: those with the most rejected draft tokens, and by chance."""
Values = NDArray[Any]
Columns = dict[str, "pa.Array[Any]"]


@dataclass(frozen=True)
class Row:
    """What became of one input row."""

    id: str | int | None
    """Null where the input does not tell an integer any more."""
    result: Result | RowError
    output: str | None
    """Decoded text; null for a `RowError`."""


def record(
    rows: Sequence[Row],
    level: Level,
    keep: pa.Table | None = None,
    teacher_top_k: int = 0,
    id_type: pa.DataType | None = None,
    sources: Sequence[str | None] | None = None,
) -> pa.Table:
    """The shard's table; `keep` holds the kept input columns, row for row; `id_type`: of integer ids.

    `sources`: what the rows were decoded from, as far as it is to be kept; None: no column of that.
    """
    kept = list(keep.schema) if keep is not None else ()
    schema = output_schema(level, kept, teacher_top_k, id_type, sources is not None)
    results = [row.result if isinstance(row.result, Result) else None for row in rows]
    columns = _row_columns(rows, results)
    good = [result for result in results if result is not None]
    if good and level in ("iteration", "token"):
        columns |= _iteration_columns(good, _offsets(columns["num_iterations"]), schema)
    if good and level == "token":
        columns |= _token_columns(good, _offsets(columns["num_output_tokens"]), schema)
    if good and teacher_top_k:
        columns |= _teacher_columns(good, _offsets(columns["num_output_tokens"]), schema)
    if sources is not None:
        columns[SOURCE_FIELD.name] = sources
    if keep is not None:
        columns |= {name: keep[name] for name in keep.column_names}
    arrays = [_typed(columns.get(field.name, [[]] * len(rows)), field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def samples(rows: Sequence[Row]) -> list[int]:
    """The rows of a shard whose sources are worth keeping for a report; the same whenever the shard is decoded."""
    good = [place for place, row in enumerate(rows) if isinstance(row.result, Result)]
    chosen = np.random.default_rng(len(rows)).permutation(good)[:SAMPLES_EACH_WAY].tolist()
    lost = sorted(good, key=lambda place: _lost(rows[place]), reverse=True)[:SAMPLES_EACH_WAY]
    return sorted({*chosen, *(place for place in lost if _lost(rows[place]))})


def _lost(row: Row) -> int:
    """Draft tokens that were not accepted."""
    return row.result.num_drafted_tokens - row.result.num_accepted_tokens if isinstance(row.result, Result) else 0


def _typed(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, kind)


def _row_columns(rows: Sequence[Row], results: Sequence[Result | None]) -> dict[str, Any]:
    return {
        "id": [row.id for row in rows],
        "output": [row.output if result else None for row, result in zip(rows, results, strict=True)],
        "finish_reason": [result.finish_reason if result else "error" for result in results],
        "error": [str(row.result) if isinstance(row.result, RowError) else None for row in rows],
        **{name: [getattr(result, name) if result else 0 for result in results] for name in COUNTS},
        "mean_confidence": [_number(result.mean_confidence) if result else None for result in results],
        "mean_gap_nats": [_number(result.mean_gap_nats) if result else 0.0 for result in results],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _offsets(counts: Sequence[int]) -> "pa.Array[Any]":
    """Where each row's entries begin; one more for the end."""
    return pa.array(np.cumsum([0, *counts], dtype=np.int32), pa.int32())


def _iteration_columns(results: Sequence[Result], offsets: "pa.Array[Any]", schema: pa.Schema) -> Columns:
    return _trace_columns(IterationTrace, [result.iterations for result in results], offsets, schema)


def _token_columns(results: Sequence[Result], offsets: "pa.Array[Any]", schema: pa.Schema) -> Columns:
    ids = np.concatenate([result.token_ids for result in results])
    return {
        "token_id": _list_column(ids, offsets, schema.field("token_id")),
        **_trace_columns(TokenTrace, [result.tokens for result in results], offsets, schema),
    }


def _trace_columns(
    kind: type[Trace], traces: Sequence[Trace | None], offsets: "pa.Array[Any]", schema: pa.Schema
) -> Columns:
    """Column by column, those of all rows one after the other."""
    flat_NC = np.concatenate([trace.values_NC for trace in traces if trace is not None])
    assert len(flat_NC) == offsets[-1].as_py(), f"the engine keeps every {kind.prefix} at this telemetry level"
    names = [field.name for field in trace_fields(kind)]
    return {
        name: _list_column(column, offsets, schema.field(name)) for name, column in zip(names, flat_NC.T, strict=True)
    }


def _teacher_columns(results: Sequence[Result], offsets: "pa.Array[Any]", schema: pa.Schema) -> Columns:
    taught = [result.teaching for result in results if isinstance(result.teaching, Teaching)]
    assert len(taught) == len(results), "the engine keeps what the configuration asks for"
    values = {
        "token_top_ids": np.concatenate([one.ids_Nk for one in taught]),
        "token_top_logprobs": np.concatenate([one.logprobs_Nk for one in taught]),
    }
    columns: Columns = {}
    for name, values_Nk in values.items():
        kind = cast(Any, schema.field(name).type)
        flat = pa.array(values_Nk.reshape(-1), kind.value_type.value_type)
        lists = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
        columns[name] = pa.ListArray.from_arrays(cast(Any, offsets), lists, type=kind)
    return columns


def _list_column(values: Values, offsets: "pa.Array[Any]", field: "pa.Field[Any]") -> "pa.Array[Any]":
    kind = cast(Any, field.type).value_type
    flat = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    # From numpy with from_pandas=False, so that NaN stays NaN and does not become null.
    array = pa.array(flat, kind, from_pandas=False)
    return pa.ListArray.from_arrays(cast(Any, offsets), array, type=field.type)
