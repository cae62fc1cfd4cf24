"""Hugging Face folders: weights in one file or in shards named by an index, configuration and tokenizer.

Looked for in the order of the transformers library: ``model.safetensors``, its index, ``pytorch_model.bin``,
its index. An index is believed only as far as its shards agree with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.disk import one_line_errors, synced_file
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from weightspace.checkpoints.state import StateDict

#: The file of weights in a folder that we write.
WEIGHTS = "model.safetensors"

#: What may hold the weights, best first.
_ENTRANCES = (WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

#: Every file that holds weights or says where they are.
_WEIGHT_FILES = (*_ENTRANCES, "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")

#: What belongs to a model beside its weights: copied to a new folder, and replaced with an old one.
_COMPANIONS = (
    *("config.json", "generation_config.json", "open_clip_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("chat_template.json", "chat_template.jinja"),
)


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder, and what leads to them.

    Attributes:
        entrance: the one file of weights, or the index of the shards.
        files: the one file, or the shards by name.
        index: tensor -> name of its shard; ``None`` without shards.
    """

    entrance: Path
    files: tuple[Path, ...]
    index: dict[str, str] | None


def find_weights(folder: Path) -> Weights:
    """Return the files that hold the weights of a folder.

    Raises:
        CheckpointError: there are none, the index is damaged, or a shard is missing.
    """
    entrance = next((folder / name for name in _ENTRANCES if (folder / name).is_file()), None)
    if entrance is None:
        found = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        hint = f" It holds {', '.join(found[:3])}: name the file itself." if found else ""
        raise CheckpointError(f"{folder} holds no checkpoint: expected one of {', '.join(_ENTRANCES)}.{hint}")
    if entrance.suffix != ".json":
        return Weights(entrance, (entrance,), None)
    index = _read_index(entrance)["weight_map"]
    files = tuple(folder / shard for shard in sorted(set(index.values())))
    for file in files:
        if not file.is_file():
            count = sum(shard == file.name for shard in index.values())
            name = next(name for name, shard in index.items() if shard == file.name)
            raise CheckpointError(
                f"{file} is missing: {entrance.name} says that it holds {name!r}, {count:,} tensors in all. "
                "Download or copy it again."
            )
    return Weights(entrance, files, index)


def read_folder(folder: Path, read_file: Callable[[Path], StateDict]) -> StateDict:
    """Return all tensors of a folder, in the order of its index if it has shards.

    Raises:
        CheckpointError: as ``find_weights`` and ``read_file``, or index and shards disagree about a tensor.
    """
    weights = find_weights(folder)
    if weights.index is None:
        return read_file(weights.files[0])
    shards = {file.name: read_file(file) for file in weights.files}
    for name, shard in weights.index.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks tensor {name!r}, which {weights.entrance.name} says it holds. "
                "Do index and shards come from one checkpoint?"
            )
    for shard, tensors in shards.items():
        for name in tensors:
            if weights.index.get(name) != shard:
                raise CheckpointError(
                    f"{folder / shard} holds tensor {name!r}, which {weights.entrance.name} "
                    "does not place there. Do index and shards come from one checkpoint?"
                )
    return {name: shards[shard][name] for name, shard in weights.index.items()}


def index_metadata(entrance: Path) -> dict[str, str]:
    """Return the metadata of an index, its values as strings.

    Raises:
        CheckpointError: the index is damaged.
    """
    metadata = _read_index(entrance).get("metadata", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{entrance}: the metadata must be an object, found {type(metadata).__name__}.")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def check_replaceable(folder: Path) -> None:
    """Check that nothing but a checkpoint is lost when the folder is replaced.

    Raises:
        CheckpointError: the path is a file, or the folder holds something that is not part of a checkpoint.
    """
    with one_line_errors(folder, "written"):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; expected a folder, or a name that ends in .safetensors or .pt.")
        known = (*_WEIGHT_FILES, *_COMPANIONS)
        files = sorted(folder.iterdir())
        if files and not any((folder / name).is_file() for name in _ENTRANCES):
            raise CheckpointError(
                f"{folder} exists and is not a checkpoint: it holds {files[0].name!r}. Choose a new folder."
            )
        for path in files:
            if path.is_dir() or not any(fnmatch(path.name, pattern) for pattern in known):
                raise CheckpointError(
                    f"{folder} exists and holds {path.name!r}, which is not part of a checkpoint "
                    "and would be lost. Choose a new folder, or move it away."
                )


def copy_companions(source: Path, folder: Path) -> None:
    """Copy configuration and tokenizer files from one folder into another."""
    with one_line_errors(source, "read"):
        files = sorted(path for path in source.iterdir() if path.is_file())
    for path in files:
        if any(fnmatch(path.name, pattern) for pattern in _COMPANIONS):
            with open(path, "rb") as original, synced_file(folder / path.name) as copy:
                shutil.copyfileobj(original, copy)


def _read_index(path: Path) -> dict[str, Any]:
    """Return an index whose ``weight_map`` maps tensor names to names of files beside it."""
    with one_line_errors(path, "read"):
        try:
            index = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not valid JSON ({error}).") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no 'weight_map' from tensor names to files.")
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", "..") or "\0" in shard:
            raise CheckpointError(
                f"{path} places tensor {name!r} in {str(shard)[:80]!r}, expected the name of a file beside it."
            )
    return index
