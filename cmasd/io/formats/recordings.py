"""Rows that are recordings: what a column says of them, in the shape in which they travel to whoever decodes them.

That shape is `RECORDING`: the encoded bytes, or else where they lie, and the settings of `speech.*` that the row has of
its own. Nothing is decoded here. A path is taken from the folder of the file that names it; it may be absolute, or an
address of the same storage, but lead to no other: what stands in a row is no reason to open a connection.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cmasd.io.formats.base import ReadSpec, Source, abbreviate, printable
from cmasd.io.storage import join

TASKS = ("transcribe", "translate")
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""In files without types."""
Checked = tuple[dict[str, Any] | None, str | None]
"""(a recording, null) or (null, what is wrong with it)."""


def shown(value: Any) -> str:
    """What is decoded from, for people: a recording by its name."""
    if not isinstance(value, dict):
        return str(value)
    return value["path"] or f"a recording of {len(value['bytes'] or b''):,} bytes"


def is_recording(kind: Any) -> bool:
    """Whether a column of this type can hold recordings: bytes, paths, or a struct with either."""
    if pa.types.is_struct(kind):
        return any(kind.field(place).name in ("bytes", "path") for place in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(test(kind) for test in (*tests, pa.types.is_large_binary, pa.types.is_null))


def check_recording(value: Any, row: Mapping[str, Any], source: Source, spec: ReadSpec) -> Checked:
    """`row` holds the columns of its settings."""
    data, path, wrong = _parts(value)
    if wrong is None and data is None and path is not None:
        path, wrong = _located(path, source)
    settings, misfit = _settings(row, spec)
    if wrong is not None or misfit is not None:
        return None, wrong or misfit
    return {"bytes": data, "path": None if data is not None else path, **settings}, None


def _parts(value: Any) -> tuple[bytes | None, str | None, str | None]:
    """(bytes, path, what is wrong)."""
    if value is None:
        return None, None, "recording is null"
    if isinstance(value, bytes):
        return value, None, None
    if isinstance(value, str):
        return None, value, None
    if not isinstance(value, dict):
        return None, None, f"recording is {type(value).__name__}, expected bytes or a path: {abbreviate(value)}"
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, bytes):
        return data, None, None
    if data is None and isinstance(path, str):
        return None, path, None
    return None, None, f"recording has neither bytes nor a path, got {abbreviate(value)}"


def _located(path: str, source: Source) -> tuple[str | None, str | None]:
    """(the path as the storage spells it, null) or (null, what is wrong)."""
    if not path.strip() or "\0" in path:
        return None, f"recording has no path that can be opened, got {abbreviate(path)}"
    storage = source.storage
    if "://" in path:
        protocols = [storage.fs.protocol] if isinstance(storage.fs.protocol, str) else storage.fs.protocol
        if path.partition("://")[0] not in protocols:
            return None, f"recording lies on another storage than the input, got {printable(path)}"
        return str(storage.fs._strip_protocol(path)), None
    if posixpath.isabs(path):
        return (path, None) if storage.is_local else (None, f"recording has a path of no bucket, got {printable(path)}")
    return posixpath.normpath(join(posixpath.dirname(source.path), path)), None


def _settings(row: Mapping[str, Any], spec: ReadSpec) -> tuple[dict[str, Any], str | None]:
    """The row's own, and what is wrong with them."""
    found: dict[str, Any] = {"language": None, "task": None, "timestamps": None}
    for name, column in (spec.settings or {}).items():
        value = row.get(column)
        if value is None or value == "":
            continue
        if name == "timestamps":
            value = TRUTHS.get(str(value).strip().lower())
        if value is None or (name == "task" and value not in TASKS) or (name == "language" and type(value) is not str):
            expected = {"timestamps": "true or false", "task": " or ".join(TASKS), "language": "a language"}[name]
            return found, f"column '{column}' is {abbreviate(row.get(column))}, expected {expected}"
        found[name] = value
    return found, None
