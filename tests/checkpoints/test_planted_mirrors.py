"""A mirror's record is believed in the cache and nowhere else, and no name in it or in a listing leads out of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import weightspace as ws
from weightspace.checkpoints import fetching
from weightspace.checkpoints.fetching import fetch, local_path, missing_bytes
from weightspace.checkpoints.mirror import Mirror
from weightspace.checkpoints.remote import Remote, RemoteFile
from weightspace.errors import CheckpointError
from weightspace.merging import merge_files

RECORD = "weightspace-mirror.json"
#: Names that a file system could list, none of which is that of a file in a folder.
ODD_NAMES = (
    *("", ".", "..", "../evil", "a/..", "a//b", "a/b/c", "/etc/passwd"),
    *("a\\b", "..\\b", "a\0b", "a\nb", "\x1b[2J", "\x7f"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def system() -> Iterator[MemoryFileSystem]:
    found = MemoryFileSystem()
    found.store.clear()
    yield found
    found.store.clear()


def saved(path: Path, value: float = 1.0) -> Path:
    ws.save_checkpoint({"w": torch.full((4,), value)}, path)
    return path


def planted(home: Path, file: Path, url: str, name: str, path: str) -> None:
    """Write the record of a mirror in which a file is still to be fetched."""
    entry = {"path": "/evil.safetensors", "size": file.stat().st_size, "stamp": "created:1", "sha256": ""}
    home.mkdir(parents=True, exist_ok=True)
    (home / RECORD).write_text(json.dumps({"url": url, "path": path, "files": {name: entry}}))


def all_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("path", ["model", "../../..", "/tmp"])
def test_a_record_beside_an_input_is_a_file_like_any_other(
    level: int, path: str, tmp_path: Path, system: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "downloads" / "files" / "model"
    saved(inside)
    saved(tmp_path / "other", 3.0)
    weights = inside / "model.safetensors"
    system.pipe_file("/evil.safetensors", b"x" * weights.stat().st_size)
    planted(inside.parents[level - 1], weights, "memory://evil.safetensors", weights.name, path)
    monkeypatch.setattr(fetching, "Remote", lambda url: pytest.fail(f"{url} was asked"))
    before = all_files(tmp_path)
    assert missing_bytes([weights]) == 0
    merge_files([str(inside), str(tmp_path / "other")], tmp_path / "out")
    assert torch.equal(ws.load_checkpoint(tmp_path / "out")["w"], torch.full((4,), 2.0))
    assert {file.relative_to(tmp_path).parts[0] for file in all_files(tmp_path) - before} == {"out"}


def test_a_record_in_the_input_folder_itself_is_left_alone(tmp_path: Path, system: MemoryFileSystem) -> None:
    folder = saved(tmp_path / "model")
    planted(folder, folder / "model.safetensors", "memory://evil.safetensors", "model.safetensors", "model")
    fetch([folder / "model.safetensors"])
    assert torch.equal(ws.load_checkpoint(folder)["w"], torch.ones(4))


def mirrored(system: MemoryFileSystem, tmp_path: Path) -> Path:
    """A mirror of which only the header is there."""
    system.put_file(str(saved(tmp_path / "a.safetensors")), "/a.safetensors")
    return local_path("memory://a.safetensors")


def test_a_mirror_is_recognised_through_a_link(system: MemoryFileSystem, tmp_path: Path) -> None:
    path = mirrored(system, tmp_path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert missing_bytes([link]) == path.stat().st_size
    fetch([link])
    assert torch.equal(ws.load_checkpoint(link)["w"], torch.ones(4))


CHANGES: dict[str, Any] = {
    "another URL": lambda record: record | {"url": "memory://other"},
    "a path for a URL": lambda record: record | {"url": "/etc/passwd"},
    "a larger file": lambda record: (
        record | {"files": {"a.safetensors": {**record["files"]["a.safetensors"], "size": 9}}}
    ),
    "another name": lambda record: record | {"files": {"../a": record["files"]["a.safetensors"]}},
    "a negative size": lambda record: record | {"files": {"a.safetensors": {"path": "a", "size": -1, "stamp": ""}}},
    "a size of text": lambda record: record | {"files": {"a.safetensors": {"path": "a", "size": "1", "stamp": ""}}},
    "a list": lambda record: [record],
    "no files": lambda record: {"url": record["url"], "path": record["path"]},
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_is_not_that_of_its_folder_is_refused(
    change: str, system: MemoryFileSystem, tmp_path: Path
) -> None:
    path = mirrored(system, tmp_path)
    record = path.parents[1] / RECORD
    record.write_text(json.dumps(CHANGES[change](json.loads(record.read_text()))))
    with pytest.raises(CheckpointError, match=r"weightspace-mirror\.json (is|is damaged|belongs to another folder)"):
        fetch([path])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_mirror_has_no_name_that_leads_elsewhere(name: str, tmp_path: Path) -> None:
    file = RemoteFile("/x", 1, "created:1")
    with pytest.raises(CheckpointError, match="expected a name without a path"):
        Mirror("memory://x", tmp_path, tmp_path / "files" / "x", {name: file})


@pytest.mark.parametrize("name", ["..", "a\\..\\b.safetensors", "a\nb.safetensors"])
def test_a_listing_with_odd_names_is_refused_and_writes_nothing(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remote, "listing", lambda *_: (False, {name: RemoteFile("/x", 1, "created:1")}))
    with pytest.raises(CheckpointError, match=r"expected a name without a path|is not a checkpoint") as caught:
        local_path("memory://x.safetensors")
    assert "\n" not in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize("url", ["memory://bucket/..", "memory://bucket/a\\b"])
def test_a_url_that_ends_in_an_odd_name_is_refused(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote, "listing", lambda *_: (True, {"model.safetensors": RemoteFile("/x", 1, "created:1")}))
    with pytest.raises(CheckpointError):
        local_path(url)
    assert not cache.exists() or not all_files(cache)


def test_a_file_that_comes_with_more_bytes_than_were_listed_is_refused(
    system: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mirrored(system, tmp_path)
    content = Remote.chunks
    monkeypatch.setattr(Remote, "chunks", lambda *arguments: [*content(*arguments), b"more"])
    with pytest.raises(CheckpointError, match=r"arrived with .* bytes, expected"):
        fetch([path])
    assert os.listdir(path.parents[1] / "parts") == []
