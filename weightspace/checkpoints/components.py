"""The components of a model's folder: parts with weights of their own, merged together as one checkpoint.

A diffusers pipeline (``model_index.json``) has a folder for each component; the names of its tensors start with that of
the component: ``unet.conv_in.weight``. A sentence-transformers model (``modules.json``) has numbered modules:
``2_Dense.linear.weight``; the names of the first module, the transformer, stay as they are, in whatever folder it is.
Any other folder is a single component.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.file_format import MODULES, PIPELINE
from weightspace.checkpoints.hf_folder import PROVENANCE, Weights, find_weights, index_metadata
from weightspace.checkpoints.json_file import read_json, read_json_object
from weightspace.errors import CheckpointError
from weightspace.suggestions import unknown

#: Modules of sentence-transformers that have weights; others, such as pooling, have a configuration alone.
_TRAINED = frozenset(
    {"CNN", "Dense", "LayerNorm", "LSTM", "StaticEmbedding", "WeightedLayerPooling", "WordEmbeddings", "WordWeights"}
)

#: Endings of files that hold weights.
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx", ".gguf", ".h5")


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a model's folder with weights of its own.

    Attributes:
        name: its name: ``unet``, ``2_Dense``; ``""`` for a folder that is a single component.
        folder: its folder, relative to that of the model; ``""`` for the same.
        prefix: start of the names of its tensors in the checkpoint.
        weights: the files of its weights.
    """

    name: str
    folder: str
    prefix: str
    weights: Weights

    @property
    def path(self) -> str:
        """The start of the paths of its files, relative to the model's folder."""
        return f"{self.folder}/" if self.folder else ""


def find_components(folder: Path, names: Collection[str] = ()) -> tuple[Component, ...]:
    """Return the components of a folder that have weights.

    Args:
        folder: a model's folder.
        names: the components to return; by default all. The tensors of a single one keep the names in its files. A
            folder that is a single component is returned whatever the names.

    Raises:
        CheckpointError: there are no weights, an index is damaged, or weights are missing or in an unknown format.
        WeightspaceError: a component is unknown.
    """
    listed = listed_folders(folder)
    if not listed:
        return (Component("", "", "", find_weights(folder)),)
    found = [one for one in (_component(folder, name, path) for name, path in listed.items()) if one is not None]
    if not found:
        raise CheckpointError(f"{folder} holds no weights in any of {', '.join(listed)}. Copy it again.")
    if (folder / PIPELINE).is_file():
        found = [Component(one.name, one.folder, f"{one.name}.", one.weights) for one in found]
    for name in names:
        if name not in {one.name for one in found}:
            raise unknown(f"component of {folder}", name, [one.name for one in found])
    chosen = [one for one in found if not names or one.name in names]
    if len(names) == 1:
        chosen = [Component(one.name, one.folder, "", one.weights) for one in chosen]
    return tuple(chosen)


def listed_folders(folder: Path) -> dict[str, str]:
    """Return the components that the folder's index lists, with or without weights: name -> relative path.

    Raises:
        CheckpointError: the index is damaged, or names a path outside.
    """
    if (folder / PIPELINE).is_file():
        content = read_json_object(folder / PIPELINE)
        names = [name for name, value in content.items() if not name.startswith("_") and _is_class(value)]
        return {name: _inside(folder / PIPELINE, name) for name in names if (folder / name).is_dir()}
    if (folder / MODULES).is_file():
        modules = read_json(folder / MODULES)
        if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
            raise CheckpointError(f"{folder / MODULES} must be a list of modules.")
        paths = [_inside(folder / MODULES, one.get("path")) for one in modules]
        kinds = [str(one.get("type", "")).rpartition(".")[2] for one in modules]
        names = {path or f"{index}_{kind}": path for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))}
        if len(names) != len(paths):
            raise CheckpointError(f"{folder / MODULES}: two modules have one path.")
        return names
    return {}


def folder_metadata(folder: Path) -> dict[str, str] | None:
    """Return the metadata of a folder; None if it is in its only file of weights.

    Raises:
        CheckpointError: there are no weights, or a file is damaged.
    """
    if (folder / PROVENANCE).is_file():
        return {key: str(value) for key, value in read_json_object(folder / PROVENANCE).items()}
    weights = find_components(folder)[0].weights
    return None if weights.index is None else index_metadata(weights.entrance)


def owner_of(name: str, components: Sequence[Component]) -> Component | None:
    """Return the component that a tensor belongs to by its name, or None."""
    owners = [one for one in components if name.startswith(one.prefix)]
    return max(owners, key=lambda one: len(one.prefix), default=None)


def tokenizer_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of a model that may hold a tokenizer: name in a pipeline (otherwise ``""``) -> folder."""
    listed = listed_folders(folder)
    if (folder / PIPELINE).is_file():
        return {name: folder / path for name, path in listed.items() if name.startswith("tokenizer")}
    return {"": folder / next(iter(listed.values()), "")}


def in_folders(components: Sequence[Component]) -> bool:
    """Return whether the components of a model are in folders of their own, so that its own folder has no weights."""
    return any(one.folder for one in components[:1])


def _component(folder: Path, name: str, path: str) -> Component | None:
    """Return a listed component, or None if it has no weights.

    The first module of sentence-transformers is the transformer, whose tensors have no prefix.

    Raises:
        CheckpointError: its weights are missing, in another format, or in folders of their own.
    """
    place, is_pipeline = folder / path, (folder / PIPELINE).is_file()
    is_first = not is_pipeline and next(iter(listed_folders(folder))) == name
    with one_line_errors(place, "read"):
        files = [file for file in place.iterdir() if file.is_file()] if place.is_dir() else []
        below = [file for file in place.rglob("*") if file.parent != place] if path and place.is_dir() else []
    if any(map(_holds_weights, files)):
        return Component(name, path, "" if is_first else f"{name}.", find_weights(place))
    if nested := next(filter(_holds_weights, below), None):
        raise CheckpointError(
            f"{place} holds modules in folders of their own ({nested.relative_to(folder)}), which are not merged. "
            "Merge them one by one."
        )
    needed = (place / "config.json").is_file() if is_pipeline else _module_kind(folder, path) in _TRAINED
    if is_first or needed:
        raise CheckpointError(f"{place} holds no weights of {name!r}. Download or copy the model again.")
    return None


def _module_kind(folder: Path, path: str) -> str:
    """Return the class of a listed module of sentence-transformers, without its package."""
    modules = read_json(folder / MODULES)
    return next((str(one.get("type", "")).rpartition(".")[2] for one in modules if one.get("path") == path), "")


def is_weights(name: str) -> bool:
    """Return whether a file of this name holds weights, in any format."""
    return name.lower().endswith(_ENDINGS)


def _holds_weights(file: Path) -> bool:
    return is_weights(file.name) and not file.name.startswith(("training_args", "optimizer", "rng_state"))


def _is_class(value: Any) -> bool:
    """Return whether an entry of a pipeline names a class: a pair of its library and its name."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _inside(index: Path, path: Any) -> str:
    """Return the relative path of a component after checking that it is a folder's name.

    Raises:
        CheckpointError: it is another path.
    """
    if not isinstance(path, str) or path in (".", "..") or "/" in path or "\\" in path or "\0" in path:
        raise CheckpointError(
            f"{index} places a component in {str(path)[:80]!r}, expected the name of a folder beside it."
        )
    return path
