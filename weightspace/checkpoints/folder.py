"""Hugging Face folders: weights in one file or in shards named by an index, configuration and tokenizer.

Looked for in the order of the transformers library: ``model.safetensors``, its index, ``pytorch_model.bin``,
its index. An index is believed only as far as its shards agree with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.disk import one_line_errors, synced_file
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from weightspace.checkpoints.state import StateDict

#: How the name of one file of weights ends.
SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")

#: The file of weights in a folder that we write.
WEIGHTS = "model.safetensors"

#: What may hold the weights, best first.
ENTRANCES = (WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

#: Every file that holds weights or says where they are.
_WEIGHT_FILES = (*ENTRANCES, "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")

#: What belongs to a model beside its weights and tokenizer: copied to a new folder, and replaced with an old one.
_COMPANIONS = (
    *("config.json", "generation_config.json", "open_clip_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)

#: Those of the companions that are the tokenizer.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken"),
    *("chat_template.json", "chat_template.jinja"),
)

#: The model card: written anew with every merge, so that it never speaks of other weights.
CARD = "README.md"


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
    entrance = next((folder / name for name in ENTRANCES if (folder / name).is_file()), None)
    if entrance is None:
        found = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        hint = f" It holds {', '.join(found[:3])}: name the file itself." if found else ""
        if (folder / "adapter_config.json").is_file():
            hint = " It is an adapter: merge adapters by `weightspace merge-adapters`, or add it: MODEL+ADAPTER."
        raise CheckpointError(f"{folder} holds no checkpoint: expected one of {', '.join(ENTRANCES)}.{hint}")
    if entrance.suffix != ".json":
        return Weights(entrance, (entrance,), None)
    index = read_index(entrance)["weight_map"]
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


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a checkpoint's weights: the file itself, or those of the folder by name.

    Raises:
        CheckpointError: the checkpoint is missing, or a shard is.
    """
    if path.is_dir():
        return find_weights(path).files
    file_suffix(path)
    return (path,)


def file_suffix(path: Path) -> str:
    """Return the lower-case ending of an existing checkpoint file.

    Raises:
        CheckpointError: there is no such file, or it is no checkpoint by its name.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Expected a checkpoint file or folder; is the path right?")
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX):
        endings = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
        raise CheckpointError(f"{path} is not a checkpoint: expected a folder, or a file ending in {endings}.")
    return suffix


def read_folder(folder: Path, read_file: Callable[[Path], StateDict]) -> StateDict:
    """Return all tensors of a folder, in the order of its index if it has shards.

    Raises:
        CheckpointError: as ``find_weights`` and ``read_file``, or index and shards disagree about a tensor.
    """
    weights = find_weights(folder)
    if weights.index is None:
        return read_file(weights.files[0])
    shards = {file.name: read_file(file) for file in weights.files}
    check_index(folder, weights.entrance, weights.index, shards)
    return {name: shards[shard][name] for name, shard in weights.index.items()}


def check_index(
    folder: Path, entrance: Path, index: Mapping[str, str], shards: Mapping[str, Mapping[str, object]]
) -> None:
    """Check that an index and its shards agree about every tensor.

    Args:
        folder: the checkpoint.
        entrance: the file of the index.
        index: tensor -> name of its shard.
        shards: name of a shard -> what it holds, by name of the tensor.

    Raises:
        CheckpointError: they disagree; the message names a tensor and its shard.
    """
    for name, shard in index.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks tensor {name!r}, which {entrance.name} says it holds. "
                "Do index and shards come from one checkpoint?"
            )
    for shard, tensors in shards.items():
        for name in tensors:
            if index.get(name) != shard:
                raise CheckpointError(
                    f"{folder / shard} holds tensor {name!r}, which {entrance.name} "
                    "does not place there. Do index and shards come from one checkpoint?"
                )


def index_metadata(entrance: Path) -> dict[str, str]:
    """Return the metadata of an index, its values as strings.

    Raises:
        CheckpointError: the index is damaged.
    """
    metadata = read_index(entrance).get("metadata", {})
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
        known = (*_WEIGHT_FILES, *_COMPANIONS, *_TOKENIZER, CARD)
        files = sorted(folder.iterdir())
        if files and not any((folder / name).is_file() for name in ENTRANCES):
            raise CheckpointError(
                f"{folder} exists and is not a checkpoint: it holds {files[0].name!r}. Choose a new folder."
            )
        for path in files:
            if path.is_dir() or not any(fnmatch(path.name, pattern) for pattern in known):
                raise CheckpointError(
                    f"{folder} exists and holds {path.name!r}, which is not part of a checkpoint "
                    "and would be lost. Choose a new folder, or move it away."
                )


def is_companion(name: str, *, tokenizer_only: bool = False) -> bool:
    """Return whether a file of that name is configuration or tokenizer (or: tokenizer)."""
    return any(fnmatch(name, pattern) for pattern in (_TOKENIZER if tokenizer_only else (*_COMPANIONS, *_TOKENIZER)))


def copy_companions(source: Path, folder: Path, *, tokenizer_only: bool = False) -> None:
    """Copy configuration and tokenizer files from one folder into another, over those that are there."""
    with one_line_errors(source, "read"):
        files = sorted(path for path in source.iterdir() if path.is_file())
    for path in files:
        if is_companion(path.name, tokenizer_only=tokenizer_only):
            (folder / path.name).unlink(missing_ok=True)
            with open(path, "rb") as original, synced_file(folder / path.name) as copy:
                shutil.copyfileobj(original, copy)


def read_index(path: Path) -> dict[str, Any]:
    """Return an index whose ``weight_map`` maps tensor names to names of files beside it.

    Raises:
        CheckpointError: it is damaged, or places a tensor elsewhere.
    """
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
