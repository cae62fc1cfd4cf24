"""Open the checkpoints of a recipe: locate them, read their headers, and choose short labels for messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.fetching import fetched_path, local_path
from weightspace.checkpoints.file_format import MODULES, PIPELINE
from weightspace.checkpoints.hub_names import hub_model
from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.name_maps.agree import under_common_names
from weightspace.checkpoints.name_maps.named_maps import read_name_maps
from weightspace.checkpoints.quantised.view import dequantised
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.remote import is_url
from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter
from weightspace.lora.base_names import other_base
from weightspace.lora.factor_files import check_is_model, check_no_adapter_folder
from weightspace.lora.model_config import read_config
from weightspace.lora.read import read_adapter
from weightspace.merging.plan.lora_inputs import adapted
from weightspace.merging.plan.options import Intermediate, ReadingOptions
from weightspace.merging.plan.plan import Member
from weightspace.merging.plan.prefixes import strip_prefixes, without_inner_wrappers
from weightspace.merging.recipe.model_reference import without_adapter

#: Placeholder for the path of a checkpoint in a note.
_PATH = "\0"


def open_members(
    sources: Sequence[str],
    evidence: Mapping[str, str],
    reading: ReadingOptions,
    notice: Callable[[str], None],
    donor: str | None = None,
) -> tuple[Member, ...]:
    """Return one member per source.

    Args:
        sources: distinct paths or URLs as written in the recipe; ``MODEL+ADAPTER`` adds a LoRA adapter to a model.
        evidence: source -> path of its data statistics.
        reading: options for reading the inputs.
        notice: called with a one-line message about each choice made while reading.
        donor: the source whose names the others get by name maps; None: the first one.

    Raises:
        CheckpointError: a checkpoint or adapter is missing or damaged, an adapter does not match its model, or a name
            map does not fit.
    """
    labels = _labels(sources)
    paths = [split_adapter(source, reading.intermediates) for source in sources]
    read = _read_models(dict.fromkeys(path for path, _ in paths), reading, notice)
    known = [read[path] for path, _ in paths]
    maps = read_name_maps(reading.names)
    first = 0 if donor is None else sources.index(donor)
    named = under_common_names(known, labels, first, maps, notice)
    for source, (_, adapter), before, after in zip(sources, paths, known, named, strict=True):
        if after is not before:
            own = "an adapter" if adapter is not None else "evidence" if source in evidence else ""
            _check_only_named(source, own, reading.intermediates, after)
    models = strip_prefixes(named, labels, strip=reading.strip_prefix, notice=notice)
    members = []
    for source, label, contents, (_, adapter) in zip(sources, labels, models, paths, strict=True):
        statistics = _evidence(evidence[source], contents) if source in evidence else None
        intermediate = reading.intermediates.get(without_adapter(source))
        quantised = {name: contents.quantised_parts(name) for name in contents.tensors}
        dtypes, plan = {name: parts[0].dtype for name, parts in quantised.items() if parts}, None
        if intermediate is not None:
            dtypes, plan = intermediate.dtypes, intermediate.plan
        member = Member(source, label, contents, evidence=statistics, dtypes=dtypes, plan=plan)
        if adapter is None:
            members.append(member)
            continue
        lora = read_adapter(adapter)
        if intermediate is None:
            _report_other_base(source, contents.path, lora, notice)
        members.append(adapted(member, lora))
        for note in () if members[-1].adapter is None else members[-1].adapter.notes:
            notice(f"{source}: {note}")
    return tuple(members)


def _read_models(
    paths: Iterable[Path], reading: ReadingOptions, notice: Callable[[str], None]
) -> dict[Path, CheckpointMetadata]:
    """Return the metadata of models by path.

    Raises:
        CheckpointError: a model is missing or damaged, is an adapter, or none has the components that are asked for.
    """
    parts, read = tuple(reading.components or ()), {}
    for path in paths:
        check_no_adapter_folder(path)
        read[path] = dequantised(read_contents(path, key=reading.key, components=parts))
    if parts and not any(one.name for contents in read.values() for one in contents.components):
        raise CheckpointError(
            f"--component {parts[0]} (components) needs a folder of components, and no model is one: expected the "
            f"{PIPELINE} of a diffusers pipeline or the {MODULES} of a sentence-transformers model."
        )
    if reading.key and all(contents.key is None for contents in read.values()):
        notice(
            f"--key {reading.key} (key=…) has no effect: it selects an entry of torch files and DCP folders, and no "
            "model is one."
        )
    for path, contents in read.items():
        check_is_model(contents.tensors, path)
    for note in _grouped(read):
        notice(note)
    return read


def _check_only_named(
    source: str, own: str, intermediates: Mapping[str, Intermediate], contents: CheckpointMetadata
) -> None:
    """Check that nothing else refers to the old names of a model whose names change.

    Args:
        source: the model as written in the recipe.
        own: the adapter or the evidence that it has, or "".
        intermediates: results of other documents by name.
        contents: the model under its new names.

    Raises:
        CheckpointError: it has an adapter or evidence, or is an intermediate result whose tensors would be others.
    """
    if own:
        raise CheckpointError(
            f"{source} has {own} under names that a name map would change. Convert the model first: `weightspace merge "
            "MODEL -m passthrough --names MAP=SIDE -o OUT`."
        )
    if source in intermediates and contents.assembled:
        raise CheckpointError(
            f"{source} is the result of another document, of which a name map would make other tensors. Give the "
            "models of that document the names that are wanted: `names: MAP=SIDE`."
        )


def _grouped(read: Mapping[Path, CheckpointMetadata]) -> list[str]:
    """Return the notes on the checkpoints, one line for those that are told of several."""
    paths: dict[str, list[Path]] = {}
    for path, contents in read.items():
        for note in contents.notes:
            paths.setdefault(note.replace(str(path), _PATH), []).append(path)
    others = {note: f" (like {len(own) - 1:,} more)" if len(own) > 1 else "" for note, own in paths.items()}
    firsts = {note: note.replace(_PATH, f"{own[0]}{others[note]}", 1) for note, own in paths.items()}
    return [first.replace(_PATH, str(paths[note][0])) for note, first in firsts.items()]


def _report_other_base(source: str, path: Path, adapter: Adapter, notice: Callable[[str], None]) -> None:
    """Report an adapter that was trained on a model of another name.

    Args:
        source: the source as written in the recipe.
        path: the model's file or folder.
        adapter: the adapter.
        notice: called with the message.
    """
    model, name = _divided(source)
    names = [_located(model), os.path.realpath(_located(model)), os.path.realpath(path)]
    if not path.is_dir():
        names += [path.stem, os.path.realpath(path.parent)]
    configured = read_config(path).get("_name_or_path")
    names += [configured] if isinstance(configured, str) else []
    if (line := other_base(adapter.configuration, names, name, model)) is not None:
        notice(line)


def _evidence(path: str, contents: CheckpointMetadata) -> CheckpointMetadata:
    """Return a model's data statistics under the names that its tensors have in the merge."""
    statistics = read_contents(local_path(path))
    if any(without_inner_wrappers(name) != name for name in contents.renamed.values()):
        names = {name: without_inner_wrappers(name) for name in statistics.tensors}
        statistics = statistics.under_names(names, "the wrappers of training")
    short, long = (without_inner_wrappers(name) for name in next(iter(contents.renamed.items()), ("", "")))
    prefix = long.removesuffix(short)
    return statistics.without_prefix(prefix) if prefix else statistics


def split_adapter(source: str, intermediates: Mapping[str, Intermediate]) -> tuple[Path, Path | None]:
    """Return the model and the adapter of a source ``MODEL+ADAPTER``; an existing path is a model without adapter.

    Args:
        source: the source as written in the recipe.
        intermediates: results of other documents by name.

    Raises:
        CheckpointError: the adapter does not exist.
    """
    name = without_adapter(source)
    with one_line_errors(Path(source), "read"):
        if name in intermediates:
            adapter = source[len(name) + 1 :]
            return intermediates[name].folder, _adapter_path(source, _located(adapter)) if adapter else None
        if Path(source).exists() or "+" not in source:
            return local_path(_located(source)), None
        model, adapter = map(_located, _divided(source))
        if is_url(source) and not (is_url(adapter) or Path(adapter).exists() or hub_model(adapter)):
            return local_path(source), None
        path = local_path(model)
        return path, _adapter_path(source, adapter)


def _adapter_path(source: str, adapter: str) -> Path:
    """Return the folder or file of an adapter."""
    path = fetched_path(adapter)  # alphas are read while planning
    if not path.exists():
        raise CheckpointError(
            f"{source}: there is no {adapter}. Expected MODEL+ADAPTER with the folder or file of a LoRA adapter."
        )
    return path


def ignored_revision(source: str) -> str | None:
    """Return the part of a source that gives a revision for a local path, where revisions are ignored; or None."""
    parts = (source,) if Path(source).exists() or "+" not in source else _divided(source)
    return next((part for part in parts if _located(part) != part), None)


def _divided(source: str) -> tuple[str, str]:
    """Split at the ``+`` that separates an existing model from an existing adapter, or else at the last one."""
    signs = [index for index, character in enumerate(source) if character == "+"]
    splits = [(source[:sign], source[sign + 1 :]) for sign in reversed(signs)]
    for model, adapter in splits:
        if Path(_located(adapter)).exists() and (is_url(model) or Path(_located(model)).exists()):
            return model, adapter
    return splits[0]


def _located(source: str) -> str:
    """Return a source without its revision if the rest is a local path."""
    path, separator, _ = source.rpartition("@")
    if not separator or is_url(source) or Path(source).exists() or not Path(path).exists():
        return source
    return path


def _labels(sources: Sequence[str]) -> list[str]:
    """Return, for each source, the shortest suffix of its path that is unique among the sources."""
    parts = [Path(source).parts for source in sources]
    labels = []
    for own in parts:
        others = [part for part in parts if part != own]
        length = next((n for n in range(1, len(own) + 1) if all(part[-n:] != own[-n:] for part in others)), len(own))
        labels.append("/".join(own[-length:]))
    return labels
