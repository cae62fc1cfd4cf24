"""The cache of the Hugging Face Hub: models that were downloaded before, as ``huggingface_hub`` finds them.

``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_TOKEN`` mean what they mean there. A model
is looked for by the commit that its revision has on the Hub now, or, where the Hub cannot be asked, had when it was
downloaded. A model that is there only in part is not taken; files beside the weights that it lacks are brought.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.companion_files import is_companion, is_in_companion_folder, is_tokenizer
from weightspace.checkpoints.hf_folder import find_weights
from weightspace.checkpoints.hub_names import HubModel
from weightspace.errors import CheckpointError

#: Seconds that the Hub has to say which commit a revision is.
_TIMEOUT = 10.0

_COMMIT = re.compile("[0-9a-f]{40}")

#: The name of a folder of the cache.
_FOLDER = re.compile(r"models--(.+--)?(?P<model>.+)")

#: Largest file beside the weights that is brought, in bytes.
_LARGEST_COMPANION = 2**28


def cached_folder(model: HubModel, *, weights: bool = True) -> Path | None:
    """Return the folder of a model in the Hub's cache.

    Args:
        model: a model or an adapter.
        weights: False: configuration and tokenizer suffice.

    Returns:
        The folder, or None where the model is not there, or not whole, and the Hub has it.

    Raises:
        CheckpointError: it is not there, and the Hub cannot be asked; or ``huggingface_hub`` is not installed.
    """
    _check_library(model)
    home = _home(model)
    info, error = _asked(model)
    commit = _known_commit(home, model) if info is None else str(info.sha)
    folder = None if commit is None else home / "snapshots" / commit
    if folder is not None and folder.is_dir():
        if info is not None:
            _bring_companions(model, folder, {file.rfilename: file.size or 0 for file in info.siblings or ()})
        if _is_whole(folder, weights):
            return folder
    if info is None:
        raise _absent(model, folder, error)
    return None


def check_available(model: HubModel) -> None:
    """Check that a model is in the cache, where the Hub is not to be asked.

    Raises:
        CheckpointError: it is not.
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
    info, error = _asked(model)
    if info is None:
        raise _absent(model, None, error)
    return replace(model, name=str(info.id))


def folder_name(path: Path) -> str:
    """Return the name of a folder; of one in the Hub's cache that of the model, not of the commit."""
    resolved = path.resolve()
    if resolved.parent.name == "snapshots" and (match := _FOLDER.fullmatch(resolved.parent.parent.name)):
        return match["model"]
    return resolved.name


def _check_library(model: HubModel) -> None:
    """Check that the Hub's library is there."""
    try:
        import huggingface_hub  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise CheckpointError(
            f"{model.name} does not exist here, and models of the Hugging Face Hub need the library huggingface_hub, "
            "which is not installed: is the path right? Else run: pip install huggingface_hub"
        ) from error


def _home(model: HubModel) -> Path:
    """Return the model's folder in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.name.replace('/', '--')}"


def _asked(model: HubModel) -> tuple[Any | None, Exception | None]:
    """Return what the Hub says of a model, or why it does not answer.

    Raises:
        CheckpointError: there is no such model, or it may not be read; and it is not in the cache.
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
            raise CheckpointError(_refused(model, status)) from error
        return None, error
    except Exception as error:  # of the network: the library's own depend on its version
        return None, error


def _refused(model: HubModel, status: int) -> str:
    """Return what to say of a model that the Hub has not, or does not give."""
    where = model.name if model.revision is None else f"{model.name} at the revision {model.revision!r}"
    if status == 403:
        return f"{where} does not exist here, and the Hub denies access to it. Ask for access on its page, and log in."
    return (
        f"{where} does not exist here, and the Hugging Face Hub has no such model; is the path right? "
        "A private one needs a login (hf auth login, or HF_TOKEN)."
    )


def _known_commit(home: Path, model: HubModel) -> str | None:
    """Return the commit that a revision had when it was downloaded, None where it was not."""
    revision = model.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision if (home / "snapshots" / revision).is_dir() else None
    try:
        return (home / "refs" / revision).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _is_whole(folder: Path, weights: bool) -> bool:
    """Return whether a folder holds a model or an adapter, or else a tokenizer."""
    names = os.listdir(folder)
    if "adapter_config.json" in names:
        return "adapter_model.safetensors" in names or "adapter_model.bin" in names
    if not weights:
        return "config.json" in names or any(map(is_tokenizer, names))
    try:
        find_weights(folder)
    except CheckpointError:
        return False
    return True


def _bring_companions(model: HubModel, folder: Path, sizes: Mapping[str, int]) -> None:
    """Bring the files beside the weights that a folder of the cache lacks, as loading a tokenizer would.

    Raises:
        CheckpointError: one cannot be brought.
    """
    from huggingface_hub import hf_hub_download

    for name, size in sizes.items():
        beside = is_companion(name) if "/" not in name else is_in_companion_folder(name, sizes.keys())
        if not beside or size > _LARGEST_COMPANION or (folder / name).exists():
            continue
        try:
            hf_hub_download(model.name, name, revision=folder.name)
        except Exception as error:
            raise CheckpointError(
                f"{name} of {model.name} cannot be read ({_first_line(error)}). Is there a network? "
                f"`{model.command}` brings the whole model."
            ) from error


def _absent(model: HubModel, folder: Path | None, error: Exception | None) -> CheckpointError:
    """Return the error for a model that is not in the cache while the Hub cannot be asked."""
    why = "HF_HUB_OFFLINE is set" if error is None else f"the Hugging Face Hub does not answer ({_first_line(error)})"
    if "/" not in model.name and folder is None:  # rather a path than one of the Hub's oldest models
        return CheckpointError(
            f"{model.name} does not exist here, and {why}; is the path right? For a model of the Hugging Face Hub, "
            f"`{model.command}` fetches it where there is a network."
        )
    there = "is not here" if folder is None or not folder.is_dir() else "is here only in part"
    return CheckpointError(
        f"{model.name} {there}, and {why}. Where there is a network, `{model.command}` fetches it; or is the path "
        "right?"
    )


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]
