"""Checks of a merge's models against each other, from headers, configurations and the files beside the weights."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from weightspace.checkpoints.buffers import effective_name
from weightspace.checkpoints.companions import Companions, find_companions, is_tokenizer
from weightspace.checkpoints.quantisation import check_not_quantised, find_quantised, find_quantised_folder
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.engine.config_differences import config_differences, read_config
from weightspace.merging.engine.plan import Job, Member
from weightspace.merging.engine.prefixes import suggested_prefix
from weightspace.merging.methods import Method

#: Files that a line names.
_LISTED = 5


def check_plain(members: Sequence[Member]) -> None:
    """Check that no model is quantised.

    Raises:
        CheckpointError: one is; the message names the format. Or a configuration is damaged.
    """
    for member in members:
        contents = member.stored or member.contents
        tensors = {name: (info.dtype, len(info.shape)) for name, info in contents.tensors.items()}
        quantised = find_quantised(tensors)
        if quantised is None and contents.path.is_dir():
            quantised = find_quantised_folder(contents.path, read_config(contents.path) or {})
        check_not_quantised(member.label, quantised)


def check_something_in_common(sources: Sequence[Member]) -> None:
    """Check that models which are merged whole have a name in common.

    Raises:
        CheckpointError: they have none.
    """
    names = [member.contents.tensors.keys() for member in sources]
    if len(names) > 1 and not set.intersection(*map(set, names)):
        first = next(iter(names[0]))
        other = next(index for index in range(1, len(names)) if not names[0] & names[index]) if len(names) == 2 else 1
        prefix = suggested_prefix(first, names[other])
        hint = f" --strip-prefix {prefix} takes the prefix off." if prefix else " Are they models of one architecture?"
        raise CheckpointError(
            f"{' and '.join(member.label for member in sources[:3])} have no tensor in common: "
            f"{first!r} against {next(iter(names[other]))!r}. There is nothing to merge.{hint}"
        )


def check_evidence(row: Method, members: Sequence[Member], sources: Sequence[Member], jobs: Sequence[Job]) -> None:
    """Check that a method which needs statistics of data has them of every model, and others have none.

    Args:
        row: the method.
        members: all checkpoints, by the numbers that the jobs have them under.
        sources: the models, the base aside.
        jobs: the tensors of the output.

    Raises:
        WeightspaceError: statistics are missing, belong to no tensor, or are not asked for.
    """
    having = [member.label for member in sources if member.evidence is not None]
    if not row.evidence:
        if having:
            raise WeightspaceError(f"Method {row.name!r} has no use for evidence, found some of {having[0]}.")
        return
    lacking = [member.label for member in sources if member.evidence is None]
    if lacking:
        raise WeightspaceError(
            f"Method {row.name!r} needs {row.evidence} evidence of every model; {', '.join(lacking[:3])} has none. "
            "Collect it (`weightspace evidence`) and give it with --evidence; without, the result is a plain mean."
        )
    merged = {name for job in jobs if job.merges for name in (job.name, effective_name(job.name))}
    for member in sources:
        if member.evidence is not None and merged.isdisjoint(member.evidence.tensors):
            raise CheckpointError(
                f"{member.evidence.path} is no evidence for {member.label}: it has none of its tensors, but "
                f"{next(iter(member.evidence.tensors))!r}. Was it collected for this network?"
            )
    for job in jobs:
        if job.merges and effective_name(job.name) == job.name:  # parts of weights are looked at when they are read
            _check_evidence_of(row, members, job)


def _check_evidence_of(row: Method, members: Sequence[Member], job: Job) -> None:
    """Check that all models have statistics about a tensor, of the shape that the method reads, or none has any."""
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
    members: Sequence[Member], donor: Path | None, notice: Callable[[str], None], *, sliced: bool
) -> Companions:
    """Return the files beside the weights that the output gets, and tell what differs between the models' folders.

    Args:
        members: the models.
        donor: the folder whose files the output gets; None: there is none.
        notice: takes a line about each difference.
        sliced: layers are put together anew.

    Raises:
        CheckpointError: a folder or configuration cannot be read.
    """
    if donor is None:
        return Companions((), ())
    folders = {member.contents.path: member for member in members if member.contents.path.is_dir()}
    own = folders.pop(donor)
    configs: Mapping[str, dict[str, object] | None] = {
        member.label: read_config(path) for path, member in folders.items()
    }
    config = read_config(donor)
    if config is not None:
        others = [(label, other) for label, other in configs.items() if other is not None]
        for line in config_differences(own.label, config, others, sliced=sliced):
            notice(line)
    companions = find_companions(donor, [file.name for file in own.contents.files])
    if companions.left:
        names = ", ".join(companions.left[:_LISTED]) + (", …" if len(companions.left) > _LISTED else "")
        notice(f"Not copied from {own.label}: {names} (weights in other formats, or the state of a training).")
    for name in companions.copied:
        if "/" in name and not is_tokenizer(name):
            _compare_file(own, folders, name, notice)
    return companions


def _compare_file(own: Member, others: Mapping[Path, Member], name: str, notice: Callable[[str], None]) -> None:
    """Tell where a file of a folder inside a model's folder, such as the weights of a dense head, is another."""
    for path, member in others.items():
        if (path / name).is_file() and not filecmp.cmp(own.contents.path / name, path / name, shallow=False):
            notice(f"{name} of {member.label} is not that of {own.label}, which is copied: it is not merged.")
