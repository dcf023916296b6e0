"""Shards as rows of a table, one row each: a shard's rows travel inside one value, which nothing can tear apart."""

from dataclasses import asdict

import pyarrow as pa

from cmasd.io.plan import Shard
from cmasd.io.shards import pack, unpack

SHARD_TYPES: dict[str, pa.DataType] = {
    "file": pa.int32(),
    "index": pa.int32(),
    "start": pa.int64(),
    "stop": pa.int64(),
    "rows": pa.large_binary(),
}
SHARD_SCHEMA = pa.schema(list(SHARD_TYPES.items()))


def to_block(shard: Shard, rows: pa.Table) -> pa.Table:
    """One row for Ray Data."""
    return pa.Table.from_pylist([{**asdict(shard), "rows": pack(rows)}], SHARD_SCHEMA)


def from_block(block: pa.Table) -> list[tuple[Shard, pa.Table]]:
    """The inverse of `to_block`, for any number of shards."""
    numbers = block.drop_columns(["rows"]).to_pylist()
    return [(Shard(**n), unpack(r.as_buffer())) for n, r in zip(numbers, block["rows"], strict=True)]
