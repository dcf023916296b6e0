"""One input file -> its unfinished shards, one at a time, streaming.

At most one shard and one piece of a file are in memory. A shard travels as Arrow IPC bytes, so that whatever carries
it can neither split nor merge its rows.
"""

from collections.abc import Iterator, Set

import pyarrow as pa

from cmasd.errors import InputError
from cmasd.io.formats import FORMATS, Source
from cmasd.io.formats.base import KEEP_PREFIX, Pieces
from cmasd.io.plan import FilePlan, Shard


def read_shards(plan: FilePlan, source: Source, todo: Set[int]) -> Iterator[tuple[Shard, pa.Table]]:
    """Shards of a file whose index is in `todo`, in file order."""
    size = plan.rows_per_shard
    shards = {shard.index: shard for shard in plan.shards()}

    def wanted(start: int, stop: int) -> bool:
        return any(index in todo for index in range(start // size, (stop - 1) // size + 1))

    pieces = FORMATS[plan.format].pieces(source, plan.spec, wanted)
    found = 0
    for index, table in _cut(pieces, size, todo):
        if table.num_rows != shards[index].rows:
            break
        found += 1
        yield shards[index], table
    if found != len(todo):
        raise InputError(
            f"{source.name}: has changed while the run was reading it; expected {plan.planned.rows} rows. "
            "Use a new run folder."
        )


def _cut(pieces: Pieces, size: int, todo: Set[int]) -> Iterator[tuple[int, pa.Table]]:
    """Regroup pieces into (shard index, all its rows)."""
    parts: list[pa.Table] = []
    current = -1
    for row, piece in pieces:
        done = 0
        while done < piece.num_rows:
            index, offset = divmod(row + done, size)
            part = piece.slice(done, size - offset)
            done += part.num_rows
            if index not in todo:
                continue
            if index != current and parts:
                yield current, pa.concat_tables(parts)
                parts = []
            current = index
            parts.append(part)
    if parts:
        yield current, pa.concat_tables(parts)


def pack(table: pa.Table) -> bytes:
    """A shard as one value."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack(data: bytes | pa.Buffer) -> pa.Table:
    """The inverse of `pack`."""
    return pa.ipc.open_stream(data).read_all()


def kept_columns(table: pa.Table) -> pa.Table:
    """The kept input columns under their own names."""
    names = [name for name in table.column_names if name.startswith(KEEP_PREFIX)]
    return table.select(names).rename_columns([name.removeprefix(KEEP_PREFIX) for name in names])
