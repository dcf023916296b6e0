"""Files that are recordings, one a row: a folder of them is one input, whose rows are its files by name.

A row's id is the file's name below the folder, unless a column is asked for; `file` is one. Only names are read here:
the recordings are opened where they are decoded.
"""

import posixpath
from collections.abc import Sequence

import pyarrow as pa

from cmasd.io.formats.base import (
    PIECE_ROWS,
    RECORDING,
    Count,
    Pieces,
    ReadSpec,
    Source,
    Wanted,
    canonical,
    legible,
    partition_values,
)
from cmasd.io.storage import Listed, Storage

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
FILE = "file"
"""The column of names."""


def audio_files(storage: Storage, root: str) -> list[Listed]:
    """The recordings at a file, below a folder (names starting with `.` or `_` left out) or of a glob, by name."""
    if storage.is_file(root):
        return [storage.info(root)]
    found = storage.files(root, recursive=True) if storage.is_folder(root) else storage.glob(root)
    return [file for file in found if file.path.lower().endswith(ENDINGS) and not _is_hidden(file.path, root)]


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) and part != ".." for part in posixpath.relpath(path, root).split("/"))


def names_of(files: Sequence[Listed]) -> list[str]:
    """Below the folder that holds all."""
    folders = [posixpath.dirname(file.path) for file in files]
    common = posixpath.commonpath(folders) if files and all(folders) else ""
    return [legible(file.path.removeprefix(common).lstrip("/")) for file in files]


class AudioFiles:
    """Recordings; `Source.path` is a file, a folder or a glob."""

    endings: tuple[str, ...] = ENDINGS
    typed = True

    def count(self, source: Source, id_column: str | None = None) -> Count:
        """By listing."""
        return Count(len(audio_files(source.storage, source.path)))

    def columns(self, source: Source, names: Sequence[str]) -> dict[str, pa.DataType]:
        """The name, and the recording under whatever name that is asked for."""
        return {names[0]: RECORDING, FILE: pa.string()}

    def pieces(self, source: Source, spec: ReadSpec, wanted: Wanted) -> Pieces:
        """By listing again."""
        files = audio_files(source.storage, source.path)
        names = names_of(files)
        for row in range(0, len(files), PIECE_ROWS):
            stop = min(row + PIECE_ROWS, len(files))
            if wanted(row, stop):
                yield row, _piece(files[row:stop], names[row:stop], source, spec)


def _piece(files: Sequence[Listed], names: Sequence[str], source: Source, spec: ReadSpec) -> pa.Table:
    in_folders = partition_values(source, spec)
    kept = {
        field.name: pa.array(names if field.name == FILE else [in_folders.get(field.name)] * len(names), field.type)
        for field in spec.keep
    }
    recordings = [{"path": file.path} for file in files]
    return canonical(names, recordings, [None] * len(files), pa.table(kept, schema=spec.keep), spec)
