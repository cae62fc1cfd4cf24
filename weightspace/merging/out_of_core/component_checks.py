"""Checks of a merge of folders of components, and the configurations of the components."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightspace.checkpoints.components import Component, in_folders, owner_of
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.config.differences import config_differences, read_config
from weightspace.merging.plan.plan import Job, Member
from weightspace.merging.recipe.types import Recipe
from weightspace.merging.slices.configuration import adapted_configurations


def check_components(recipe: Recipe, members: Sequence[Member], donor: Path | None, *, lenient: bool) -> None:
    """Check that the models have the same components, and that the recipe asks for nothing that these don't have.

    Args:
        recipe: the recipe.
        members: the checkpoints of the merge.
        donor: the folder that the output gets its other files from, or None.
        lenient: whether components that a model lacks are copied from another one.

    Raises:
        CheckpointError: a model lacks a component of another one.
        WeightspaceError: the recipe has keys that only apply to folders with weights of their own.
    """
    parts = {member.label: member.contents.components for member in members if len(member.contents.components) > 1}
    if parts and not lenient:
        label, most = max(parts.items(), key=lambda item: len(item[1]))
        for other, own in parts.items():
            prefixes = {one.prefix for one in own}
            lacking = [one.name for one in most if one.prefix not in prefixes]
            if lacking:
                shared = [f"--component {one.name}" for one in most if one.prefix in prefixes]
                raise CheckpointError(
                    f"{other} has no component {', '.join(map(repr, lacking))}, which {label} has. "
                    f"{' '.join(shared)} merges the others only; --lenient copies it from {label}."
                )
    own = next((member.contents.components for member in members if member.contents.path == donor), ())
    if not in_folders(own):
        return
    sliced = any(source.layer_range is not None for part in recipe.slices for source in part.sources)
    asked = {
        "slices": sliced,
        "tokenizer": recipe.tokenizer_source is not None,
        "quantise": recipe.quantise is not None,
    }
    for key, is_asked in asked.items():
        if is_asked:
            raise WeightspaceError(
                f"{key} does not apply to {donor}, whose weights are in folders of their own: "
                f"{', '.join(one.folder for one in own)}. Merge that folder by itself."
            )


def configuration_notices(own: Member, others: Mapping[Path, Member], *, sliced: bool, moved: bool) -> Iterator[str]:
    """Yield a line for each model whose configuration defines another function than the output's, by component.

    Args:
        own: the model whose configurations the output uses.
        others: folder -> model.
        sliced: whether layers are stacked from slices.
        moved: whether rows are moved by token.

    Raises:
        CheckpointError: a configuration is damaged.
    """
    for one in own.contents.components:
        config = read_config(own.contents.path / one.folder)
        if config is None:
            continue
        theirs = {member.label: _config_of(path, member, one.prefix) for path, member in others.items()}
        known = [(_named(label, one), other) for label, other in theirs.items() if other is not None]
        yield from config_differences(_named(own.label, one), config, known, sliced=sliced, moved=moved)


def component_configurations(donor: Path, components: Sequence[Component], jobs: Sequence[Job]) -> dict[str, str]:
    """Return the configuration files of components that change in the output: relative path -> new text.

    Args:
        donor: the folder that they come from.
        components: the components of the output.
        jobs: the tensors of the output.

    Raises:
        CheckpointError: a configuration is damaged.
    """
    changed: dict[str, str] = {}
    for one in components:
        if not one.prefix and not one.folder:
            continue  # the configuration of the model itself
        own = [job for job in jobs if owner_of(job.name, components) is one]
        named = [replace(job, name=job.name.removeprefix(one.prefix)) for job in own]
        texts = adapted_configurations(donor / one.folder, named, untied=False, stackings=())
        changed |= {f"{one.path}{name}": text for name, text in texts.items()}
    return changed


def _config_of(path: Path, member: Member, prefix: str) -> dict[str, object] | None:
    """Return the configuration of a model's component with a prefix."""
    own = next((one for one in member.contents.components if one.prefix == prefix), None)
    return None if own is None else read_config(path / own.folder)


def _named(label: str, component: Component) -> str:
    return f"{label}/{component.folder}" if component.folder else label
