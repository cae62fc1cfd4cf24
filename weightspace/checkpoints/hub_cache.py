"""Find models in the local cache of the Hugging Face Hub, as ``huggingface_hub`` does.

``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_TOKEN`` have their usual meaning. A revision
resolves to its current commit on the Hub or, if the Hub cannot be reached, to its commit at the time of download.
Models with missing weights are not used; other missing files are downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.companion_files import is_companion, is_in_companion_folder, is_tokenizer
from weightspace.checkpoints.components import find_components
from weightspace.checkpoints.hub_names import HubModel
from weightspace.errors import CheckpointError

#: Timeout in seconds of a query for a model's current commit.
_TIMEOUT = 10.0

_COMMIT = re.compile("[0-9a-f]{40}")

#: Name of a model's folder in the cache.
_FOLDER = re.compile(r"models--(.+--)?(?P<model>.+)")

#: Maximum size in bytes of a non-weight file to download.
_LARGEST_COMPANION = 2**28


def cached_folder(model: HubModel, *, weights: bool = True) -> Path | None:
    """Return the folder of a model in the Hub's cache.

    Args:
        model: a model or adapter.
        weights: whether the weights are needed; if False, configuration and tokenizer suffice.

    Returns:
        The folder, or None if the model is not or only partly cached and can be downloaded from the Hub.

    Raises:
        CheckpointError: the model is not cached and the Hub cannot be reached, or ``huggingface_hub`` is not installed.
    """
    _check_library(model)
    home = _home(model)
    info, error = _query_hub(model)
    commit = _known_commit(home, model) if info is None else str(info.sha)
    folder = None if commit is None else home / "snapshots" / commit
    if folder is not None and folder.is_dir():
        if info is not None:
            _download_companions(model, folder, {file.rfilename: file.size or 0 for file in info.siblings or ()})
        if _is_complete(folder, weights):
            return folder
    if info is None:
        raise _not_cached(model, home, folder, error)
    return None


def check_available(model: HubModel) -> None:
    """In offline mode, check that a model is in the cache.

    Raises:
        CheckpointError: the model is not in the cache.
    """
    _check_library(model)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        cached_folder(model)


def full_name(model: HubModel) -> HubModel:
    """Return a model under the name ``ORG/MODEL`` that the Hub has for one of one word, such as ``gpt2``.

    Raises:
        CheckpointError: as ``cached_folder``.
    """
    if "/" in model.name:
        return model
    info, error = _query_hub(model)
    if info is None:
        raise _not_cached(model, _home(model), None, error)
    return replace(model, name=str(info.id))


def folder_name(path: Path) -> str:
    """Return the name of a folder; for a snapshot in the Hub's cache, the name of the model."""
    resolved = path.resolve()
    if resolved.parent.name == "snapshots" and (match := _FOLDER.fullmatch(resolved.parent.parent.name)):
        return match["model"]
    return resolved.name


def _check_library(model: HubModel) -> None:
    """Check that ``huggingface_hub`` is installed."""
    try:
        import huggingface_hub  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise CheckpointError(
            f"{model.name} is not a local path, and Hugging Face Hub models need the package huggingface_hub, which "
            "is not installed. Is the path right? Otherwise run: pip install huggingface_hub"
        ) from error


def _home(model: HubModel) -> Path:
    """Return the model's folder in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.name.replace('/', '--')}"


def _query_hub(model: HubModel) -> tuple[Any | None, Exception | None]:
    """Return the Hub's information about a model, or the error that prevented the query.

    Raises:
        CheckpointError: the model does not exist or access is denied, and it is not in the cache.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE or (_COMMIT.fullmatch(model.revision or "") and _known_commit(_home(model), model)):
        return None, None
    try:
        return HfApi().model_info(model.name, revision=model.revision, timeout=_TIMEOUT, files_metadata=True), None
    except HFValidationError as error:
        raise CheckpointError(f"{model.name} does not exist. Is the path right? ({_first_line(error)})") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 500)
        if status < 500 and _known_commit(_home(model), model) is None:
            raise CheckpointError(_not_found(model, status)) from error
        return None, error
    except Exception as error:  # network errors, whose classes depend on the library's version
        return None, error


def _not_found(model: HubModel, status: int) -> str:
    """Return the error message for a model that does not exist on the Hub or that access is denied to."""
    where = model.name if model.revision is None else f"{model.name} at the revision {model.revision!r}"
    if status == 403:
        return (
            f"{where} is not a local path, and the Hugging Face Hub denies access to it. Request access on its page "
            "and log in (hf auth login, or HF_TOKEN)."
        )
    missing = "model" if model.revision is None else "model or no such revision"
    return (
        f"{where} is not a local path, and the Hugging Face Hub has no such {missing}; is the path right? "
        "Private models need a login (hf auth login, or HF_TOKEN)."
    )


def _known_commit(home: Path, model: HubModel) -> str | None:
    """Return the commit of a revision at the time of its download, or None if it was not downloaded."""
    revision = model.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision if (home / "snapshots" / revision).is_dir() else None
    try:
        return (home / "refs" / revision).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _is_complete(folder: Path, weights: bool) -> bool:
    """Return whether a folder holds a complete model or adapter, or, without weights, a configuration or tokenizer."""
    names = os.listdir(folder)
    if "adapter_config.json" in names:
        return "adapter_model.safetensors" in names or "adapter_model.bin" in names
    if "pytorch_lora_weights.safetensors" in names:  # an adapter of diffusers
        return True
    if not weights:
        return "config.json" in names or any(map(is_tokenizer, names))
    try:
        find_components(folder)
    except CheckpointError:
        return False
    return True


def _download_companions(model: HubModel, folder: Path, sizes: Mapping[str, int]) -> None:
    """Download the non-weight files that a cached folder lacks, as loading a tokenizer would.

    Raises:
        CheckpointError: a file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    for name, size in sizes.items():
        wanted = is_companion(name) if "/" not in name else is_in_companion_folder(name, sizes.keys())
        if not wanted or size > _LARGEST_COMPANION or (folder / name).exists():
            continue
        try:
            hf_hub_download(model.name, name, revision=folder.name)
        except Exception as error:
            raise CheckpointError(
                f"{name} of {model.name} cannot be downloaded ({_first_line(error)}). Is the network available? "
                f"`{model.command}` downloads the whole model."
            ) from error


def _not_cached(model: HubModel, home: Path, folder: Path | None, error: Exception | None) -> CheckpointError:
    """Return the error for a model or a revision that is not cached while the Hub cannot be reached."""
    why = "HF_HUB_OFFLINE is set" if error is None else f"the Hugging Face Hub does not answer ({_first_line(error)})"
    searched = f"The cache that was searched is {home.parent}."
    if "/" not in model.name and folder is None:  # rather a path than one of the Hub's oldest models
        return CheckpointError(
            f"{model.name} does not exist here, and {why}; is the path right? For a model on the Hugging Face Hub, "
            f"`{model.command}` downloads it with network access. {searched}"
        )
    state = "is not cached" if folder is None or not folder.is_dir() else "is only partly cached"
    if state == "is not cached" and (others := _cached_revisions(home)):
        verb = "are" if others[1:] else "is"
        there = " and ".join(filter(None, (", ".join(others[:-1]), others[-1])))
        state = f"has no revision {model.revision or 'main'} in the cache ({there} {verb} there)"
    return CheckpointError(
        f"{model.name} {state}, and {why}. With network access, `{model.command}` downloads it; or is the path right? "
        f"{searched}"
    )


def _cached_revisions(home: Path) -> list[str]:
    """Return the first names of branches and tags of a model whose snapshots are in the cache."""
    refs = home / "refs"
    names = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file())
    commits = {name: _known_commit(home, HubModel(home.name, name)) for name in names}
    return [name for name, commit in commits.items() if commit and (home / "snapshots" / commit).is_dir()][:5]


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]
