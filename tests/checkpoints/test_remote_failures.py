"""Checkpoints behind URLs when the network, the disk, the library or the file fails: one line each."""

import threading
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from remote_files import SHARDS, Traffic, equal, single, state, weights

import weightspace as ws
from weightspace.checkpoints import remote
from weightspace.checkpoints.fetching import fetch, local_path, missing_bytes
from weightspace.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("cache")


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_file_that_changes_during_the_download_is_discarded(
    system: MemoryFileSystem, tmp_path: Path, traffic: Traffic
) -> None:
    url = single(system, tmp_path)
    path = local_path(url)
    ws.save_checkpoint(state(1), tmp_path / "b.safetensors")
    traffic.meanwhile = lambda: system.put_file(str(tmp_path / "b.safetensors"), "/a.safetensors")
    with pytest.raises(CheckpointError, match="has changed while it was read"):
        fetch([path])
    assert missing_bytes([path]) == path.stat().st_size
    traffic.meanwhile = lambda: None
    assert equal(ws.load_checkpoint(url), state(1))


def test_nothing_is_fetched_where_the_disk_has_no_room(
    sharded: str, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = local_path(sharded)
    before = traffic.read
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000}))
    with pytest.raises(CheckpointError, match=r"needs 160\.40 kB more in .*Make room, or set WEIGHTSPACE_CACHE"):
        fetch(weights(path))
    assert traffic.read == before


def test_a_library_that_never_answers_is_given_up(
    system: MemoryFileSystem, tmp_path: Path, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = single(system, tmp_path)
    monkeypatch.setattr(remote, "TIMEOUT", 0.05)
    never = threading.Event()
    traffic.meanwhile = never.wait
    with pytest.raises(CheckpointError, match=r"no answer within"):
        local_path(url)
    never.set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://none", "memory://none cannot be read: there is no such file or folder"),
        ("memory://bucket", "memory://bucket holds no checkpoint: expected one of model.safetensors"),
        ("memory://bucket/model/training.log", "is not a checkpoint: expected a folder, or a file ending in"),
        ("htp://host/a.safetensors", "the scheme 'htp' is unknown.*Did you mean http://"),
        ("ftp://me:secret@host/a", "A URL of ftp://host holds a password"),
    ],
)
def test_a_bad_url_is_one_line(url: str, message: str, sharded: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        local_path(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("no"), "access is denied"),
        (ConnectionError("[Errno -2] Name or service not known"), "no connection.*Is the network up"),
        (TimeoutError("slow"), "no connection"),
        (RuntimeError("first line\nsecond line"), r"cannot be read: first line\.$"),
        (FileNotFoundError("gone"), "there is no such file"),
        (_caused(FileNotFoundError("gone"), ConnectionError("refused")), r"no connection \(refused\)"),
    ],
)
def test_every_error_of_a_file_system_becomes_one_line(
    error: Exception, message: str, system: MemoryFileSystem, tmp_path: Path, traffic: Traffic
) -> None:
    url = single(system, tmp_path)
    traffic.fails_after, traffic.error = 0, error
    with pytest.raises(CheckpointError, match=message) as caught:
        local_path(url)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "s9", {"class": "s9fs_not_there.core.S9", "err": "Install it"})
    with pytest.raises(CheckpointError, match=r"needs the library s9fs_not_there.*Run: pip install s9fs_not_there$"):
        local_path("s9://bucket/model")


def test_a_damaged_header_speaks_of_the_url(system: MemoryFileSystem, cache: Path) -> None:
    system.pipe_file("/bad.safetensors", b"\xff" * 1000)
    with pytest.raises(CheckpointError, match=r"^memory://bad\.safetensors: the header claims") as caught:
        local_path("memory://bad.safetensors")
    assert str(cache) not in str(caught.value)


def test_a_shard_that_is_missing_is_named(sharded: str, system: MemoryFileSystem) -> None:
    system.rm(f"/bucket/model/{SHARDS[1]}")
    with pytest.raises(CheckpointError, match=f"{SHARDS[1]} is missing"):
        local_path(sharded)
