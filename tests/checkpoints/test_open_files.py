"""Reads of open files, and what they announce to the system."""

import errno
import os
from pathlib import Path

import pytest
import torch

from weightspace.checkpoints.open_files import OpenFile

CHUNK = 2**16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two chunks, of ones and of twos."""
    path = tmp_path / "data"
    path.write_bytes(b"\1" * CHUNK + b"\2" * CHUNK)
    return path


def read(path: Path, offset: int, count: int = CHUNK) -> list[int]:
    """Return the different bytes of a read."""
    elements = torch.empty(count, dtype=torch.uint8)
    OpenFile(path).read_into(elements, offset)
    return elements.unique().tolist()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_what_follows_a_large_read_is_announced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: announced.append(advice))
    assert read(path, 0) == [1]
    assert read(path, 0, CHUNK - 1) == [1]
    assert read(path, CHUNK) == [2]
    assert announced == [(start, 2 * CHUNK, os.POSIX_FADV_WILLNEED) for start in (CHUNK, 2 * CHUNK)]


@pytest.mark.parametrize("advice", ["refused", "missing"])
def test_advice_that_fails_does_no_harm(advice: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    if advice == "missing":
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
        monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    assert read(path, CHUNK) == [2]
