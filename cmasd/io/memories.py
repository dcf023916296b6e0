"""What a run's rows said, kept beside its shards: the memory of a resumed run, or of the next one, begins with it.

A file for each shard, of the sources and outputs as token ids, written whole or not at all once the shard is. Bounded:
each actor keeps the latest of its own, as many tokens as its memory holds, and a new start of the run keeps as many of
all. A run does not depend on them: a file that cannot be read, or is of another tokenizer, is left out and logged.
"""

import io
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.config.tree import Config
from cmasd.errors import ConfigError, StorageAccessError, StorageError
from cmasd.io.plan import Shard
from cmasd.io.run_folder import MEMORY, RunFolder
from cmasd.io.storage import base_name, join

_log = logging.getLogger(__name__)

VOCABULARY = b"cmasd.vocabulary"
_NAME = re.compile(r"part-\d{5}-\d{6}-(\d+)\.parquet")
"""The last number is of output tokens, so that nobody has to look inside to know when there are enough."""
_SCHEMA = pa.schema([("source", pa.list_(pa.int32())), ("output", pa.list_(pa.int32()))])

Rows = list[tuple[list[int], list[int]]]
"""Source and output of each."""


class _Kept(NamedTuple):
    path: str
    tokens: int


class Memories:
    """Of one run folder; asked from several threads."""

    def __init__(self, address: str, most_tokens: int) -> None:
        """`most_tokens`: as many as a memory holds."""
        self._folder = RunFolder(address)
        self._place = join(self._folder.storage.root, MEMORY)
        self._most_tokens = most_tokens
        self._own: deque[_Kept] = deque()
        self._lock = threading.Lock()

    def write(self, shard: Shard, rows: Rows, vocabulary: str) -> None:
        """What a shard's rows said; `vocabulary` tells tokenizers apart. The oldest of this process make room."""
        tokens = sum(len(output) for _, output in rows)
        if not tokens:
            return
        name = f"{shard.output_name.removesuffix('.parquet')}-{tokens}.parquet"
        columns: list[Any] = [pa.array([row[side] for row in rows], _SCHEMA.types[side]) for side in (0, 1)]
        buffer = io.BytesIO()
        table = pa.table(columns, schema=_SCHEMA).replace_schema_metadata({VOCABULARY: vocabulary})
        pq.write_table(table, buffer, compression="zstd")
        path = join(self._place, name)
        try:
            self._folder.storage.write(path, buffer.getvalue())
            with self._lock:
                self._own.append(_Kept(path, tokens))
                old = self._beyond(list(reversed(self._own)))
                for _ in old:
                    self._own.popleft()
            self._delete(old)
        except (StorageAccessError, StorageError) as error:
            _log.warning("memory: %s is not kept: %s", name, error)

    def trim(self) -> int:
        """Leave the latest; returns how many files went. Only for the holder of the lease."""
        old = self._beyond(self._latest_first())
        self._delete(old)
        return len(old)

    @property
    def is_empty(self) -> bool:
        """Whether no shard left anything."""
        return not self._latest_first()

    def read(self, vocabulary: str) -> Iterator[tuple[list[int], list[int]]]:
        """Source and output of the latest rows, the oldest first, of about as many tokens as a memory holds."""
        latest = self._latest_first()
        beyond = {kept.path for kept in self._beyond(latest)}
        for kept in reversed(latest):
            if kept.path not in beyond:
                yield from self._read(kept.path, vocabulary)

    def _read(self, path: str, vocabulary: str) -> list[tuple[list[int], list[int]]]:
        try:
            with self._folder.storage.open_raw(path) as stream:
                table = pq.read_table(stream)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            _log.warning("memory: %s cannot be read, and is left out: %s", path, error)
            return []
        if (table.schema.metadata or {}).get(VOCABULARY) != vocabulary.encode():
            _log.warning("memory: %s is of another tokenizer, and is left out", path)
            return []
        sources, outputs = (cast(list[list[int]], table[name].to_pylist()) for name in _SCHEMA.names)
        return list(zip(sources, outputs, strict=True))

    def _latest_first(self) -> list[_Kept]:
        files = [(file, _NAME.fullmatch(base_name(file.path))) for file in self._folder.storage.files(self._place)]
        ours = sorted(((file.modified, file.path, match[1]) for file, match in files if match), reverse=True)
        return [_Kept(path, int(tokens)) for _, path, tokens in ours]

    def _beyond(self, latest_first: Sequence[_Kept]) -> list[_Kept]:
        """Those that nobody would read: what comes before them fills a memory."""
        tokens, old = 0, []
        for kept in latest_first:
            if tokens >= self._most_tokens:
                old.append(kept)
            tokens += kept.tokens
        return old

    def _delete(self, files: Sequence[_Kept]) -> None:
        for kept in files:
            self._folder.storage.delete(kept.path)


def own_memories(config: Config) -> Memories | None:
    """Of the run itself, if it drafts of a memory."""
    if not remembers(config):
        return None
    return Memories(config.output.path, config.drafter.memory_tokens)


def memories_before(config: Config) -> list[Memories]:
    """Those that a memory begins with, the run's own last. Raises `ConfigError` where `drafter.memory` has none."""
    own = own_memories(config)
    if own is None:
        return []
    settings = config.drafter
    named = settings.memory or settings.previous
    if named is None or named.rstrip("/") == config.output.path.rstrip("/"):
        return [own]
    RunFolder(named).check_is_run("drafter.memory" if settings.memory else "drafter.previous")
    others = Memories(named, settings.memory_tokens)
    if settings.memory and others.is_empty:
        raise ConfigError(
            f"drafter.memory: has no memory, got {named}; expected a run with memory in its drafter.kind. "
            "Name another, or set drafter.memory=null."
        )
    return [others, own]


def remembers(config: Config) -> bool:
    """Whether the run drafts of what rows said before."""
    return "memory" in config.drafter.kinds and config.policy.kind != "plain"
