"""Shared fixtures. The neighbours `remote_files` and `torch_archives` are imported by name."""

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import weightspace as ws
from weightspace.checkpoints import StateDict, remote

sys.path.insert(0, str(Path(__file__).parent))

import remote_files


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def state() -> StateDict:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(5, 3, generator=generator),
        "layer.bias": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor(7),
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the cache of remote files, which are read in small chunks and without pauses."""
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "CHUNK", 10_000)
    return tmp_path / "cache"


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> remote_files.Traffic:
    found = remote_files.Traffic()
    monkeypatch.setattr(MemoryFile, "read", lambda file, size=-1: found.reader(file, size), raising=False)
    return found


@pytest.fixture
def system() -> Iterator[MemoryFileSystem]:
    found = MemoryFileSystem()
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture
def sharded(system: MemoryFileSystem, tmp_path: Path) -> str:
    """A folder of two shards with its companions, and some things that are nobody's business."""
    folder = tmp_path / "model"
    folder.mkdir()
    halves = [dict(list(remote_files.state().items())[:2]), dict(list(remote_files.state().items())[2:])]
    for name, half in zip(remote_files.SHARDS, halves, strict=True):
        ws.save_checkpoint(half, folder / name)
    index = {name: shard for shard, half in zip(remote_files.SHARDS, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"a": "b"}, "weight_map": index}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "optimizer.safetensors").write_bytes(bytes(1_000_000))
    (folder / "training.log").write_bytes(bytes(1_000_000))
    system.put(str(folder), "/bucket/", recursive=True)
    return "memory://bucket/model"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub, and of any web server with ranges, as reading needs."""

    url: str
    folder: Path
    sent = 0

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/models/org/model":
            return self._json({"id": "org/model", "sha": "0" * 40, "siblings": []})
        if re.fullmatch("/api/models/org/model/tree/[^/]+", path):
            return self._json([self._entry(file) for file in sorted(self.folder.iterdir())])
        if inner := re.fullmatch("/api/models/org/model/tree/[^/]+/([^/]+)", path):
            return self._json([self._entry(file) for file in sorted((self.folder / inner[1]).iterdir())])
        file = self.folder / path.removeprefix("/org/model/resolve/main/").rpartition("/files/")[2]
        if not file.is_file() or not path.startswith(("/org/model/resolve/main/", "/files/")):
            return self.send_error(404)
        return self._file(file)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._json([])

    def _entry(self, file: Path) -> dict[str, object]:
        name = file.relative_to(self.folder).as_posix()
        kind = "directory" if file.is_dir() else "file"
        return {"type": kind, "path": name, "size": file.stat().st_size, "oid": f"{file.stat().st_mtime_ns:040}"}

    def _file(self, file: Path) -> None:
        content = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        end = int(found[2]) + 1 if found and found[2] else len(content)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(content[start:end])))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        if found:
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            Hub.sent += len(content[start:end])
            self.wfile.write(content[start:end])

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(sharded: str, tmp_path: Path) -> Iterator[type[Hub]]:
    """Serve the folder that ``sharded`` was made of."""
    Hub.folder, Hub.sent = tmp_path / "model", 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Hub.url = f"http://127.0.0.1:{server.server_port}"
        yield Hub
        server.shutdown()
