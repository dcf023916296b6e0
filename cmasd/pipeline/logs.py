"""Log lines that say which run, actor and shard they are about, as text or as one JSON object each.

The library logs below `cmasd`; only a process that calls `configure` shows any of it, on stderr. In an actor, that is
the worker's file in Ray's log folder of its node. Fields beyond the usual ones travel as `extra={"fields": {...}}`.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from cmasd.config.tree import Config
from cmasd.pipeline.escaping import takes_all_letters

_PROCESS: dict[str, str] = {}
_ABOUT: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


def configure(config: Config, actor: str | None = None) -> None:
    """Show this process's lines as `config.logging` says; a second call replaces the first. Null actor: the driver."""
    _PROCESS.update(run=config.output.path, actor=actor or "driver")
    handler = _StderrHandler()
    handler.setFormatter(JsonFormatter() if config.logging.format == "json" else TextFormatter())
    logger = logging.getLogger("cmasd")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(config.logging.level.upper())


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Lines of this thread get these fields meanwhile."""
    token = _ABOUT.set({**(_ABOUT.get() or {}), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to what is `sys.stderr` at that moment, which Ray and tests exchange."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """All that a line says besides its text; shard is null outside one."""
    where = {"run": None, "actor": None, "shard": None, **_PROCESS, **(_ABOUT.get() or {})}
    return {**where, **getattr(record, "fields", {})}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A traceback is one more field."""
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **fields_of(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=not takes_all_letters(sys.stderr), default=str)


class TextFormatter(logging.Formatter):
    """Time, level, text, then `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """A traceback follows on lines of its own."""
        fields = " ".join(f"{key}={value}" for key, value in fields_of(record).items() if value is not None)
        line = f"{_time(record)} {record.levelname} {record.getMessage()} [{fields}]"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
