"""Names of the output's tensors, and the tensors that each is merged from."""

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
from weightspace.merging.recipe.parse import Recipe, Warn
from weightspace.merging.recipe.schedule import unmatched_filters
from weightspace.merging.slices.layer_index import Layers
from weightspace.merging.slices.stacking import Stacking
from weightspace.merging.slices.tensors import stack_slices


@dataclass(frozen=True)
class Outputs:
    """All tensors of the output.

    Attributes:
        outputs: the tensors, in order.
        tied: name -> the name that it shares memory with.
        stackings: the stacked slices, one per module; none if models are merged whole.
        untied: whether the output has a separate head where some model tied it to the embedding.
        beside: names of tensors that are in none of the recipe's modules, and copied.
        computed: names of tables that networks compute, which some models lack, and which are copied.
        lacking: model -> names of tensors that it lacks, and that are merged without it.
    """

    outputs: tuple[Output, ...]
    tied: Mapping[str, str]
    stackings: tuple[Stacking, ...]
    untied: bool
    beside: tuple[str, ...] = ()
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
        recipe: models that are merged whole, or stacked slices of their layers; all tensors or by modules.
        members: its checkpoints.
        base: whether the method reads the recipe's base.
        warn: takes a line about tensors that some models lack; None: they are an error.
        partial: merge them without these models, as mergekit does, where the method can.

    Raises:
        CheckpointError: models lack tensors or layers that others have, or slices do not fit together.
        WeightspaceError: the names do not identify the layers, a slice's sources have different numbers of them, or
            there is no such module.
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
    beside = list(_beside(recipe, members, modules))
    named += beside
    tied = _tied(members, named, stackings)
    untied = untied or has_own_head([output.name for output in named], tied, members)
    if untied:  # transformers 5 ties nothing then, so that every name needs a tensor
        own = {output.name: output for output in named}
        named += [replace(own[owner], name=alias) for alias, owner in missing_aliases(own).items()]
    kept = tuple(output for output in named if output.name not in tied)
    beside_names = tuple(output.name for output in beside)
    return Outputs(kept, tied, tuple(stackings), untied, beside_names, tuple(computed), lacking)


def _has_no_layers(recipe: Recipe, names: Collection[str]) -> bool:
    """Return whether a module without layers, such as a projector, is given as one slice without layers."""
    ranges = [source.layer_range for part in recipe.slices for source in part.sources]
    return len(recipe.slices) == 1 and ranges == [(0, 0)] * len(ranges) and not Layers(names).stacks


def _beside(
    recipe: Recipe, members: Sequence[Member], modules: Mapping[str | None, Collection[str]]
) -> Iterator[Output]:
    """Yield the tensors outside all modules, copied from the donor of the configuration if it has them."""
    donor = next(number for number, member in enumerate(members) if member.source == recipe.donor)
    order = [donor, *(number for number in range(len(members)) if number != donor)]
    if None not in modules:
        divided = set().union(*modules.values())
        holders = {name: number for number in reversed(order) for name in members[number].contents.tensors}
        for name in dict.fromkeys(name for number in order for name in members[number].contents.tensors):
            if name not in divided:
                yield Output(name, 0, 0.0, ((holders[name], name),), None, copied=True)


def _whole(finder: TensorFinder) -> Iterator[Output]:
    """Yield the tensors of models that are merged whole."""
    sources, base = finder.sources(finder.recipe.slices[0]), finder.bases[0]
    holders = sources if base is None else [*sources, base]
    names = dict.fromkeys(name for index in holders for name in finder.members[index].contents.tensors)
    layers = Layers(names)
    for name in names:
        yield finder.output(name, 0, layers.position(name), [(index, name) for index in sources], name)


def _tied(members: Sequence[Member], outputs: Sequence[Output], stackings: Sequence[Stacking]) -> dict[str, str]:
    """Return the names in the output that share memory with another one in every model."""
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
    """Return whether tensors that are tied in the models stay tied in slices, whose layers may come from elsewhere."""
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
        reading: how the checkpoints are read.
        ignored: called with a line for each; None: they are errors.

    Raises:
        WeightspaceError: there is one, and ``ignored`` is None.
    """
    sources = [source for source in recipe.models if source not in reading.intermediates]
    for part in dict.fromkeys(filter(None, map(ignored_revision, sources))):
        path, _, revision = part.rpartition("@")
        line = f"The revision {revision!r} of {path} has no effect: it is a path on this machine."
        _tell(line, "Leave it out.", ignored)
    names = [output.name for output in named.outputs]
    if named.beside:
        more = f" and {len(named.beside) - 1:,} more tensors" if named.beside[1:] else ""
        line = f"{named.beside[0]!r}{more} belong to none of the recipe's modules: copied from {recipe.donor}."
        _tell(line, "Expected all modules of the model.", ignored)
    if named.computed:
        more = f" and {len(named.computed) - 1:,} like it" if named.computed[1:] else ""
        line = (
            f"Not all models have {named.computed[0]!r}{more}: copied, since networks compute them when they are built."
        )
        _tell(line, "Expected the same tensors in all.", ignored)
    for label, lacking in named.lacking.items():
        more = f" and {len(lacking) - 1:,} more tensors" if lacking[1:] else ""
        line = (
            f"{label} has no {lacking[0]!r}{more}, which other models have: merged without {label}, as mergekit does."
        )
        _tell(line, "Expected the same tensors in all.", ignored)
    for key, text in unmatched_filters(recipe, names):
        line = f"The filter {text!r} of {key!r} matches no tensor among {names[0]!r} and {len(names) - 1:,} more."
        _tell(line, "Is it misspelt?", ignored)


def check_mostly_common(named: Outputs, tensors: int) -> None:
    """Check that no model lacks most of the output's tensors, which is then another network.

    Args:
        named: the output's tensors.
        tensors: how many there are.

    Raises:
        CheckpointError: one does.
    """
    for label, lacking in named.lacking.items():
        if 2 * len(lacking) > tensors:
            raise CheckpointError(
                f"{label} lacks {len(lacking):,} of the {tensors:,} tensors of the other models, among them "
                f"{lacking[0]!r}. Are they models of one architecture?"
            )


def _tell(line: str, advice: str, ignored: Warn | None) -> None:
    if ignored is None:
        raise WeightspaceError(f"{line} {advice}")
    ignored(line)
