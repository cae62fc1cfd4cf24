"""The checkpoints of a recipe: found, their headers read, and given the names that errors call them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from weightspace.adapters.adapter import read_adapter
from weightspace.adapters.factor_files import check_is_model, check_no_adapter_folder
from weightspace.checkpoints.contents import Contents, read_contents
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.remote import is_url
from weightspace.errors import CheckpointError
from weightspace.merging.engine.adapting import adapted
from weightspace.merging.engine.plan import Member


def open_members(sources: Sequence[str], evidence: Mapping[str, str]) -> tuple[Member, ...]:
    """Return one member a source.

    Args:
        sources: paths or URLs as the recipe has them, each once; ``MODEL+ADAPTER`` adds a LoRA adapter to a model.
        evidence: path of the statistics of data, by source.

    Raises:
        CheckpointError: a checkpoint or adapter is missing or damaged, or an adapter does not fit its model.
    """
    labels = dict(zip(sources, _labels(sources), strict=True))
    read: dict[Path, Contents] = {}

    def contents(path: Path) -> Contents:
        if path not in read:
            check_no_adapter_folder(path)
            read[path] = read_contents(path)
            check_is_model(read[path].tensors, path)
        return read[path]

    members = []
    for source in sources:
        path, adapter = split_adapter(source)
        statistics = contents(local_path(evidence[source])) if source in evidence else None
        member = Member(source, labels[source], contents(path), evidence=statistics)
        members.append(member if adapter is None else adapted(member, read_adapter(adapter)))
    return tuple(members)


def split_adapter(source: str) -> tuple[Path, Path | None]:
    """Return the model and the adapter of a source ``MODEL+ADAPTER``; a path that exists as it is has no adapter.

    Raises:
        CheckpointError: the adapter does not exist.
    """
    whole = Path(source)
    if whole.exists() or "+" not in source:
        return local_path(source), None
    model, _, adapter = source.rpartition("+")
    if is_url(source) and not is_url(adapter) and not Path(adapter).is_dir():
        return local_path(source), None
    folder = local_path(adapter)
    if not folder.is_dir():
        raise CheckpointError(
            f"{source}: {adapter} is no folder. Expected MODEL+ADAPTER with the folder of a LoRA adapter."
        )
    return local_path(model), folder


def _labels(sources: Sequence[str]) -> list[str]:
    """Return for each source the shortest end of its path that no other source ends with."""
    parts = [Path(source).parts for source in sources]
    labels = []
    for own in parts:
        others = [part for part in parts if part != own]
        length = next((n for n in range(1, len(own) + 1) if all(part[-n:] != own[-n:] for part in others)), len(own))
        labels.append("/".join(own[-length:]))
    return labels
