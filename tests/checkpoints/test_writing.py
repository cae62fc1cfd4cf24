"""A write that fails leaves the old checkpoint as it was, and nothing beside it."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightspace.checkpoints import atomic_write, load_checkpoint, save_checkpoint
from weightspace.errors import CheckpointError

PATHS = ("model.safetensors", "model.pt", "folder")
OLD = {"w": torch.zeros(100)}
NEW = {"w": torch.ones(100)}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(error: BaseException, at: int = 1, call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a function that raises when it is called for the ``at``-th time, and does as ``call`` before."""
    count = 0

    def fail(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise error
        return call(*args, **options) if call else None

    return fail


@pytest.fixture(params=[True, False], ids=["over an old one", "new"])
def old(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_leaves_everything_as_it_was(
    path: str, function: str, error: BaseException, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        save_checkpoint(OLD, tmp_path / path)
    before = tree(tmp_path)
    monkeypatch.setattr(os, function, failing(error))
    monkeypatch.setattr(atomic_write, "exchange", lambda a, b: False)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_checkpoint(NEW, tmp_path / path)
    assert tree(tmp_path) == before
    assert [found.name for found in tmp_path.iterdir()] == ([path] if old else [])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_a_folder_comes_back_when_the_second_rename_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(OLD, tmp_path / "m")
    before = tree(tmp_path)
    monkeypatch.setattr(atomic_write, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "replace", failing(error, at=2, call=os.replace))
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save_checkpoint(NEW, tmp_path / "m")
    assert tree(tmp_path) == before


class SmallDisk(io.FileIO):
    """A file on a disk with room for 300 bytes."""

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > 300:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def small_open(path: Path, mode: str) -> Any:
    return io.BufferedRandom(SmallDisk(path, mode.replace("b", ""))) if "+" in mode else open(path, mode)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [100, 100_000])
def test_a_full_disk_is_one_line_that_names_the_file(
    path: str, size: int, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        save_checkpoint(OLD, tmp_path / path)
    before = tree(tmp_path)
    monkeypatch.setattr(atomic_write, "open", small_open, raising=False)
    with pytest.raises(CheckpointError, match=rf"/{path} cannot be written: No space left on device\.$"):
        save_checkpoint({"w": torch.ones(size)}, tmp_path / path, metadata={"a": "1"})
    assert tree(tmp_path) == before
    assert [found.name for found in tmp_path.iterdir()] == ([path] if old else [])


@pytest.mark.parametrize("path", PATHS)
def test_the_new_file_takes_the_place_of_the_old_one(path: str, tmp_path: Path) -> None:
    save_checkpoint(OLD, tmp_path / path)
    mapped = load_checkpoint(tmp_path / path)
    save_checkpoint(NEW, tmp_path / path)
    assert load_checkpoint(tmp_path / path)["w"].eq(1).all()
    assert mapped["w"].eq(0).all()
    assert [found.name for found in tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("path", PATHS)
def test_data_reach_the_disk_before_the_rename(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *args: (calls.append("fsync"), fsync(*args))[1])
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append("replace"), replace(*args))[1])
    save_checkpoint(NEW, tmp_path / path)
    assert calls[0] == "fsync"
    assert calls[-2:] == ["replace", "fsync"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    save_checkpoint(NEW, tmp_path / "a" / "b" / "c.safetensors")
    assert load_checkpoint(tmp_path / "a" / "b" / "c.safetensors")["w"].eq(1).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_link_stays_a_link(path: str, tmp_path: Path) -> None:
    save_checkpoint(OLD, tmp_path / "real" / path)
    (tmp_path / path).symlink_to(tmp_path / "real" / path)
    save_checkpoint(NEW, tmp_path / path)
    assert (tmp_path / path).is_symlink()
    assert load_checkpoint(tmp_path / "real" / path)["w"].eq(1).all()


def test_a_folder_or_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "pipe.pt").symlink_to("/dev/full")
    (tmp_path / "file").write_text("precious")
    for name, message in (
        ("a.safetensors", "is a folder"),
        ("pipe.pt", "not a regular file"),
        ("file", "is a file"),
    ):
        with pytest.raises(CheckpointError, match=f"{name} {message}|{name} is {message}"):
            save_checkpoint(NEW, tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_readable_by_all_is_written(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save_checkpoint(NEW, tmp_path / "a.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
