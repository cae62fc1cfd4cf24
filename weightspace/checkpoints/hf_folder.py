"""The weights of Hugging Face folders: one file, or shards named by an index.

They are searched in the order of the transformers and diffusers libraries: ``model.safetensors``, its index,
``pytorch_model.bin``, its index; the same for ``diffusion_pytorch_model``. An index must agree with its shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.json_file import read_json_object
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from weightspace.checkpoints.state_dict import StateDict

#: The weight file in folders that this library writes.
WEIGHTS = "model.safetensors"

#: Stem of the weight files of diffusers' models, where transformers has ``model`` and ``pytorch_model``.
DIFFUSERS = "diffusion_pytorch_model"

#: Files that may hold or index the weights, in order of preference.
ENTRANCES = (
    *(WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *(f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.safetensors.index.json"),
    *(f"{DIFFUSERS}.bin", f"{DIFFUSERS}.bin.index.json"),
    "pytorch_model_fsdp.bin",  # accelerate's full state dict of FSDP
    *("flax_model.msgpack", "flax_model.msgpack.index.json"),
)

#: Names of the same with a variant: ``model.fp16.safetensors``, ``model.safetensors.index.fp16.json``.
_VARIANT = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)"
    r"(?:\.(?P<file>\w+)\.(?:safetensors|bin)|\.(?:safetensors|bin)\.index\.(?P<index>\w+)\.json)"
)

#: The model card: rewritten by every merge, so that it never describes other weights.
CARD = "README.md"

#: Provenance of the weights of a folder of components, for which there is no place in a single file or index.
PROVENANCE = "weightspace.json"


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder, and the file that leads to them.

    Attributes:
        entrance: the single weight file, or the index of the shards.
        files: the single file, or the shards by name.
        index: tensor -> name of its shard; ``None`` without shards.
    """

    entrance: Path
    files: tuple[Path, ...]
    index: dict[str, str] | None

    @property
    def stem(self) -> str:
        """The stem of the files that are written in their place: ``model`` or ``diffusion_pytorch_model``."""
        return DIFFUSERS if self.entrance.name.startswith(DIFFUSERS) else "model"


def variant_of(folder: Path) -> str:
    """Return the variant of the weights of a folder that has no others, such as ``fp16``; or ``""``.

    Raises:
        CheckpointError: there are several variants.
    """
    if any((folder / name).is_file() for name in ENTRANCES):
        return ""
    found = [match for path in folder.iterdir() if (match := _VARIANT.fullmatch(path.name)) is not None]
    variants = sorted({match["file"] or match["index"] for match in found})
    if len(variants) > 1:
        raise CheckpointError(f"{folder} has weights in the variants {', '.join(variants)}. Keep one of them.")
    return variants[0] if variants else ""


def _entrances(variant: str) -> Iterator[str]:
    """Yield the files that may hold or index the weights, in order of preference."""
    for name in ENTRANCES:
        stem, dot, ending = name.rpartition(".")
        yield f"{stem}.{variant}{dot}{ending}" if variant else name


def find_weights(folder: Path) -> Weights:
    """Return the files that hold the weights of a folder; those of a variant if there are no others.

    Raises:
        CheckpointError: there are none, the index is damaged, a shard is missing, or there are several variants.
    """
    names = _entrances(variant_of(folder) if folder.is_dir() else "")
    entrance = next((folder / name for name in names if (folder / name).is_file()), None)
    if entrance is None:
        found = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        packed = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f" It holds {', '.join(found[:3])}: name the file itself." if found else ""
        if packed and not found:
            hint = f" It holds {', '.join(packed[:3])}: name the file itself."
        if (folder / "adapter_config.json").is_file():
            hint = " It is an adapter: merge adapters by `weightspace merge-adapters`, or add it: MODEL+ADAPTER."
        raise CheckpointError(f"{folder} holds no checkpoint: expected one of {', '.join(ENTRANCES)}.{hint}")
    if entrance.suffix != ".json":
        return Weights(entrance, (entrance,), None)
    index = read_index(entrance)["weight_map"]
    if entrance.name.startswith("flax_"):  # keys of its maps, joined by slashes
        index = {name.replace("/", "."): shard for name, shard in index.items()}
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


def read_weights(folder: Path, weights: Weights, read_file: Callable[[Path], StateDict]) -> StateDict:
    """Return all tensors of a folder, in the order of its index if it has shards.

    Raises:
        CheckpointError: as for ``read_file``, or index and shards disagree about a tensor.
    """
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
        entrance: the index file.
        index: tensor -> name of its shard.
        shards: name of a shard -> its tensors by name.

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
    """Return the metadata of an index, with values as strings.

    Raises:
        CheckpointError: the index is damaged.
    """
    metadata = read_index(entrance).get("metadata", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{entrance}: the metadata must be an object, found {type(metadata).__name__}.")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def read_index(path: Path) -> dict[str, Any]:
    """Read an index whose ``weight_map`` maps tensor names to names of files beside it.

    Raises:
        CheckpointError: it is damaged, or places a tensor elsewhere.
    """
    index = read_json_object(path)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no 'weight_map' from tensor names to files.")
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", "..") or "\0" in shard:
            raise CheckpointError(
                f"{path} places tensor {name!r} in {str(shard)[:80]!r}, expected the name of a file beside it."
            )
    return index
