"""As much of the Hugging Face Hub as reading models needs, on this machine: revisions, private models, ranges."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class LocalHub:
    """A server of the models in a folder: ``ORG/MODEL`` is the main branch, ``ORG/MODEL@REVISION`` another one.

    Attributes:
        root: the folder.
        url: of the server.
        sent: bytes of files that were sent.
        private: models that need the token ``secret``.
        short: names of one word -> the models that they redirect to.
        asked: paths of all requests.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self.sent = 0
        self.private: set[str] = set()
        self.short: dict[str, str] = {}
        self.asked: list[str] = []

    def folder(self, name: str, revision: str) -> Path | None:
        """Return the folder of a revision, by name or by commit."""
        for folder in sorted((self.root / name.partition("/")[0]).glob(f"{name.partition('/')[2]}*")):
            model, _, branch = folder.name.partition("@")
            if model == name.partition("/")[2] and revision in (branch or "main", self.commit(folder)):
                return folder
        return None

    @staticmethod
    def commit(folder: Path) -> str:
        """Return the commit of a folder: another one where its weights are others."""
        content = b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _handler(hub: LocalHub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0].replace("%2F", "/")
            hub.asked.append(path)
            found = re.fullmatch(r"(/api/models/|/)([^/]+)((?:/.+)?)", path)
            if found and found[2] in hub.short:
                return self._redirect(f"{found[1]}{hub.short[found[2]]}{found[3]}")
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                return self._model(found[1], found[2] or "main")
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
                return self._tree(found[1], found[2], found[3] or "")
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._file(found[1], found[2], found[3])
            return self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._json([])

        def _redirect(self, path: str) -> None:
            self.send_response(307)
            self.send_header("Location", path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _folder(self, name: str, revision: str) -> Path | None:
            hidden = name in hub.private and self.headers.get("Authorization") != "Bearer secret"
            folder = None if hidden else hub.folder(name, revision)
            if folder is None:
                self.send_response(401 if hidden else 404)
                known = hub.folder(name, "main") is not None and not hidden
                self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
            return folder

        def _model(self, name: str, revision: str) -> None:
            if (folder := self._folder(name, revision)) is not None:
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                listed = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in files]
                self._json({"id": name, "sha": hub.commit(folder), "siblings": listed})

        def _tree(self, name: str, revision: str, inside: str) -> None:
            if (folder := self._folder(name, revision)) is not None:
                self._json([_entry(folder, file) for file in sorted((folder / inside).iterdir())])

        def _file(self, name: str, revision: str, file: str) -> None:
            folder = self._folder(name, revision)
            if folder is None:
                return
            if not (folder / file).is_file():
                return self.send_error(404)
            content = (folder / file).read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, end = (int(found[1]), int(found[2] or len(content) - 1) + 1) if found else (0, len(content))
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(len(content[start:end])))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{_digest(content)}"')
            self.send_header("X-Repo-Commit", hub.commit(folder))
            if found:
                self.send_header("Content-Range", f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                hub.sent += len(content[start:end])
                self.wfile.write(content[start:end])

        def _json(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _entry(folder: Path, file: Path) -> dict[str, object]:
    oid = _digest(file.read_bytes()) if file.is_file() else "0" * 40
    kind = "directory" if file.is_dir() else "file"
    return {"type": kind, "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "oid": oid}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def local_hub(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Serve the models of a folder as the Hub, with an empty cache.

    Args:
        root: the folder.
        cache: a folder that stands for ``HF_HOME/hub``.
        monkeypatch: points ``huggingface_hub`` at both.
    """
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub = LocalHub(root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
        server.shutdown()
    huggingface_hub.HfFileSystem.clear_instance_cache()
