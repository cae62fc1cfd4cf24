"""Access to files behind URLs: listings, and bytes by range. The only module that uses fsspec.

A stamp identifies the content of a file and changes with it. Nothing here waits forever, and any error of a file system
becomes one line that starts with the URL.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from weightspace.errors import CheckpointError

T = TypeVar("T")

#: Timeout of one request in seconds.
TIMEOUT = 120.0

#: Number of bytes per request.
CHUNK = 8 * 2**20

#: Number of retries after network failures, delay before the first one in seconds, and seconds without a byte after
#: which there is no retry, since some libraries have retried internally by then.
RETRIES = 3
PAUSE = 1.0
PATIENCE = 15.0

#: File information that changes with the content, in order of preference.
_STAMPS = (
    *(
        "sha256",
        "xet_hash",
        "blob_id",
        "sha",
        "ETag",
        "etag",
        "Content-MD5",
        "md5",
        "md5Hash",
        "content_md5",
        "checksum",
    ),
    *("crc32c", "generation", "version_id", "mtime", "LastModified", "Last-Modified", "last_modified", "modified"),
    *("created", "CRC"),
)

#: Class names of network and permission errors; the libraries share no base class.
_NETWORK = re.compile("Connect|Transport|Network|Timeout|RemoteProtocol|IncompleteRead|ClientPayload|SSL|gaierror")
_DENIED = re.compile("NoCredentials|PartialCredentials|Unauthorized|Forbidden|AccessDenied|GatedRepo|Authentication")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a remote file system.

    Attributes:
        path: path in its file system.
        size: size in bytes.
        stamp: changes with the content.
        sha256: digest of the content if the file system provides it, else "".
    """

    path: str
    size: int
    stamp: str
    sha256: str = ""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has a scheme, like ``hf://org/model``."""
    return re.match(r"[A-Za-z][\w+.:-]*://", os.fspath(path)) is not None


class Remote:
    """A file or a folder behind a URL.

    Attributes:
        url: the URL, as the user wrote it.
        name: its last part.
        local: its path if it is on this machine (``file://``), else None.
    """

    def __init__(self, url: str) -> None:
        """Find the file system of a URL.

        Raises:
            CheckpointError: the scheme is unknown, its library is missing, or the URL holds a password.
        """
        _check_no_password(url)
        self.url = url
        with _one_line(url):
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem

            self._system, self._root = _timed(url_to_fs, url)
            self.name = _basename(self._root) or "model"
            self.local = Path(self._root) if isinstance(self._system, LocalFileSystem) else None

    def listing(self, enters: Callable[[str], bool] = lambda _: False) -> tuple[bool, dict[str, RemoteFile]]:
        """Return whether this is a folder, and its current files (or the file itself) by name.

        Args:
            enters: decides by name whether a subfolder's files are listed as well, as ``FOLDER/NAME``.

        Raises:
            CheckpointError: the path doesn't exist, access is denied, or the network fails.
        """
        with _one_line(self.url):
            self._system.invalidate_cache()
            info = _timed(self._system.info, self._root)
            is_folder = info["type"] == "directory"
            entries = _timed(self._system.ls, self._root, True) if is_folder else [info]
            inner = [
                (f"{_basename(entry['name'])}/", _timed(self._system.ls, entry["name"], True))
                for entry in entries
                if entry["type"] == "directory" and enters(_basename(entry["name"]))
            ]
        listed = [(prefix, entry) for prefix, inside in (("", entries), *inner) for entry in inside]
        files = [pair for pair in listed if pair[1]["type"] != "directory" and not pair[1]["name"].endswith("/")]
        return is_folder, {f"{prefix}{_basename(entry['name'])}": _remote_file(entry) for prefix, entry in files}

    def chunks(self, file: RemoteFile, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file from ``start`` up to ``end``, at most ``CHUNK`` at a time.

        Raises:
            CheckpointError: the file is missing or too short, access is denied, or the network fails.
        """
        failures, last = 0, time.monotonic()
        while start < end:
            try:
                for piece in self._read(file, start, end):
                    yield piece
                    start += len(piece)
                    failures, last = 0, time.monotonic()
            except Exception as error:
                failures += 1
                if failures > RETRIES or not _may_pass(error) or time.monotonic() - last > PATIENCE:
                    with _one_line(self.url, file.path):
                        raise
                time.sleep(PAUSE * 2 ** (failures - 1))

    def _read(self, file: RemoteFile, start: int, end: int) -> Iterator[bytes]:
        """Yield bytes of one opened file, without translating its errors."""
        opened = _timed(lambda: self._system.open(file.path, "rb", block_size=CHUNK, cache_type="none"))
        try:
            at = _moved(opened, start)
            while at < end:
                piece = _timed(opened.read, min(CHUNK, end - at))
                if not piece:
                    raise EOFError(f"{file.path} ends at byte {at:,}, expected {file.size:,}: has it changed?")
                at += len(piece)
                if at > start:  # a stream without seek starts at its first byte
                    yield piece[-(at - start) :] if at - len(piece) < start else piece
        finally:
            with suppress(Exception):
                opened.close()


def _basename(path: str) -> str:
    """Return the last part of a path, without the query of a web address."""
    if path.startswith(("http://", "https://")):
        path = urlsplit(path).path
    return path.rstrip("/").rsplit("/", 1)[-1]


def _moved(opened: Any, start: int) -> int:
    """Seek in an opened file; return the resulting position, which is 0 if it can only be read from the start."""
    if start:
        try:
            return _timed(opened.seek, start)
        except (ValueError, NotImplementedError):
            return 0
    return 0


def _remote_file(info: Mapping[str, Any]) -> RemoteFile:
    """Return a file from its file system's information; its size is -1 if unknown."""
    lfs = info.get("lfs")
    sha256 = (lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)) or ""
    found: Mapping[str, Any] = {**info, "sha256": sha256}
    key = next((key for key in _STAMPS if found.get(key)), None)
    value = found[key] if key is not None else ""
    stamp = repr(value.timestamp()) if isinstance(value, datetime) else str(value)
    size = info.get("size")
    return RemoteFile(info["name"], -1 if size is None else int(size), f"{key}:{stamp}", sha256)


def _timed(call: Callable[..., T], *args: Any) -> T:
    """Return ``call(*args)``, or raise ``TimeoutError`` if that takes too long.

    The call is then abandoned on a daemon thread, since few file systems accept a timeout, each by another argument.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="remote", daemon=True).start()
    try:
        return future.result(TIMEOUT)
    except FutureTimeoutError:  # in Python 3.10, it isn't the builtin one yet
        raise TimeoutError(f"no answer within {TIMEOUT:,.0f} s") from None


def _check_no_password(url: str) -> None:
    """Reject a password in a URL, which would be stored in the output's metadata for all to read."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.password:
            raise CheckpointError(
                f"A URL of {parts.scheme}://{parts.hostname} holds a password, and URLs are stored in the output's "
                "metadata. Remove it, and pass it to fsspec by its configuration or the environment."
            )


@contextmanager
def _one_line(url: str, path: str = "") -> Iterator[None]:
    """Turn any error of a file system into a one-line ``CheckpointError``."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        where = f"{url} ({path.rsplit('/', 1)[-1]})" if path and not url.endswith(path.rsplit("/", 1)[-1]) else url
        raise CheckpointError(f"{where} cannot be read: {_reason(url, error)}") from error


def _reason(url: str, error: Exception) -> str:
    """Return the cause of an error and advice, in one line."""
    scheme = url.split("://")[0].split("::")[0]
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) and scheme != "hf":
        error = error.__cause__  # fsspec reports an unreachable web server as a missing file
    said = _first_line(error)
    if isinstance(error, ImportError):
        return _missing_library(scheme, error)
    if isinstance(error, ValueError) and said.startswith("Protocol not known"):
        return _unknown_scheme(url)
    if _is_denied(error):
        login = " (hf auth login)" if scheme == "hf" else ""
        return f"access is denied ({said}). Log in{login}, or ask for access to it."
    if isinstance(error, FileNotFoundError | NotADirectoryError) or _status(error) == 404:
        private = " A private repository needs a login (hf auth login)." if scheme == "hf" else ""
        return f"there is no such file or folder. Expected a checkpoint; is the URL right?{private}"
    if _is_network(error):
        return f"no connection ({said}). Is the network up? Once it is, the same command resumes from here."
    return f"{said}."


def _missing_library(scheme: str, error: ImportError) -> str:
    """Return a message that names the library that a scheme needs."""
    from fsspec.registry import known_implementations

    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    home = known_implementations.get(scheme, {}).get("class", "").split(".")[0]
    library = home if home not in ("", "fsspec", "morefs") else (cause.name or "").split(".")[0]
    if not library or (cause.name or library).split(".")[0] != library:
        return f"{scheme}:// needs a library that cannot be imported ({_first_line(cause)}). Install it."
    name = {"smbclient": "smbprotocol"}.get(library, library)
    return f"{scheme}:// needs the library {library}, which is not installed. Run: pip install {name}"


def _unknown_scheme(url: str) -> str:
    """Return a message that names known schemes."""
    from fsspec import available_protocols

    head = url.split("://")[0]
    known = available_protocols()
    scheme = next((part for part in head.split("::") if part not in known), head)
    close = get_close_matches(scheme, known, n=1)
    guess = f" Did you mean {close[0]}://?" if close else ""
    return f"the scheme {scheme!r} is unknown; expected hf, s3, gs, az, https or another fsspec scheme.{guess}"


def _may_pass(error: Exception) -> bool:
    """Return whether a retry of the same request may succeed."""
    return not _is_denied(error) and not isinstance(error, FileNotFoundError) and _is_network(error)


def _is_denied(error: Exception) -> bool:
    return isinstance(error, PermissionError) or _status(error) in (401, 403) or _has_name(error, _DENIED)


def _is_network(error: Exception) -> bool:
    if isinstance(error, ConnectionError | TimeoutError) or (_status(error) or 0) in (408, 429, *range(500, 600)):
        return True
    return _has_name(error, _NETWORK)


def _has_name(error: Exception, pattern: re.Pattern[str]) -> bool:
    """Return whether the class of an error, or one of its bases, has a matching name."""
    return any(pattern.search(kind.__name__) for kind in type(error).__mro__)


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error, if any."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return status
    return None


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
