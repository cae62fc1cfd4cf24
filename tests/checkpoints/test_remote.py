"""Checkpoints behind URLs: which bytes are read over the network, and when."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import gguf_models
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from remote_files import SHARDS, Traffic, equal, single, state, stored, weights

import weightspace as ws
from weightspace.checkpoints import load_metadata
from weightspace.checkpoints.fetching import fetch, local_path, missing_bytes
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.remote import is_url
from weightspace.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("cache")


def test_a_name_with_a_scheme_is_a_url() -> None:
    assert all(map(is_url, ["hf://org/model", "s3://b", "memory://x", "simplecache::s3://b/x", "file:///tmp/x"]))
    assert not any(map(is_url, ["a.safetensors", "/tmp/a//b", "hf:/org", "C:\\models", "models/hf://x"]))
    assert not is_url(Path("models"))


def test_a_path_stays_as_it_is(tmp_path: Path, cache: Path) -> None:
    assert local_path("models/a.pt") == Path("models/a.pt")
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


def test_a_gguf_file_behind_a_url_is_planned_and_loaded(system: MemoryFileSystem, tmp_path: Path) -> None:
    own = {"model.embed_tokens.weight": torch.randn(96, 64).half(), "model.norm.weight": torch.ones(64)}
    system.put(str(gguf_models.write_gguf(tmp_path / "a.gguf", own, "qwen2", "F16")), "/bucket/a.gguf")
    assert read_contents(local_path("memory://bucket/a.gguf")).tensors.keys() == own.keys()
    assert equal(ws.load_checkpoint("memory://bucket/a.gguf"), own)


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


def test_an_interrupted_download_resumes_at_its_last_byte(
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


def test_a_killed_download_resumes(system: MemoryFileSystem, tmp_path: Path, traffic: Traffic) -> None:
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
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
