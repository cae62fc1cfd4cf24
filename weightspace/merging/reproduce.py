"""Reproduction of a merge from its output's metadata, compared byte by byte.

The metadata comes from whoever made the file: code that it names is run only if that is allowed.
"""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import final_target, one_line_errors, temporary_folder
from weightspace.checkpoints.detection import weight_files
from weightspace.checkpoints.remote import is_url
from weightspace.checkpoints.stored_metadata import load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.merge_files import merge_files
from weightspace.merging.out_of_core.aligning import Alignment
from weightspace.merging.out_of_core.run import Finish
from weightspace.merging.plan.options import MEMORY, ExecutionOptions, OutputOptions, ReadingOptions
from weightspace.merging.recipe.parse import Recipe, parse_recipe
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.user_code import is_user_code, running_no_code

#: Recorded key of an alignment or a finish -> the argument to pass again.
_ARGUMENTS = {"align": "the alignment (--spec, --network or --task)", "statistics": "the statistics of a task (--task)"}


#: Options that a plan records itself.
_OWN = (
    "shard_size",
    "allow_nonfinite",
    "device",
    "lenient",
    "code",
    "key",
    "strip_prefix",
    "stages",
    "components",
    "names",
)


@brief
@dataclass(frozen=True)
class Reproduction:
    """Result of reproducing a merge.

    Attributes:
        out: the checkpoint that was reproduced.
        equal: whether every file of weights has the same bytes.
        differing: names of the files that do not.
        changed: names of the inputs, and of the user's code, whose SHA-256 has changed.
    """

    out: str
    equal: bool
    differing: tuple[str, ...]
    changed: tuple[str, ...]


def reproduce(
    out: str | os.PathLike[str],
    *,
    align: Alignment | None = None,
    finish: Finish | None = None,
    allow_code: bool = False,
    memory: int = MEMORY,
    threads: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Reproduction:
    """Repeat a merge from the recipe in its metadata, beside its output, and compare the bytes.

    Args:
        out: an output of ``merge_files``. Its inputs must be where the recipe says.
        align: the alignment, if one was used.
        finish: the function that was applied to the merged network, if one was.
        allow_code: run the Python file that the metadata names as the method, if any. Read it first.
        memory, threads: as in ``ExecutionOptions``.
        on_progress: as in ``merge_files``.

    Raises:
        CheckpointError: the metadata has no recipe or is damaged, or as ``merge_files``.
        WeightspaceError: the merge was aligned or finished differently, or it needs code that is not allowed.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> for seed in (0, 1):
        ...     ws.save_checkpoint({"w": torch.full((8,), float(seed))}, f"{seed}.safetensors")
        >>> report = ws.merge_files(["0.safetensors", "1.safetensors"], "merged.safetensors")
        >>> ws.reproduce("merged.safetensors").equal
        True
    """
    path = Path(out)
    metadata = load_metadata(path)
    if "recipe" not in metadata:
        raise CheckpointError(f"{path} has no merge recipe in its metadata; expected an output of `weightspace merge`.")
    options = _options(path, metadata)
    with running_no_code():
        lenient = _skip_warning if options.get("lenient") else None
        recipe = parse_recipe(metadata["recipe"], str(path), warn=lenient, ignored=_skip_warning)
    _check_code(path, recipe, allow_code)
    _check_options(path, options, align, finish)
    again_described = set() if align is None else align.described().keys()
    recorded = {key: value for key, value in options.items() if key not in {*_OWN, *again_described}}
    with one_line_errors(path, "reproduced"), _placed(path, recipe), temporary_folder(final_target(path)) as folder:
        again = folder / path.name
        stages = folder / ".stages" if "stages" in options else None  # results in between that were on the disk
        merge_files(
            recipe,
            again,
            align=align,
            finish=finish,
            lenient=options.get("lenient", False),
            reading=_reading_options(options),
            output=_output_options(options, recorded, hashes=_has_hashes(metadata)),
            execution=ExecutionOptions(memory, threads, fsync=False, intermediate_dir=stages),
            on_progress=on_progress,
        )
        return _compared(path, again)


@contextmanager
def _placed(path: Path, recipe: Recipe) -> Iterator[None]:
    """Say that sources are relative to the folder of the first merge, where one is missing in this one.

    Raises:
        CheckpointError: a source cannot be read.
    """
    try:
        yield
    except CheckpointError as error:
        models = [model for document in (*recipe.documents, recipe) for model in document.models]
        sources = [part for model in models for part in model.split("+") if not (is_url(part) or os.path.isabs(part))]
        missing = next((part for part in sources if part in str(error) and not os.path.exists(part)), None)
        if missing is None:
            raise
        raise CheckpointError(
            f"{path} was made from {missing!r}, relative to the folder of that merge, and there is no {missing!r} "
            "here. Run the command in that folder."
        ) from error


def _output_options(options: Mapping[str, Any], recorded: Mapping[str, Any], *, hashes: bool) -> OutputOptions:
    device = options.get("device", "cpu")
    return OutputOptions(options["shard_size"], options.get("allow_nonfinite", False), hashes, recorded, device)


def _reading_options(options: Mapping[str, Any]) -> ReadingOptions:
    parts, names = options.get("components"), options.get("names")
    return ReadingOptions(options.get("key"), options.get("strip_prefix"), components=parts, names=names)


def _options(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of the merge from its output's metadata."""
    if metadata.get("method") == "moe":
        raise CheckpointError(f"{path} is a mixture of experts; run `weightspace moe` with its recipe to reproduce it.")
    try:
        options, inputs = json.loads(metadata["parameters"]), json.loads(metadata["inputs"])
        _digests(inputs)
        size = options["shard_size"]
        whole = isinstance(size, int) and not isinstance(size, bool) and size > 0
        words = all(
            options.get(key) is None or isinstance(options[key], str) for key in ("key", "strip_prefix", "device")
        )
        parts = options.get("components", [])
        words = words and isinstance(parts, list) and all(isinstance(part, str) for part in parts)
        if whole and words and all(options.get(key, False) in (True, False) for key in ("allow_nonfinite", "lenient")):
            return dict(options)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    raise CheckpointError(
        f"{path}: the metadata of the merge is damaged; expected `parameters` with a shard_size, and `inputs` with "
        "name and sha256, as `weightspace merge` writes them."
    )


def _digests(inputs: Any) -> dict[str, str]:
    """Return the SHA-256 of the inputs in the metadata by name."""
    return {str(entry["name"]): str(entry["sha256"]) for entry in inputs}


def _all_digests(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of the inputs, including those of intermediate results."""
    stages = json.loads(metadata["parameters"]).get("stages", {})
    return {
        **_digests(entry for stage in stages.values() for entry in stage),
        **_digests(json.loads(metadata["inputs"])),
    }


def _check_code(path: Path, recipe: Recipe, allowed: bool) -> None:
    """Check that code named in the metadata may be run."""
    for method in (document.method for document in (*recipe.documents, recipe)):
        if is_user_code(method) and not allowed:
            raise WeightspaceError(
                f"{path} says that it was made by the code {method[:200]!r}, which would be run. Read that file, "
                "then allow it with --allow-code (allow_code=True)."
            )


def _skip_warning(line: str) -> None:
    """Ignore a warning that the first merge already gave."""


def _compared(path: Path, again: Path) -> Reproduction:
    """Compare the weights of two checkpoints file by file."""
    old, new = (_by_name(checkpoint) for checkpoint in (path, again))
    differing = [
        name
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or not filecmp.cmp(old[name], new[name], shallow=False)
    ]
    then, now = (_all_digests(load_metadata(checkpoint)) for checkpoint in (path, again))
    changed = [name for name, digest in now.items() if then.get(name) != digest]
    if _code(path) != _code(again):
        changed.append(load_metadata(path)["method"])
    return Reproduction(str(path), not differing, tuple(differing), tuple(changed))


def _by_name(checkpoint: Path) -> dict[str, Path]:
    """Return the files of a checkpoint's weights by name, or by path relative to its folder."""
    files = weight_files(checkpoint)
    return {str(file.relative_to(checkpoint)) if checkpoint.is_dir() else file.name: file for file in files}


def _check_options(path: Path, options: Mapping[str, Any], align: Alignment | None, finish: Finish | None) -> None:
    """Check that arguments which the recipe does not hold are passed again."""
    if "transplant" in options:
        raise WeightspaceError(f"{path} was made by `weightspace transplant`; run that again to reproduce it.")
    arguments = {"align": align, "statistics": finish}
    for key, name in _ARGUMENTS.items():
        if (key in options) != (arguments[key] is not None):
            raise WeightspaceError(f"{path} was made {'with' if key in options else 'without'} {name}: do the same.")
    if align is not None:
        for key, value in align.described().items():
            if options.get(key) != value:
                raise WeightspaceError(f"{path} was made with {key} {options.get(key)}, found {value}: pass the same.")


def _code(path: Path) -> str | None:
    """Return the SHA-256 of the user's code that made a checkpoint, if any."""
    return json.loads(load_metadata(path)["parameters"]).get("code")


def _has_hashes(metadata: Mapping[str, str]) -> bool:
    return any(entry["sha256"] for entry in json.loads(metadata["inputs"]))
