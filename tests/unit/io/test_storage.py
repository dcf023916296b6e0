"""Files that appear whole or not at all."""

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
def test_a_stamp_goes_by_content_not_by_time(tmp_path: Path, size: int) -> None:
    storage = Storage(str(tmp_path))
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"x" * size)
    second.write_bytes(b"x" * size)
    stamp = storage.stamp(storage.info(str(first)))
    assert stamp == storage.stamp(storage.info(str(second)))
    second.write_bytes(b"x" * max(0, size - 1) + b"y")
    assert stamp != storage.stamp(storage.info(str(second)))
