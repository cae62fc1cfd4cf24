"""Compatibility checks of a merge's models, from headers, configurations and the files beside the weights."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from weightspace.checkpoints.buffers import effective_name
from weightspace.checkpoints.companion_files import (
    Companions,
    find_companions,
    is_head,
    is_other_copy,
    is_tokenizer,
)
from weightspace.checkpoints.components import is_weights, listed_folders
from weightspace.checkpoints.json_file import parse_json
from weightspace.checkpoints.name_maps.suggest import fitting_map
from weightspace.checkpoints.quantisation import QUANTISATION_FILES
from weightspace.checkpoints.quantised.view import check_dequantised
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.methods import Method
from weightspace.merging.out_of_core.component_checks import configuration_notices
from weightspace.merging.plan.plan import Job, Member
from weightspace.merging.plan.prefixes import suggested_prefix
from weightspace.merging.recipe.types import Recipe

#: Number of files that a line names.
_LISTED = 8

_CONFIG = "config.json"

#: Files beside the weights that decide what the network computes, apart from its configuration and tokenizer.
_DECIDING = (
    *("*.py", "*processor*.json", "*feature_extractor*.json", "modules.json", "sentence_*config.json", "params.json"),
    *("open_clip_config.json", "config_sentence_transformers.json"),
)

#: Maximum bytes of JSON files that are compared by content; and keys that only identify the writer.
_LARGEST_JSON = 2**20
_WRITERS = ("transformers_version", "_name_or_path", "__version__", "_commit_hash")


def check_plain(members: Sequence[Member]) -> None:
    """Check that no model has quantised tensors besides those that are dequantised on reading.

    Raises:
        CheckpointError: a model has (the message names the format), or a configuration is damaged.
    """
    for member in members:
        contents = member.stored or member.contents
        check_dequantised(member.label if member.adapter is None else contents.path.name, contents)


def report_unmerged_base(recipe: Recipe, row: Method, notice: Callable[[str], None]) -> None:
    """Report a base that is not merged because the method takes none.

    Args:
        recipe: the recipe.
        row: its method.
        notice: called with a one-line message.
    """
    sources = {source.model for part in recipe.slices for source in part.sources}
    bases = dict.fromkeys(filter(None, (recipe.base, *recipe.bases)))
    for base in bases if row.base == "none" and recipe.is_document else ():
        if base not in sources:
            given = ["configuration"] if base == recipe.donor else []
            given += ["tokenizer"] if given and recipe.tokenizer_source in (None, "base", "union") else []
            given += ["rows of tokens that a model lacks"] if recipe.tokenizer_source is not None else []
            use = f"only supplies {', '.join(f'the {part}' for part in given)}" if given else "has no effect"
            notice(f"base_model {base} is not merged: method {row.name!r} takes no base. It {use}.")


def check_something_in_common(sources: Sequence[Member]) -> None:
    """Check that models which are merged whole have a tensor name in common.

    Raises:
        CheckpointError: they have none.
    """
    names = [member.contents.tensors.keys() for member in sources]
    if len(names) > 1 and not set.intersection(*map(set, names)):
        first = next(iter(names[0]))
        other = next(index for index in range(1, len(names)) if not names[0] & names[index]) if len(names) == 2 else 1
        prefix = suggested_prefix(first, names[other])
        hint = f" --strip-prefix {prefix} removes the prefix." if prefix else " Are they models of one architecture?"
        if (name_map := fitting_map(sources[other].contents, sources[0].contents)) is not None:
            hint = f" The name map {name_map} brings them together: --names {name_map} (names: {name_map})."
        raise CheckpointError(
            f"{' and '.join(member.label for member in sources[:3])} have no tensor in common: "
            f"{first!r} against {next(iter(names[other]))!r}. There is nothing to merge.{hint}"
        )


def check_evidence(row: Method, members: Sequence[Member], sources: Sequence[Member], jobs: Sequence[Job]) -> None:
    """Check that every model has evidence if the method needs it, and none has any otherwise.

    Args:
        row: the method.
        members: all checkpoints, as indexed by the jobs.
        sources: the models, without the base.
        jobs: the tensors of the output.

    Raises:
        WeightspaceError: evidence is missing, belongs to no tensor, or is not needed.
    """
    having = [member.label for member in sources if member.evidence is not None]
    if not row.evidence:
        if having:
            raise WeightspaceError(f"Method {row.name!r} does not use evidence; found some for {having[0]}.")
        return
    lacking = [member.label for member in sources if member.evidence is None]
    if lacking:
        raise WeightspaceError(
            f"Method {row.name!r} needs {row.evidence} evidence for every model; found none for "
            f"{', '.join(lacking[:3])}. Collect it (`weightspace evidence`) and pass it with --evidence; "
            "without it, the result is a plain mean."
        )
    merged = {name for job in jobs if job.merges for name in (job.name, effective_name(job.name))}
    models = [member.contents.path for member in sources]
    for member in sources:
        if member.evidence is not None and member.evidence.path in models:
            raise CheckpointError(
                f"The evidence of {member.label} is {member.evidence.path}, a model of this merge. Expected statistics "
                "of data, as `weightspace evidence` writes them."
            )
        if member.evidence is not None and merged.isdisjoint(member.evidence.tensors):
            raise CheckpointError(
                f"{member.evidence.path} is not evidence for {member.label}: it has none of its tensors, but "
                f"{next(iter(member.evidence.tensors))!r}. Was it collected for this network?"
            )
    for job in jobs:
        if job.merges and effective_name(job.name) == job.name:  # parts of weights are checked when they are read
            _check_evidence_of(row, members, job)


def _check_evidence_of(row: Method, members: Sequence[Member], job: Job) -> None:
    """Check that all models or none have evidence for a tensor, in the shape that the method reads."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    for index, name in job.inputs:
        evidence = members[index].evidence
        known = {} if evidence is None else evidence.tensors
        shapes[members[index].label] = tuple(known[name].shape) if name in known else None
    if all(shape is None for shape in shapes.values()):
        return
    own = tuple(job.info.shape)
    width = math.prod(own) // max(1, own[0]) if own else 0
    expected = own if row.evidence == "fisher" else (width, width)
    for label, shape in shapes.items():
        if shape != expected:
            found = "none" if shape is None else f"one of shape {shape}"
            raise CheckpointError(
                f"The evidence of {label} for {job.name!r}: found {found}, expected one of shape {expected}. "
                "Was it collected for this network?"
            )


def compare_folders(
    members: Sequence[Member],
    donor: Path | None,
    notice: Callable[[str], None],
    *,
    sliced: bool,
    moved: bool,
    copied: bool,
    listed: bool = True,
) -> Companions:
    """Return the files to copy beside the weights, and report differences between the models' folders.

    Args:
        members: the models.
        donor: the folder whose files the output gets; None: there is none.
        notice: called with a line about each difference.
        sliced: whether layers are stacked from slices.
        moved: whether rows are moved by token.
        copied: whether the output is a folder that gets files, not a single file.
        listed: whether files that are not copied are reported.

    Raises:
        CheckpointError: a folder or configuration cannot be read.
    """
    if donor is None:
        beside = next((member for member in members if (member.contents.path / _CONFIG).is_file()), None)
        if copied and beside is not None:
            notice(
                f"Only the weights are written: other files would come from the base, or else from the first model, "
                f"which is a single file or a training checkpoint. {beside.label} has a {_CONFIG}, which is not copied."
            )
        return Companions((), ())
    folders = {member.contents.path: member for member in members if member.contents.path.is_dir()}
    own = folders.pop(donor)
    for line in configuration_notices(own, folders, sliced=sliced, moved=moved):
        notice(line)
    if not copied:
        return Companions((), ())
    companions = find_companions(donor, own.contents.components)
    copied_files = tuple(name for name in companions.copied if name not in QUANTISATION_FILES)
    companions = Companions(copied_files, companions.left)
    if companions.left and listed:
        left = sorted(companions.left, key=is_other_copy)  # the least expected first
        names = ", ".join(left[:_LISTED]) + (f", and {len(left) - _LISTED:,} more" if len(left) > _LISTED else "")
        notice(f"Not copied from {own.label}: {names} (weights in other formats, training states, or links).")
    configured = {f"{one.path}{_CONFIG}" for one in own.contents.components}
    modules = set(listed_folders(donor).values())
    for name in companions.copied:
        is_component = is_weights(name) and name.partition("/")[0] in modules  # one that is not to be merged
        is_inside = "/" in name and name not in configured and not is_component
        deciding = is_inside or is_head(name) or any(fnmatch(name, pattern) for pattern in _DECIDING)
        if deciding and not is_tokenizer(name):
            _compare_file(own, folders, name, notice)
    return companions


def _compare_file(own: Member, others: Mapping[Path, Member], name: str, notice: Callable[[str], None]) -> None:
    """Report the folders in which a file beside the weights, such as that of a dense head, differs."""
    for path, member in others.items():
        if (path / name).is_file() and not _same_file(own.contents.path / name, path / name):
            notice(f"{name} of {member.label} differs from that of {own.label}, which is copied; it is not merged.")


def _same_file(file: Path, other: Path) -> bool:
    """Return whether two files have the same content, whoever wrote them."""
    if filecmp.cmp(file, other, shallow=False):
        return True
    if file.suffix != ".json" or max(file.stat().st_size, other.stat().st_size) > _LARGEST_JSON:
        return False
    try:
        contents = [parse_json(path.read_bytes(), str(path)) for path in (file, other)]
    except CheckpointError:
        return False
    plain = [
        {key: value for key, value in content.items() if key not in _WRITERS} if isinstance(content, dict) else content
        for content in contents
    ]
    return plain[0] == plain[1]
