"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from cmasd.errors import StorageError
from cmasd.io.storage import TEMPORARY_PREFIX, Storage


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write(str(tmp_path / "file"), b"old")

    def fail(self: Path, target: Path) -> None:
        assert self.name.startswith(TEMPORARY_PREFIX)
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match=r"file: cannot be written: disk gone"):
        storage.write(str(tmp_path / "file"), b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert storage.read(str(tmp_path / "file")) == b"old"


def test_listing_an_absent_folder_is_empty(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "nothing"))
    assert storage.files(storage.root) == []
    storage.delete(str(tmp_path / "nothing" / "file"))
    with pytest.raises(FileNotFoundError):
        storage.read(str(tmp_path / "nothing" / "file"))


@pytest.mark.parametrize("size", [0, 10, 70_000, 2_000_000])
def test_a_stamp_of_the_whole_goes_by_content_not_by_time(tmp_path: Path, size: int) -> None:
    storage = Storage(str(tmp_path))
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"x" * size)
    second.write_bytes(b"x" * size)
    os.utime(second, (1, 1))
    stamp = storage.stamp(storage.info(str(first)), whole=True)
    assert stamp == storage.stamp(storage.info(str(second)), whole=True)
    for place in (0, size // 3, size - 1):
        second.write_bytes(b"x" * place + b"y" + b"x" * (size - place - 1))
        assert stamp != storage.stamp(storage.info(str(second)), whole=True)


def test_a_stamp_of_samples_goes_by_time_too(tmp_path: Path) -> None:
    storage, path = Storage(str(tmp_path)), tmp_path / "file"
    path.write_bytes(b"x" * 2_000_000)
    os.utime(path, (7, 7.25))
    stamp = storage.stamp(storage.info(str(path)), whole=False)
    assert stamp == storage.stamp(storage.info(str(path)), whole=False)
    assert stamp.endswith(":7.250000")
    os.utime(path, (7, 7.250001))
    assert stamp != storage.stamp(storage.info(str(path)), whole=False)


def test_a_store_without_tags_has_times(tmp_path: Path) -> None:
    storage = Storage("memory://bucket/file")
    storage.write(storage.root, b"one")
    stamp = storage.stamp(storage.info(storage.root), whole=False)
    storage.write(storage.root, b"one")
    assert stamp != storage.stamp(storage.info(storage.root), whole=False)
