"""`input.path` -> the files to read, in a fixed order, with their format.

A path is a file, a folder (searched recursively, names starting with `.` or `_` left out), a glob, an address such as
`s3://bucket/key`, a `save_to_disk` folder, or the name of a Hugging Face dataset.
"""

import hashlib
import json
import posixpath
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cmasd.config.corpus import InputConfig
from cmasd.errors import InputError
from cmasd.io.formats import FORMATS
from cmasd.io.formats import huggingface as hf
from cmasd.io.formats.audio import ENDINGS, audio_files
from cmasd.io.formats.base import legible
from cmasd.io.storage import Listed, Storage, base_name, join

_COMPRESSED = re.compile(r"\.(gz|bz2|xz|zst)$")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")

WHOLE_BYTES = 1024**3
"""Of local input in all, up to which every byte is compared between two starts: a matter of a second or two."""


@dataclass(frozen=True)
class InputFile:
    """One file as listed, before its rows are counted."""

    name: str
    """Path below the folder that holds all files."""
    path: str
    """Where to open it."""
    bytes: int
    stamp: str
    """Changes when the content does, as far as its kind tells (`Storage.stamp`)."""


@dataclass(frozen=True)
class Listing:
    """All input files."""

    format: str
    """A key of `FORMATS`."""
    files: list[InputFile]


def list_inputs(config: InputConfig) -> Listing:
    """Raises `InputError` when nothing is there or the format is unclear."""
    if config.format == "datasets" or _is_hub_name(config):
        return _list_datasets(config)
    storage = Storage(config.path)
    if config.format == "audio":
        return _list_recordings(storage, audio_files(storage, storage.root), config)
    if storage.is_file(storage.root):
        found = [storage.info(storage.root)]
    elif storage.is_folder(storage.root):
        if _saved_dataset(storage, config) and config.format == "auto":
            return _list_datasets(config)
        found = _in_folder(storage, config)
    else:
        found = storage.glob(storage.root) if any(c in config.path for c in "*?[") else []
    if not found:
        raise InputError(f"input.path: no input files at {config.path}; {_expected(storage)}")
    kind = _format_of(found, config)
    return _list_recordings(storage, found, config) if kind == "audio" else _listing(storage, found, kind, config)


def _list_recordings(storage: Storage, found: list[Listed], config: InputConfig) -> Listing:
    """All as one file, whose rows they are: a file each would be a task and an output file each."""
    if not found:
        raise InputError(f"input.path: no recordings at {config.path}; expected names ending in {', '.join(ENDINGS)}.")
    listed = _listing(storage, found, "audio", config).files
    stamp = hashlib.sha256("\n".join(f"{file.name}\t{file.stamp}" for file in listed).encode()).hexdigest()[:32]
    size = sum(file.bytes for file in listed)
    return Listing("audio", [InputFile(legible(base_name(storage.root)), storage.root, size, f"files:{stamp}")])


def _expected(storage: Storage) -> str:
    endings = ", ".join(ending for kind in FORMATS.values() for ending in kind.endings)
    if storage.is_folder(storage.root):
        return f"expected names ending in {endings}, compressed or not. Rename the files, or set input.format."
    return "expected a file, a folder or a glob. Correct the path."


def _listing(storage: Storage, found: list[Listed], format: str, config: InputConfig) -> Listing:
    small = storage.is_local and sum(file.bytes for file in found) <= WHOLE_BYTES
    whole = config.change_check == "content" or small
    parents = [posixpath.dirname(file.path) for file in found]
    common = posixpath.commonpath(parents) if all(parents) else ""
    folder = f"{common.rstrip('/')}/" if common else ""  # a store's keys are kept as they are: `a//b` is not `a/b`
    with ThreadPoolExecutor(16) as pool:
        stamps = list(pool.map(lambda file: storage.stamp(file, whole), found))
    files = [
        InputFile(legible(file.path.removeprefix(folder)), file.path, file.bytes, stamp)
        for file, stamp in zip(found, stamps, strict=True)
    ]
    return Listing(format, files)


def _in_folder(storage: Storage, config: InputConfig) -> list[Listed]:
    files = [file for file in storage.files(storage.root, recursive=True) if not _hidden(file.path, storage.root)]
    if config.format == "auto":
        return [file for file in files if _format_by_name(file.path)]
    return [file for file in files if _format_by_name(file.path) == config.format] or files


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in posixpath.relpath(path, root).split("/"))


def _format_by_name(path: str) -> str | None:
    name = _COMPRESSED.sub("", base_name(path).lower())
    return next(
        (key for key in ("parquet", "jsonl", "csv", "text", "audio") if name.endswith(FORMATS[key].endings)), None
    )


def _format_of(found: list[Listed], config: InputConfig) -> str:
    if config.format != "auto":
        return config.format
    kinds = Counter(_format_by_name(file.path) for file in found)
    if None in kinds:
        unknown = next(file.path for file in found if _format_by_name(file.path) is None)
        raise InputError(
            f"{unknown}: the name's ending does not tell its format. "
            "Set input.format to parquet, jsonl, csv, text, audio or datasets."
        )
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=str))
        raise InputError(f"{config.path}: holds files of several formats ({counts}). Set input.format to one of them.")
    return str(next(iter(kinds)))


def _is_hub_name(config: InputConfig) -> bool:
    """A name of the right shape where no such file is, nor the folder it would be in."""
    if config.format != "auto" or not _HUB_NAME.fullmatch(config.path) or _format_by_name(config.path):
        return False
    storage = Storage(config.path)
    parent = Storage(config.path.split("/")[0])
    exists = storage.is_file(storage.root) or storage.is_folder(storage.root)
    return not exists and not ("/" in config.path and parent.is_folder(parent.root))


def _saved_dataset(storage: Storage, config: InputConfig) -> str | None:
    """The folder of the split inside a `save_to_disk` folder; null when it is none."""
    if storage.is_file(join(storage.root, "state.json")):
        return storage.root
    if not storage.is_file(join(storage.root, "dataset_dict.json")):
        return None
    splits = _names(storage, join(storage.root, "dataset_dict.json"), "splits", "")
    if config.split not in splits:
        raise InputError(f"{config.path}: no split '{config.split}' (has: {', '.join(splits)}). Set input.split.")
    return join(storage.root, config.split)


def _list_datasets(config: InputConfig) -> Listing:
    storage = Storage(config.path)
    folder = _saved_dataset(storage, config) if storage.is_folder(storage.root) else None
    if folder is None:
        return _list_named(config)
    state = join(folder, "state.json")
    files = []
    for name in _names(storage, state, "_data_files", "filename"):
        if base_name(name) != name or not storage.is_file(join(folder, name)):
            raise InputError(f"{state}: names a file that is not beside it, got {name!r}. Save the dataset again.")
        files.append(storage.info(join(folder, name)))
    return _listing(storage, files, "arrow", config)


def _names(storage: Storage, path: str, key: str, field: str) -> list[str]:
    """Names in one of the JSON files of a `save_to_disk` folder."""
    try:
        entries = json.loads(storage.read(path))[key]
        names = [entry[field] if field else entry for entry in entries]
        if all(isinstance(name, str) for name in names):
            return names
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(f"{path}: is damaged, expected JSON with names in '{key}'. Save the dataset again.")


def _list_named(config: InputConfig) -> Listing:
    path = f"{config.path}@{config.split}"
    try:
        stamp = hf.stamp(path)
    except Exception as error:  # noqa: BLE001 - the library raises whatever its loaders and the network raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"input.path: no file, folder or Hugging Face dataset can be read at {config.path} "
            f"(split {config.split}): {reason}"
        ) from None
    return Listing("hub", [InputFile(base_name(config.path), path, 0, stamp)])
