"""The metadata and the identity of a plan: everything that determines the bytes of its output."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightspace.checkpoints.hashing import sha256_of
from weightspace.checkpoints.name_maps.named_maps import read_name_maps, written_maps
from weightspace.checkpoints.provenance import described
from weightspace.errors import WeightspaceError
from weightspace.merging.plan.options import OutputOptions, ReadingOptions
from weightspace.merging.plan.plan import Member, inputs_of
from weightspace.merging.recipe.types import Recipe
from weightspace.user_code import is_user_code


def reading_of(recipe: Recipe, reading: ReadingOptions) -> ReadingOptions:
    """Return how the inputs are read, including what the recipe says about it.

    Raises:
        WeightspaceError: recipe and options both set the components or the name maps.
    """
    for key, own, other in (
        ("components", recipe.components, reading.components),
        ("names", recipe.names, reading.names),
    ):
        if own and other and list(own) != other:
            raise WeightspaceError(f"{key} is set in the recipe and by an option; expected one of the two.")
    maps = written_maps(read_name_maps(reading.names))
    return replace(reading, components=recipe.components or tuple(reading.components or ()), names=recipe.names or maps)


def plan_metadata(
    recipe: Recipe, members: Sequence[Member], output: OutputOptions, reading: ReadingOptions, *, lenient: bool
) -> dict[str, str]:
    """Return the metadata of the output, with zeros in place of the digests of the inputs."""
    blank = "0" * 64 if output.hashes else ""
    paths = inputs_of(members)
    digests = {file: blank for member in members for file in member.files}
    recorded = {"shard_size": output.shard_size, **(output.recorded or {})}
    if output.allow_nonfinite:
        recorded["allow_nonfinite"] = True
    if output.device != "cpu":
        recorded["device"] = output.device
    if lenient:
        recorded["lenient"] = True
    if reading.key is not None:
        recorded["key"] = reading.key
    if reading.strip_prefix is not None:
        recorded["strip_prefix"] = reading.strip_prefix
    if reading.components and not recipe.components:
        recorded["components"] = list(reading.components)
    if reading.names and not recipe.names:
        recorded["names"] = reading.names
    if is_user_code(recipe.method):
        recorded["code"] = sha256_of(Path(recipe.method.rpartition(":")[0]))
    return {**described(paths, digests, recipe.method, recorded), "recipe": recipe.to_yaml()}


def plan_identity(
    metadata: Mapping[str, str], stamps: Mapping[Path, tuple[int, int]], output: OutputOptions, out: Path
) -> str:
    """Return a string that identifies the output's bytes; inputs enter by size and modification time."""
    files = [(os.path.realpath(file), *stamp) for file, stamp in stamps.items()]
    return json.dumps([dict(metadata), files, output.hashes, out.name])
