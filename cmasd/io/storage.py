"""Files by path or address, whatever holds them: fsspec over local disks, `s3://` and its other protocols.

A file written here appears whole or not at all: on disk by a temporary name in the same folder, fsync and rename;
elsewhere by one put. Credentials and endpoints come from the storage's own environment variables (`AWS_*`), never
from a configuration, and are looked up in each process.
"""

import hashlib
import io
import os
import posixpath
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec

TEMPORARY_PREFIX = ".tmp-"
"""Of files being written; what a killed process leaves behind starts with it."""
_STAMP_CHUNK_BYTES = 64 * 1024
_STAMP_CHUNKS = 10


@dataclass(frozen=True)
class Listed:
    """One stored file."""

    path: str
    """As the file system spells it: absolute, without the protocol."""
    bytes: int
    etag: str | None
    """The store's own content tag; null on disk."""


class Storage:
    """One file system."""

    def __init__(self, address: str) -> None:
        self.fs, self.root = cast(tuple[Any, str], fsspec.core.url_to_fs(address))
        self.is_local = "file" in ([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol)

    def open(self, path: str) -> io.IOBase:
        """For reading, decompressed by the name's ending (`.gz`, `.bz2`, `.xz`, `.zst`)."""
        return cast(io.IOBase, self.fs.open(path, "rb", compression="infer"))

    def open_raw(self, path: str) -> Any:
        """A binary file for reading, as stored; the libraries it goes to disagree about its type."""
        return self.fs.open(path, "rb")

    def read(self, path: str) -> bytes:
        """The whole file; `FileNotFoundError` if there is none."""
        self.fs.invalidate_cache()
        return cast(bytes, self.fs.cat_file(path))

    def is_folder(self, path: str) -> bool:
        """True also for a prefix of an object store that holds something."""
        return bool(self.fs.isdir(path))

    def is_file(self, path: str) -> bool:
        """True for a file or an object."""
        return bool(self.fs.isfile(path))

    def files(self, folder: str, recursive: bool = False) -> list[Listed]:
        """Files below a folder, by name; an absent folder has none."""
        self.fs.invalidate_cache()
        found = self.fs.find(folder, maxdepth=None if recursive else 1, detail=True)
        return [_listed(path, info) for path, info in sorted(found.items())]

    def glob(self, pattern: str) -> list[Listed]:
        """Files that match, by name."""
        found = self.fs.glob(pattern, detail=True)
        return [_listed(path, info) for path, info in sorted(found.items()) if info["type"] == "file"]

    def info(self, path: str) -> Listed:
        """One file."""
        return _listed(path, self.fs.info(path))

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file in one step."""
        if self.is_local:
            _write_local(Path(path), data)
        else:
            self.fs.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, in one step; False when it does. Of several callers one gets True."""
        try:
            if self.is_local:
                _create_local(Path(path), data)
            else:
                self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
                return False
            raise
        return True

    def delete(self, path: str) -> None:
        """Remove one file; absent is fine."""
        try:
            self.fs.rm_file(path)
        except FileNotFoundError:
            return

    def stamp(self, file: Listed) -> str:
        """Changes when the content does: the store's tag, or a digest of up to ten samples of 64 KiB over the file.

        Not the time of modification: a copied working directory must count as unchanged.
        """
        if file.etag:
            return file.etag.strip('"')
        digest = hashlib.sha256(str(file.bytes).encode())
        with self.open_raw(file.path) as stream:
            last = max(0, file.bytes - _STAMP_CHUNK_BYTES)
            for position in sorted({last * i // (_STAMP_CHUNKS - 1) for i in range(_STAMP_CHUNKS)}):
                stream.seek(position)
                digest.update(stream.read(_STAMP_CHUNK_BYTES))
        return digest.hexdigest()[:32]


def _listed(path: str, info: dict[str, Any]) -> Listed:
    return Listed(path, int(info.get("size") or 0), info.get("ETag") or info.get("etag"))


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
