"""Checkpoints behind URLs: what is asked for over the network and when, and what is said when it fails."""

import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import weightspace as ws
from weightspace.checkpoints import StateDict, load_metadata, remote
from weightspace.checkpoints.fetching import fetch, local_path, missing_bytes
from weightspace.checkpoints.metadata import read_contents
from weightspace.checkpoints.remote import is_url
from weightspace.errors import CheckpointError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Traffic:
    """What is read of ``memory://``, and when that fails."""

    def __init__(self) -> None:
        self.read = 0
        self.fails_after: int | None = None
        self.error: Exception = ConnectionError("the line is cut")
        self.meanwhile: Callable[[], object] = lambda: None

    def reader(self, file: MemoryFile, size: int = -1) -> bytes:
        if self.fails_after is not None and self.read + size > self.fails_after:
            raise self.error
        self.meanwhile()
        piece = io.BytesIO.read(file, size)
        self.read += len(piece)
        return piece


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "CHUNK", 10_000)
    return tmp_path / "cache"


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    found = Traffic()
    monkeypatch.setattr(MemoryFile, "read", lambda file, size=-1: found.reader(file, size), raising=False)
    return found


@pytest.fixture
def system() -> Iterator[MemoryFileSystem]:
    found = MemoryFileSystem()
    found.store.clear()
    yield found
    found.store.clear()


def state(seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{layer}.weight": torch.randn(100, 100, generator=generator) for layer in range(4)}


def equal(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture
def sharded(system: MemoryFileSystem, tmp_path: Path) -> str:
    """A folder of two shards with its companions, and some things that are nobody's business."""
    folder = tmp_path / "model"
    folder.mkdir()
    halves = [dict(list(state().items())[:2]), dict(list(state().items())[2:])]
    for name, half in zip(SHARDS, halves, strict=True):
        ws.save_checkpoint(half, folder / name)
    index = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"a": "b"}, "weight_map": index}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "optimizer.safetensors").write_bytes(bytes(1_000_000))
    (folder / "training.log").write_bytes(bytes(1_000_000))
    system.put(str(folder), "/bucket/", recursive=True)
    return "memory://bucket/model"


def single(system: MemoryFileSystem, tmp_path: Path, name: str = "a.safetensors") -> str:
    ws.save_checkpoint(state(), tmp_path / name)
    system.put_file(str(tmp_path / name), f"/{name}")
    return f"memory://{name}"


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def test_what_has_a_scheme_is_a_url() -> None:
    assert all(map(is_url, ["hf://org/model", "s3://b", "memory://x", "simplecache::s3://b/x", "file:///tmp/x"]))
    assert not any(map(is_url, ["a.safetensors", "/tmp/a//b", "hf:/org", "C:\\models", "models/hf://x"]))
    assert not is_url(Path("models"))


def test_a_path_stays_as_it_is(tmp_path: Path, cache: Path) -> None:
    assert local_path("models/a") == Path("models/a")
    assert local_path(f"file://{tmp_path}/a") == tmp_path / "a"
    assert not cache.exists()


def test_a_folder_shows_all_its_headers_and_only_they_are_read(
    sharded: str, system: MemoryFileSystem, traffic: Traffic, tmp_path: Path
) -> None:
    path = local_path(sharded)
    original = tmp_path / "model"
    assert path.name == "model"
    assert read_contents(path).tensors == read_contents(original).tensors
    names = {"config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS}
    assert {file.name for file in path.iterdir()} == names
    assert all((path / name).stat().st_size == (original / name).stat().st_size for name in names)
    assert traffic.read < 2_000 + 4 * 80
    assert sum(stored(file) for file in weights(path)) < 20_000
    assert missing_bytes(weights(path)) == sum(file.stat().st_size for file in weights(path))


def test_the_modules_that_follow_a_network_come_with_it(system: MemoryFileSystem, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    ws.save_checkpoint(state(), folder / "model.safetensors")
    ws.save_checkpoint(state(), folder / "2_Dense" / "model.safetensors")
    for name in (
        "modules.json",
        "1_Pooling/config.json",
        "templates/x.jinja",
        "onnx/model.onnx",
        "fp16/model.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    system.put(str(folder), "/bucket/", recursive=True)
    path = local_path("memory://bucket/model")
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert names == {
        *("model.safetensors", "modules.json", "1_Pooling/config.json"),
        *("2_Dense/model.safetensors", "templates/x.jinja"),
    }
    assert equal(ws.load_checkpoint(path / "2_Dense"), state())
    assert missing_bytes(weights(path)) == (folder / "model.safetensors").stat().st_size


def test_headers_are_read_once(sharded: str, traffic: Traffic) -> None:
    path = local_path(sharded)
    before = traffic.read
    assert local_path(sharded) == path
    assert traffic.read == before


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "pytorch_model.bin"])
def test_a_file_behind_a_url_is_loaded(name: str, system: MemoryFileSystem, tmp_path: Path) -> None:
    url = single(system, tmp_path, name)
    assert equal(ws.load_checkpoint(url), state())
    assert local_path(url).name == name
    assert load_metadata(url) == load_metadata(tmp_path / name)
    assert local_path(url).read_bytes() == (tmp_path / name).read_bytes()


def test_a_folder_behind_a_url_is_loaded(sharded: str) -> None:
    assert equal(ws.load_checkpoint(sharded), state())


def test_the_time_of_change_says_only_what_the_content_is(sharded: str) -> None:
    path = local_path(sharded)
    before = [file.stat().st_mtime_ns for file in weights(path)]
    fetch(weights(path))
    assert [file.stat().st_mtime_ns for file in weights(path)] == before
    assert missing_bytes(weights(path)) == 0


def test_a_second_time_nothing_is_read(system: MemoryFileSystem, tmp_path: Path, traffic: Traffic) -> None:
    url = single(system, tmp_path)
    ws.load_checkpoint(url)
    before = traffic.read
    assert equal(ws.load_checkpoint(url), state())
    assert traffic.read == before


def test_an_interrupted_download_goes_on_at_its_last_byte(
    system: MemoryFileSystem, tmp_path: Path, traffic: Traffic
) -> None:
    path = local_path(single(system, tmp_path))
    size = path.stat().st_size
    header, traffic.fails_after = traffic.read, traffic.read + size // 2
    with pytest.raises(CheckpointError, match=r"memory://a\.safetensors cannot be read: no connection"):
        fetch([path])
    assert stored(path) < 10_000, "an unfinished file must not get its place"
    got = traffic.read - header
    assert 0 < got < size
    assert missing_bytes([path]) == size - got
    traffic.fails_after = None
    told: list[int] = []
    fetch([path], report=told.append)
    assert traffic.read == header + size
    assert sum(told) == size - got
    assert path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_short_failure_of_the_network_is_not_noticed(
    system: MemoryFileSystem, tmp_path: Path, traffic: Traffic
) -> None:
    url, failures = single(system, tmp_path), iter([False, False, True, True, False, True] + [False] * 100)

    def fail_at_times() -> None:
        if next(failures):
            raise TimeoutError

    traffic.meanwhile = fail_at_times
    assert equal(ws.load_checkpoint(url), state())


def test_a_download_that_is_killed_goes_on(system: MemoryFileSystem, tmp_path: Path, traffic: Traffic) -> None:
    path = local_path(single(system, tmp_path))
    traffic.meanwhile = lambda: time.sleep(0.05)
    process = multiprocessing.get_context("fork").Process(target=fetch, args=([path],))
    process.start()
    size = path.stat().st_size
    while process.is_alive() and missing_bytes([path]) > size - 40_000:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left, traffic.read, traffic.meanwhile = missing_bytes([path]), 0, lambda: None
    assert 0 < left < size
    fetch([path])
    assert traffic.read == left
    assert path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_two_processes_share_one_download(system: MemoryFileSystem, tmp_path: Path, traffic: Traffic) -> None:
    path = local_path(single(system, tmp_path))
    traffic.meanwhile = lambda: time.sleep(0.02)
    process = multiprocessing.get_context("fork").Process(target=fetch, args=([path],))
    process.start()
    size = path.stat().st_size
    while process.is_alive() and missing_bytes([path]) == size:
        time.sleep(0.01)
    traffic.read = 0
    fetch([path])
    process.join()
    assert traffic.read == 0
    assert path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_file_that_has_changed_since_the_plan_is_noticed(system: MemoryFileSystem, tmp_path: Path) -> None:
    url = single(system, tmp_path)
    path = local_path(url)
    ws.save_checkpoint(state(1), tmp_path / "a.safetensors")
    system.put_file(str(tmp_path / "a.safetensors"), "/a.safetensors")
    with pytest.raises(CheckpointError, match="has changed while it was read"):
        fetch([path])
    assert local_path(url) != path
    assert equal(ws.load_checkpoint(url), state(1))


def test_a_file_that_changes_on_the_way_is_thrown_away(
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
    with pytest.raises(CheckpointError, match=r"needs 0\.00 GB more in .*Make room, or set WEIGHTSPACE_CACHE"):
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
        ("htp://host/a.safetensors", "the scheme 'htp' is not known.*Did you mean http://"),
        ("ftp://me:secret@host/a", "A URL of ftp://host holds a password"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_in_a_line(url: str, message: str, sharded: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        local_path(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("no"), "access is denied"),
        (ConnectionError("[Errno -2] Name or service not known"), "no connection.*Is there a network"),
        (TimeoutError("slow"), "no connection"),
        (RuntimeError("first line\nsecond line"), r"cannot be read: first line\.$"),
        (FileNotFoundError("gone"), "there is no such file"),
        (_caused(FileNotFoundError("gone"), ConnectionError("refused")), r"no connection \(refused\)"),
    ],
)
def test_whatever_a_file_system_raises_becomes_a_line(
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


def test_an_adapter_and_a_tokenizer_come_whole(system: MemoryFileSystem, tmp_path: Path) -> None:
    ws.save_checkpoint(state(), tmp_path / "adapter_model.safetensors")
    system.put_file(str(tmp_path / "adapter_model.safetensors"), "/lora/adapter_model.safetensors")
    system.pipe_file("/lora/adapter_config.json", b"{}")
    path = local_path("memory://lora")
    assert {file.name for file in path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert missing_bytes(list(path.iterdir())) == 0
    system.pipe_file("/words/tokenizer.json", b"{}")
    assert [file.name for file in local_path("memory://words", weights=False).iterdir()] == ["tokenizer.json"]


def test_a_model_of_the_hub_is_planned_from_headers_and_loaded(hub: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    path = local_path("hf://org/model")
    assert hub.sent < 5_000
    assert read_contents(path).tensors == read_contents(hub.folder).tensors
    assert path.name == "model"
    assert equal(ws.load_checkpoint("hf://org/model"), state())
    with pytest.raises(CheckpointError, match=r"hf://org/none cannot be read: there is no such file.*hf auth login"):
        local_path("hf://org/none")
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_a_file_of_the_web_is_planned_from_its_header_and_loaded(hub: type[Any]) -> None:
    pytest.importorskip("aiohttp")
    url = f"{hub.url}/files/{SHARDS[0]}"
    assert set(read_contents(local_path(f"{url}?download=true")).tensors) == set(list(state())[:2])
    assert hub.sent < 2_000
    assert equal(ws.load_checkpoint(url), dict(list(state().items())[:2]))
    with pytest.raises(CheckpointError, match="there is no such file"):
        local_path(f"{hub.url}/files/none.safetensors")
