"""Downloads of checkpoints behind URLs: headers first, for planning, and tensors when they are read."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors, sync_folder
from weightspace.checkpoints.companion_files import is_companion, is_in_companion_folder, may_hold_companions
from weightspace.checkpoints.file_format import GGUF_SUFFIX, PIPELINE, SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.hashing import sha256_of
from weightspace.checkpoints.hf_folder import ENTRANCES, read_index
from weightspace.checkpoints.hub_cache import cached_folder, full_name
from weightspace.checkpoints.hub_names import hub_model
from weightspace.checkpoints.mirror import Mirror, incomplete, locked, mirror_home, write_record
from weightspace.checkpoints.remote import Remote, RemoteFile, is_url
from weightspace.checkpoints.safetensors_header import MAX_HEADER, read_header
from weightspace.errors import CheckpointError
from weightspace.reprs import size

#: File endings of torch files in training scripts; URLs are recognised by them, local files by their bytes.
_TORCH_ENDINGS = (*TORCH_SUFFIXES, ".ckpt", ".th", ".pkl", ".pth.tar", ".model")

#: Largest file beside the weights to download with a model, in bytes.
_LARGEST_COMPANION = 2**28

#: Files of a LoRA adapter in a folder of PEFT or of diffusers, whose weights are small.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors")


def local_path(source: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """Return a local path with the names, sizes and headers of a checkpoint; a local source is returned as it is.

    Args:
        source: a path, a URL of a file or folder that fsspec can read, or ``ORG/MODEL``, ``ORG/MODEL@REVISION`` (or
            ``MODEL`` alone, such as ``gpt2``) on the Hugging Face Hub: a path that exists takes precedence, then the
            Hub's cache, then the Hub by ``hf://``.
        weights: if False, only configuration and tokenizer are needed.

    Returns:
        The path itself, that in the Hub's cache, or that of the mirror, whose tensors are missing until ``fetch`` is
        called.

    Raises:
        CheckpointError: the URL doesn't exist, isn't a checkpoint, or cannot be read, or writing to disk fails.
    """
    url = os.fspath(source)
    model = hub_model(url)
    if model is not None:
        cached = cached_folder(model, weights=weights)
        if cached is None and (full := full_name(model)) != model:
            model, cached = full, cached_folder(full, weights=weights)
        if cached is not None:
            return cached
        url = model.url
    if not is_url(url):
        return Path(url)
    remote = Remote(url)
    if remote.local is not None:
        return remote.local
    is_folder, listing = remote.listing(may_hold_companions)
    wanted = _wanted(url, listing, is_folder, weights)
    home = mirror_home(url, is_folder, wanted)
    path = home / "files" / (remote.name if model is None else Path(model.name).name)
    mirror = Mirror(url, home, path, wanted)
    with one_line_errors(home, "written"):
        for folder in (home / "parts", home / "whole", path if is_folder else path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if not mirror.ready.exists():
            with locked(home):
                write_record(mirror)
                _fill(mirror, remote, is_folder, weights)
                mirror.ready.touch()
    return path


def fetched_path(source: str | os.PathLike[str]) -> Path:
    """Return the same as ``local_path``, with the tensors downloaded."""
    path = local_path(source)
    if is_elsewhere(source):
        fetch(sorted(path.iterdir()) if path.is_dir() else [path])
    return path


def is_elsewhere(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is a URL or a model of the Hub, and no path on this machine."""
    return is_url(source) or hub_model(source) is not None


def fetch(files: Sequence[Path], *, report: Callable[[int], None] | None = None) -> None:
    """Download the tensors of mirrored files, resuming interrupted downloads.

    Args:
        files: files in mirrors; other files are ignored.
        report: called with the number of bytes received since its last call.

    Raises:
        CheckpointError: a remote file has changed since its header was read, or arrived damaged; the network fails; or
            the disk is full or not writable.
    """
    for mirror, names in incomplete(files):
        with one_line_errors(mirror.home, "written"), locked(mirror.home):
            _check_room(mirror, names)
            remote = Remote(mirror.url)
            for name in names:
                if not mirror.is_whole(name):  # another process may have downloaded it meanwhile
                    _download(mirror, remote, name, report or (lambda _: None))


def missing_bytes(files: Sequence[Path]) -> int:
    """Return the number of bytes that ``fetch`` would download."""
    return sum(mirror.missing(name) for mirror, names in incomplete(files) for name in names)


def _wanted(url: str, listing: dict[str, RemoteFile], is_folder: bool, weights: bool) -> dict[str, RemoteFile]:
    """Return the files of a listing that belong to the checkpoint, possibly with additional weight files."""
    endings = (SAFETENSORS_SUFFIX, *_TORCH_ENDINGS, GGUF_SUFFIX)
    if not is_folder:
        if not all(name.lower().endswith(endings) for name in listing):
            hint = " Pages of huggingface.co are read as hf://ORG/MODEL." if "://huggingface.co/" in url else ""
            raise CheckpointError(
                f"{url} is not a checkpoint: expected a folder, or a file ending in {', '.join(endings)}.{hint}"
            )
        found = listing
    else:
        small = _companions(listing)
        found = {name: file for name, file in listing.items() if name in small or name in _ADAPTER}
        entrance = next((name for name in ENTRANCES if name in listing), None)
        if weights and entrance is not None:
            suffix = Path(entrance.removesuffix(".index.json")).suffix
            kept = {name: file for name, file in listing.items() if name.endswith(suffix) and "/" not in name}
            found |= {entrance: listing[entrance]} | (kept if entrance.endswith(".json") else {})
        elif weights and not listing.keys() & {"adapter_config.json", "pytorch_lora_weights.safetensors"}:
            if PIPELINE in listing:
                raise CheckpointError(
                    f"{url} is a diffusers pipeline, which is not read from a URL. Download it first."
                )
            others = sorted(name for name in listing if name.lower().endswith(endings))
            hint = f" It holds {', '.join(others[:3])}: name the file itself." if others else ""
            raise CheckpointError(f"{url} holds no checkpoint: expected one of {', '.join(ENTRANCES)}.{hint}")
    for name, file in found.items():
        if file.size < 0:
            raise CheckpointError(f"{url}: the size of {name} is unknown. Download it, and use the local file.")
    return found


def _companions(files: dict[str, RemoteFile]) -> list[str]:
    """Return the files that belong to a model beside its weights, except data sets."""
    return [
        name
        for name, file in files.items()
        if (is_companion(name) if "/" not in name else is_in_companion_folder(name, files.keys()))
        and file.size <= _LARGEST_COMPANION
    ]


def _fill(mirror: Mirror, remote: Remote, is_folder: bool, weights: bool) -> None:
    """Download missing small files and headers."""
    names = list(mirror.files)
    if is_folder:
        entrance = next((name for name in ENTRANCES if name in mirror.files and weights), None)
        small = _companions(mirror.files)
        names = [*small, *(name for name in mirror.files if name not in small and name in (*_ADAPTER, entrance))]
        if entrance is not None and entrance.endswith(".json"):
            _bring(mirror, remote, entrance)
            names += _shards(mirror, entrance)
    for name in names:
        _bring(mirror, remote, name)


def _bring(mirror: Mirror, remote: Remote, name: str) -> None:
    """Download a file, or only the header of a safetensors file."""
    if mirror.place(name).exists() and (mirror.is_whole(name) or name.endswith(SAFETENSORS_SUFFIX)):
        return
    with one_line_errors(mirror.home, "written"):
        mirror.place(name).parent.mkdir(exist_ok=True)
    if name.endswith(SAFETENSORS_SUFFIX) and name not in _ADAPTER and "/" not in name:
        _write_header(mirror, remote, name)
    elif not mirror.is_whole(name):
        _check_room(mirror, [name])
        _download(mirror, remote, name, lambda _: None)


def _shards(mirror: Mirror, entrance: str) -> list[str]:
    """Return the names of the shards of an index."""
    with _said_of(mirror):
        index: dict[str, str] = read_index(mirror.place(entrance))["weight_map"]
    shards = sorted(set(index.values()))
    for shard in shards:
        if shard not in mirror.files:
            name = next(name for name, holder in index.items() if holder == shard)
            raise CheckpointError(f"{mirror.url}: {shard} is missing, but {entrance} says that it holds {name!r}.")
    return shards


def _write_header(mirror: Mirror, remote: Remote, name: str) -> None:
    """Create a sparse file with the true size that holds only the header."""
    file = mirror.files[name]
    start = b"".join(remote.chunks(file, 0, min(8, file.size)))
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    header = b"" if length > MAX_HEADER else b"".join(remote.chunks(file, 8, min(8 + length, file.size)))
    sparse = mirror.home / f"{name}.header"
    try:
        with open(sparse, "wb") as opened:
            opened.write(start + header)
            opened.truncate(file.size)
        with _said_of(mirror, sparse):
            read_header(sparse)
        _settle(mirror, name, sparse)
    finally:
        sparse.unlink(missing_ok=True)


def _download(mirror: Mirror, remote: Remote, name: str, report: Callable[[int], None]) -> None:
    """Download the rest of a file and move the complete file into place."""
    file, part = mirror.files[name], mirror.part(name)
    _check_unchanged(mirror, remote, name)
    with one_line_errors(part, "written"):
        with open(part, "ab") as opened:
            at = opened.seek(0, 2)
            if at > file.size:
                at = opened.truncate(0)
            for chunk in remote.chunks(file, at, file.size):
                opened.write(chunk)
                report(len(chunk))
            opened.flush()
            os.fsync(opened.fileno())
        try:
            _check_unchanged(mirror, remote, name)
            _check_arrived(mirror, name)
        except CheckpointError:
            part.unlink()
            raise
        mirror.marker(name).touch()
        sync_folder(mirror.marker(name).parent)
        _settle(mirror, name, part)


def _settle(mirror: Mirror, name: str, path: Path) -> None:
    """Move a file into place, with a modification time derived from its content's stamp.

    A merge identifies its inputs by size and modification time, which must be the same for a header-only and a
    complete file.
    """
    stamp = int(hashlib.sha256(mirror.files[name].stamp.encode()).hexdigest()[:8], 16)
    seconds = 10**9 + stamp % 2**29
    os.utime(path, (seconds, seconds))
    os.replace(path, mirror.place(name))
    sync_folder(mirror.place(name).parent)


def _check_unchanged(mirror: Mirror, remote: Remote, name: str) -> None:
    """Check that a remote file hasn't changed since the mirror was created."""
    found, expected = remote.listing(may_hold_companions)[1].get(name), mirror.files[name]
    if found is None or (found.size, found.stamp) != (expected.size, expected.stamp):
        what = "is gone" if found is None else f"has {found.size:,} bytes and {found.stamp}"
        raise CheckpointError(
            f"{mirror.url}: {name} has changed while it was read: it {what}, expected {expected.size:,} bytes and "
            f"{expected.stamp}. Run the command again."
        )


def _check_arrived(mirror: Mirror, name: str) -> None:
    """Check the size of a downloaded file, and its digest if the remote side provides one."""
    size, expected = mirror.files[name].size, mirror.files[name].sha256
    if mirror.part(name).stat().st_size != size:
        raise CheckpointError(
            f"{mirror.url}: {name} arrived with {mirror.part(name).stat().st_size:,} bytes, expected {size:,}. "
            "Run the command again."
        )
    if expected and (found := sha256_of(mirror.part(name))) != expected:
        raise CheckpointError(
            f"{mirror.url}: {name} arrived damaged: SHA-256 {found[:12]}…, expected {expected[:12]}…. "
            "Run the command again."
        )


def _check_room(mirror: Mirror, names: Sequence[str]) -> None:
    """Check that the disk has room for the downloads."""
    needed, free = sum(mirror.missing(name) for name in names), shutil.disk_usage(mirror.home).free
    if needed > free:
        raise CheckpointError(
            f"{mirror.url} needs {size(needed)} more in {mirror.home.parent}, but that disk has "
            f"{size(free)} free. Make room, or set WEIGHTSPACE_CACHE to a folder on another disk."
        )


@contextmanager
def _said_of(mirror: Mirror, path: Path | None = None) -> Iterator[None]:
    """Make errors about a mirrored file name its URL."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(path or mirror.path), mirror.url)) from error
