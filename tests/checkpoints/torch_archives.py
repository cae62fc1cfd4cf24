"""Torch files written by hand, for tests of damaged and hostile ones."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bfloat16(), "n": torch.tensor(3)}


def saved(path: Path, content: Any = STATE, *, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def rewritten(
    path: Path,
    change: Mapping[str, Callable[[bytes], bytes]] | None = None,
    *,
    compress: int = zipfile.ZIP_STORED,
    new: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the records of an archive anew, as a zip program does, some of them changed."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in records.items():
            short = name.partition("/")[2]
            archive.writestr(name, (change or {}).get(short, lambda same: same)(content))
        for name, content in (new or {}).items():
            archive.writestr(f"{next(iter(records)).split('/')[0]}/{name}", content)
    return path


def archive(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """Write an archive with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path
