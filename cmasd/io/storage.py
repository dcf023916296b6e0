"""Files by path or address, whatever holds them: fsspec over local disks, `s3://` and its other protocols.

A file written here appears whole or not at all: on disk by a temporary name in the same folder, fsync and rename;
elsewhere by one put, or a multipart upload that is aborted when a part fails. What a storage refuses or fails to do is
told as `StorageAccessError` or `StorageError` (`cmasd.io.faults`), so that it is never taken for bad content.
Credentials and endpoints come from the storage's own variables and files (`AWS_*`, `~/.aws`), never from a
configuration, and are looked up in each process.
"""

import hashlib
import io
import os
import posixpath
import uuid
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
from fsspec.exceptions import FSTimeoutError

from cmasd.io.faults import Guarded, told

TEMPORARY_PREFIX = ".tmp-"
"""Of files being written; what a killed process leaves behind starts with it."""
BY_TAG, BY_CONTENT, BY_TIME = "tag", "content", "time"
"""Kinds of stamps."""
_STAMP_CHUNK_BYTES = 64 * 1024
_STAMP_CHUNKS = 10
_READ_BUFFER_BYTES = 1024 * 1024
_PART_BYTES = 32 * 1024 * 1024
"""Of a multipart upload to S3; twice as much goes in one put."""
_ATTEMPTS = 8
"""At each request to S3, with a wait that doubles up to 20 s; `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE` override."""


PUT_SECONDS, PUT_BYTES_PER_SECOND = 120.0, 1024 * 1024
"""The longest that a put to S3 may take, its retries included, and what is added for its size: a client that waits to
be told to continue waits for ever. Then it is begun anew."""
_PUTS = 3


@dataclass(frozen=True)
class Listed:
    """One stored file."""

    path: str
    """As the file system spells it: absolute, without the protocol."""
    bytes: int
    etag: str | None
    """The store's own content tag; null on disk."""
    modified: str = ""
    """When, in seconds on disk, else as the store says it; empty where it does not."""


class Storage:
    """One file system."""

    def __init__(self, address: str) -> None:
        with told(address, "opened"):
            self.fs, self.root = cast(tuple[Any, str], fsspec.core.url_to_fs(address, **_options(address)))
        protocols = [self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol
        self.is_local = "file" in protocols
        self._is_s3 = "s3" in protocols

    def open(self, path: str) -> io.BufferedIOBase:
        """For reading, decompressed by the name's ending (`.gz`, `.bz2`, `.xz`, `.zst`)."""
        raw, kind = self.open_raw(path), fsspec.utils.infer_compression(path)
        if path.endswith(".zst"):  # which fsspec reads with another package only
            return io.BufferedReader(cast(Any, pa.CompressedInputStream(raw, "zstd")), _READ_BUFFER_BYTES)
        if kind is None:
            return cast(io.BufferedIOBase, raw)
        return cast(io.BufferedIOBase, fsspec.compression.compr[kind](raw, mode="rb"))

    def open_raw(self, path: str) -> Any:
        """A binary file for reading, as stored; the libraries it goes to disagree about its type."""
        with self._told(path, "read"):
            return io.BufferedReader(Guarded(self.fs.open(path, "rb"), self._shown(path)), _READ_BUFFER_BYTES)

    def read(self, path: str) -> bytes:
        """The whole file; `FileNotFoundError` if there is none."""
        self.fs.invalidate_cache()
        with self._told(path, "read"):
            return cast(bytes, self.fs.cat_file(path))

    def is_folder(self, path: str) -> bool:
        """True also for a prefix of an object store that holds something."""
        return self._type(path) == "directory"

    def is_file(self, path: str) -> bool:
        """True for a file or an object."""
        return self._type(path) == "file"

    def _type(self, path: str) -> str | None:
        """Asked with `info`, because fsspec's own `isfile` takes every failure for a no."""
        try:
            with self._told(path, "looked at"):
                return str(self.fs.info(path)["type"])
        except FileNotFoundError:
            return None

    def files(self, folder: str, recursive: bool = False) -> list[Listed]:
        """Files below a folder, by name; an absent folder has none.

        One level is asked for with `ls`, because fsspec's `find` with a depth takes a refusal for an empty folder.
        """
        self.fs.invalidate_cache()
        try:
            with self._told(folder, "listed"):
                entries = self.fs.find(folder, detail=True).values() if recursive else self.fs.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        files = {entry["name"]: entry for entry in entries if entry["type"] == "file"}
        return [_listed(path, entry) for path, entry in sorted(files.items()) if path != folder]

    def glob(self, pattern: str) -> list[Listed]:
        """Files that match, by name."""
        found: dict[str, Any] = {}
        with self._told(pattern, "listed"), suppress(FileNotFoundError):  # so `glob` tells of some missing buckets
            found = self.fs.glob(pattern, detail=True)
        if not found:
            self._type(pattern)  # a refusal, which `glob` takes for no match, is told here
        return [_listed(path, info) for path, info in sorted(found.items()) if info["type"] == "file"]

    def info(self, path: str) -> Listed:
        """One file."""
        with self._told(path, "looked at"):
            return _listed(path, self.fs.info(path))

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file in one step."""
        with self._told(path, "written", missing="the bucket or folder does not exist"):
            if self.is_local:
                _write_local(Path(path), data)
            else:
                self._put(path, data, "overwrite")

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, in one step; False when it does. Of several callers one gets True.

        False also when it was written and only the answer was lost: then the retry found it.
        """
        try:
            with self._told(path, "written", missing="the bucket or folder does not exist"):
                return self._created(path, data)
        except FileExistsError:
            return False

    def _created(self, path: str, data: bytes) -> bool:
        if self.is_local:
            _create_local(Path(path), data)
            return True
        try:
            self._put(path, data, "create")
        except OSError as error:
            if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
                return False
            raise
        return True

    def _put(self, path: str, data: bytes, mode: str) -> None:
        if not self._is_s3:
            self.fs.pipe_file(path, data, mode=mode)
            return
        seconds = PUT_SECONDS + len(data) / PUT_BYTES_PER_SECOND
        for left in reversed(range(_PUTS)):
            try:
                self.fs.pipe_file(path, data, mode=mode, chunksize=_PART_BYTES, timeout=seconds)
                return
            except FSTimeoutError:
                if not left:
                    raise

    def delete(self, path: str) -> None:
        """Remove one file; absent is fine."""
        try:
            with self._told(path, "deleted"):
                self.fs.rm_file(path)
        except FileNotFoundError:
            return

    def delete_folder(self, path: str) -> None:
        """Remove a folder and all in it; absent is fine."""
        try:
            self.fs.invalidate_cache()
            with self._told(path, "deleted"):
                self.fs.rm(path, recursive=True)
        except FileNotFoundError:
            return

    def _told(self, path: str, what: str, missing: str | None = None) -> AbstractContextManager[None]:
        return told(self._shown(path), what, missing)

    def _shown(self, path: str) -> str:
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def stamp(self, file: Listed, whole: bool) -> str:
        """What tells a changed file, behind its kind: the store's tag, or a digest of the whole content, or else the
        time of modification with a digest of ten samples of 64 KiB.

        Only the first two tell a copy from a changed file.
        """
        if file.etag:
            return BY_TAG + ":" + file.etag.strip('"')
        digest = hashlib.blake2b(str(file.bytes).encode(), digest_size=16)
        with self.open_raw(file.path) as stream:
            if whole:
                while chunk := stream.read(_READ_BUFFER_BYTES):
                    digest.update(chunk)
                return f"{BY_CONTENT}:{digest.hexdigest()}"
            last = max(0, file.bytes - _STAMP_CHUNK_BYTES)
            for position in sorted({last * i // (_STAMP_CHUNKS - 1) for i in range(_STAMP_CHUNKS)}):
                stream.seek(position)
                digest.update(stream.read(_STAMP_CHUNK_BYTES))
        return f"{BY_TIME}:{digest.hexdigest()}:{file.modified}"


def _options(address: str) -> dict[str, Any]:
    """How often S3 is asked again; what the user's environment says goes first."""
    if not address.startswith(("s3://", "s3a://")) or {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        return {}
    return {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": _ATTEMPTS}}}


def _listed(path: str, info: dict[str, Any]) -> Listed:
    times = (info.get(key) for key in ("mtime", "LastModified", "last_modified", "updated", "created"))
    time = next((time for time in times if time is not None), "")
    modified = f"{time:.6f}" if isinstance(time, float) else str(time)
    return Listed(path, int(info.get("size") or 0), info.get("ETag") or info.get("etag"), modified)


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create_local(path: Path, data: bytes) -> None:
    """A link appears with all its content, and never over another file, also on network file systems."""
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    _write_local(temporary, data)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def join(folder: str, *names: str) -> str:
    """Path below a folder."""
    return posixpath.join(folder, *names)


def base_name(path: str) -> str:
    """Last part of a path."""
    return posixpath.basename(path)
