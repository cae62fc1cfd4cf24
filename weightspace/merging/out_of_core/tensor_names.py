"""Determine the output's tensors and the tensors that each is merged from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora.tied_weights import missing_aliases
from weightspace.merging.plan.members import ReadingOptions, ignored_revision
from weightspace.merging.plan.modules import divide, module_recipe, within
from weightspace.merging.plan.plan import Member
from weightspace.merging.plan.tensor_finder import Output, TensorFinder
from weightspace.merging.plan.tied_heads import has_own_head
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.parse import Recipe, Warn
from weightspace.merging.recipe.schedule import unmatched_filters, unweighted
from weightspace.merging.slices.layer_index import Layers
from weightspace.merging.slices.stacking import Stacking
from weightspace.merging.slices.tensors import stack_slices


@dataclass(frozen=True)
class Outputs:
    """All tensors of the output.

    Attributes:
        outputs: the tensors, in order.
        tied: name -> name of the tensor that it shares memory with.
        stackings: the stacked slices, one per module; empty if whole models are merged.
        untied: whether the output has a separate head although some model ties it to the embedding.
        outside_modules: names of tensors that belong to none of the recipe's modules and are copied.
        computed: names of buffers that networks compute and some models lack; they are copied.
        lacking: model -> names of tensors that it lacks and that are merged without it.
    """

    outputs: tuple[Output, ...]
    tied: Mapping[str, str]
    stackings: tuple[Stacking, ...]
    untied: bool
    outside_modules: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    lacking: Mapping[str, Sequence[str]] = field(default_factory=dict)


def outputs(
    recipe: Recipe,
    members: Sequence[Member],
    *,
    base: bool,
    warn: Callable[[str], None] | None,
    partial: bool = False,
) -> Outputs:
    """Return the tensors of the output.

    Args:
        recipe: the recipe: whole models or slices, for all tensors or by module.
        members: the checkpoints of the merge.
        base: whether the method uses the recipe's base.
        warn: called with a one-line message about each tensor that some models lack; None makes them errors.
        partial: merge tensors that some models lack without those models if the method can, as mergekit does.

    Raises:
        CheckpointError: models lack tensors or layers that others have, or slices are incompatible.
        WeightspaceError: layers cannot be identified by name, a slice's sources have different numbers of layers, or a
            module does not exist.
    """
    names = dict.fromkeys(name for member in members for name in member.contents.tensors)
    modules = divide(names, recipe.modules)
    named: list[Output] = []
    stackings: list[Stacking] = []
    untied, computed = False, []
    lacking: dict[str, list[str]] = {}
    for module, inside in modules.items():
        first, part = module_recipe(recipe, module)
        finder = TensorFinder(part, within(members, inside, names), base, warn, partial=partial)
        if part.slices[0].sources[0].layer_range is None or _has_no_layers(part, inside):
            found = list(_whole(finder))
        else:
            found, stacking = stack_slices(finder, recipe.donor)
            stackings.append(stacking)
        named.extend(replace(output, slice=first + output.slice) for output in found)
        untied |= finder.untied
        computed += finder.computed
        for index, own in finder.lacking.items():
            lacking.setdefault(members[index].label, []).extend(own)
    outside = list(_outside_modules(recipe, members, modules))
    named += outside
    tied = _tied(members, named, stackings)
    untied = untied or has_own_head([output.name for output in named], tied, members)
    if untied:  # transformers 5 then ties no weights, so every name needs a tensor
        own = {output.name: output for output in named}
        named += [replace(own[owner], name=alias) for alias, owner in missing_aliases(own).items()]
    kept = tuple(output for output in named if output.name not in tied)
    outside_names = tuple(output.name for output in outside)
    return Outputs(kept, tied, tuple(stackings), untied, outside_names, tuple(computed), lacking)


def _has_no_layers(recipe: Recipe, names: Collection[str]) -> bool:
    """Return whether a module without layers, such as a projector, is given as one slice without layers."""
    ranges = [source.layer_range for part in recipe.slices for source in part.sources]
    return len(recipe.slices) == 1 and ranges == [(0, 0)] * len(ranges) and not Layers(names).stacks


def _outside_modules(
    recipe: Recipe, members: Sequence[Member], modules: Mapping[str | None, Collection[str]]
) -> Iterator[Output]:
    """Yield the tensors outside all modules, copied from the configuration's model if it has them."""
    donor = next(number for number, member in enumerate(members) if member.source == recipe.donor)
    order = [donor, *(number for number in range(len(members)) if number != donor)]
    if None not in modules:
        divided = set().union(*modules.values())
        holders = {name: number for number in reversed(order) for name in members[number].contents.tensors}
        for name in dict.fromkeys(name for number in order for name in members[number].contents.tensors):
            if name not in divided:
                yield Output(name, 0, 0.0, ((holders[name], name),), None, copied=True)


def _whole(finder: TensorFinder) -> Iterator[Output]:
    """Yield the output's tensors if whole models are merged."""
    sources, base = finder.sources(finder.recipe.slices[0]), finder.bases[0]
    holders = sources if base is None else [*sources, base]
    names = dict.fromkeys(name for index in holders for name in finder.members[index].contents.tensors)
    layers = Layers(names)
    for name in names:
        yield finder.output(name, 0, layers.position(name), [(index, name) for index in sources], name)


def _tied(members: Sequence[Member], outputs: Sequence[Output], stackings: Sequence[Stacking]) -> dict[str, str]:
    """Return the names in the output that share memory with another tensor in every model."""
    shared = set.intersection(*(set(member.contents.tied.items()) for member in members))
    known = {output.name: output for output in outputs}
    return {
        name: owner
        for name, owner in sorted(shared)
        if name in known
        and owner in known
        and all(_stay_tied(known[name], known[owner], stacking) for stacking in stackings)
    }


def _stay_tied(output: Output, owner: Output, stacking: Stacking) -> bool:
    """Return whether tensors that are tied in the models stay tied when layers are stacked."""
    inside = stacking.models[stacking.donor].inside
    if output.name not in inside and owner.name not in inside:
        return True  # a head and its embedding
    moved = any(name != own.name for own in (output, owner) for _, name in own.inputs)
    return not moved and [number for number, _ in output.inputs] == [number for number, _ in owner.inputs]


def check_effects(recipe: Recipe, named: Outputs, reading: ReadingOptions, ignored: Warn | None) -> None:
    """Report settings without effect, and tensors that no setting covers.

    Args:
        recipe: the recipe.
        named: the output's tensors.
        reading: options for reading the inputs.
        ignored: called with a one-line message for each; None makes them errors.

    Raises:
        WeightspaceError: a setting has no effect, and ``ignored`` is None.
    """
    sources = [source for source in recipe.models if source not in reading.intermediates]
    for part in dict.fromkeys(filter(None, map(ignored_revision, sources))):
        path, _, revision = part.rpartition("@")
        line = f"The revision {revision!r} of {path} has no effect: it is a local path."
        _report(line, "Remove it.", ignored)
    names = [output.name for output in named.outputs]
    if outside := named.outside_modules:
        more = f" and {len(outside) - 1:,} more tensors" if outside[1:] else ""
        line = f"{outside[0]!r}{more} belong to none of the recipe's modules: copied from {recipe.donor}."
        _report(line, "Expected all modules of the model.", ignored)
    if named.computed:
        more = f" and {len(named.computed) - 1:,} like it" if named.computed[1:] else ""
        line = f"Not all models have {named.computed[0]!r}{more}: copied, since networks compute them on construction."
        _report(line, "Expected the same tensors in all.", ignored)
    for label, lacking in named.lacking.items():
        more = f" and {len(lacking) - 1:,} more tensors" if lacking[1:] else ""
        line = (
            f"{label} has no {lacking[0]!r}{more}, which other models have: merged without {label}, as mergekit does."
        )
        _report(line, "Expected the same tensors in all.", ignored)
    for model, without in _unweighted(recipe, named.outputs).items():
        more = f" and {len(without) - 1:,} more tensors" if without[1:] else ""
        line = f"{model} has no weight for {without[0]!r}{more}, although the recipe sets weights: it counts as 1."
        _report(line, "Expected a weight for every model, as in mergekit.", ignored)
    for key, text in unmatched_filters(recipe, names):
        line = f"The filter {text!r} of {key!r} matches no tensor among {names[0]!r} and {len(names) - 1:,} more."
        _report(line, "Is it misspelt?", ignored)


def _unweighted(recipe: Recipe, tensors: Sequence[Output]) -> dict[str, list[str]]:
    """Return model -> tensors for which a document gives it no weight, although it sets weights."""
    found: dict[str, list[str]] = {}
    if not recipe.is_document or not find_method(recipe.method).weighted:
        return found
    for output in tensors:
        if not output.copied:
            for model in unweighted(recipe, output.slice, output.name, output.position):
                found.setdefault(model, []).append(output.name)
    return found


def check_mostly_common(named: Outputs, tensors: int) -> None:
    """Check that no model lacks most of the output's tensors, which suggests another architecture.

    Args:
        named: the output's tensors.
        tensors: their number.

    Raises:
        CheckpointError: a model lacks more than half of them.
    """
    for label, lacking in named.lacking.items():
        if 2 * len(lacking) > tensors:
            raise CheckpointError(
                f"{label} lacks {len(lacking):,} of the {tensors:,} tensors of the other models, among them "
                f"{lacking[0]!r}. Are they models of one architecture?"
            )


def _report(line: str, advice: str, ignored: Warn | None) -> None:
    if ignored is None:
        raise WeightspaceError(f"{line} {advice}")
    ignored(line)
