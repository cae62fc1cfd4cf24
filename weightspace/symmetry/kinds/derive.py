"""Derivation of all symmetries: the graph is walked once for permutations, and once for orthogonal maps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export.graph_signature import InputKind

from weightspace.symmetry.export import export_graph
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.duals import mark_duals
from weightspace.symmetry.kinds.norms import Norm, linears_of, norms_of
from weightspace.symmetry.kinds.orthogonal import OrthogonalRules, RotaryRules
from weightspace.symmetry.kinds.rotary import rotary_at
from weightspace.symmetry.kinds.symmetry_spec import Fold, Kind, SymmetrySpec
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.nesting import name_groups, nest
from weightspace.symmetry.outputs import Network
from weightspace.symmetry.pattern import Fixed
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, Product, freeze, resolve
from weightspace.symmetry.trace import Walk, pattern_of

#: Tensor, axis, first unit, distance of units, number of units.
_Place = tuple[str, int, int, int, int]


def trace_symmetries(module: nn.Module, inputs: Inputs) -> SymmetrySpec:
    """Derive the symmetries of a network without verifying them.

    Raises:
        SpecError: the network can't be copied, run or traced.
    """
    with keep_random_state(module):
        program = export_graph(module, inputs)
    sources = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    names = {
        node: (sources[node.name].target or "").removeprefix(Network.PREFIX)
        for node in program.graph.find_nodes(op="placeholder")
        if sources[node.name].kind == InputKind.PARAMETER
    }
    norms = {norm.output: norm for norm in norms_of(program.graph, names)}
    rotaries = {node: found for node in program.graph.nodes if (found := rotary_at(node)) is not None}
    ordering, mixing = RotaryRules(rotaries), OrthogonalRules(norms, rotaries)
    by_order, by_mixture = _walked(module, program, ordering), _walked(module, program, mixing)
    foldable = [norm for norm in norms.values() if norm.obstacle is None]
    kinds = _kinds(by_order, by_mixture, mixing, {name for norm in foldable for name in (norm.gain, norm.shift)})
    for atom in map(resolve, ordering.turned):
        if atom not in kinds:
            freeze(atom, "")
    spec = _spec(by_order, by_mixture, kinds, _folds(foldable, kinds, by_order))
    return mark_duals(spec, module, inputs, linears_of(program.graph, names))


def _walked(module: nn.Module, program: Any, rules: RotaryRules) -> Walk:
    """Walk the graph under some rules."""
    walk = Walk(module, program, rules)
    rules.values = walk.values
    walk.run()
    return walk


def places(axis: Axis, start: int = 0, stride: int = 1) -> Iterator[tuple[Atom, int, int]]:
    """Yield the atoms of an axis with their first unit and the distance of units."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis, start, stride
    elif isinstance(axis, Product):
        for factor in reversed(axis.factors):
            yield from places(factor, start, stride)
            stride *= factor.size
    else:
        for term in axis.terms:
            yield from places(term, start, stride)
            start += term.size * stride


def _occurrences(walk: Walk) -> dict[_Place, Atom]:
    """Return the atom at each place of the tensors."""
    return {
        (name, dim, start, stride, atom.size): atom
        for name, axes in walk.tensors.items()
        for dim, axis in enumerate(axes)
        for atom, start, stride in places(axis)
    }


@dataclass(frozen=True)
class _Freedom:
    """What may move the units of a group beside permutations."""

    kind: Kind
    fixes_ones: bool


def _kinds(
    by_order: Walk, by_mixture: Walk, mixing: OrthogonalRules, folded: Collection[str | None]
) -> dict[Axis, _Freedom]:
    """Return the groups of permutations that more than permutations may move.

    Args:
        by_order: the walk that has the groups.
        by_mixture: the walk whose free axes may be mixed.
        mixing: its rules.
        folded: tensors that are constant once norms are folded.
    """
    ordered, mixed = _occurrences(by_order), _occurrences(by_mixture)
    held: dict[Atom, set[_Place]] = {}
    for place, atom in ordered.items():
        if place[0] not in folded:
            held.setdefault(atom, set()).add(place)
    centred, turned = set(map(resolve, mixing.centred)), set(map(resolve, mixing.turned))
    kinds: dict[Axis, _Freedom] = {}
    for atom, listed in held.items():
        found = {mixed.get(place) for place in listed}
        same = next(iter(found))
        if len(found) == 1 and same is not None and not atom.fixed and not same.fixed and atom.size > 1:
            kinds[atom] = _Freedom("phases" if same in turned else "orthogonal", same in centred)
    return kinds


def _folds(norms: Iterable[Norm], kinds: Mapping[Axis, _Freedom], walk: Walk) -> tuple[Fold, ...]:
    """Return the folds of the norms over groups that may be mixed."""
    folds: dict[str | None, Fold] = {}
    for norm in norms:
        if (norm.gain or norm.shift) and resolve(walk.values[norm.source][-1]) in kinds:
            before = folds.get(norm.gain or norm.shift)
            readers = (*(before.readers if before else ()), *(norm.readers or ()))
            folds[norm.gain or norm.shift] = Fold(norm.gain, norm.shift, readers)
    return tuple(folds.values())


def _spec(by_order: Walk, by_mixture: Walk, kinds: Mapping[Axis, _Freedom], folds: tuple[Fold, ...]) -> SymmetrySpec:
    """Convert the axes to data."""
    tensors = {name: by_order.axes_of(name) for name in by_order.state}
    constant = {fold.gain for fold in folds} | {fold.shift for fold in folds if not fold.keeps_shift}
    groups = name_groups(tensors)
    outer = nest(list(groups), by_order.events)
    freedoms = {name: kinds.get(atom) for atom, name in groups.items()}
    return SymmetrySpec(
        groups={name: atom.size for atom, name in groups.items()},
        kinds={name: freedom.kind if freedom else "permutation" for name, freedom in freedoms.items()},
        axes={
            name: tuple(
                Fixed(axis.size) if name in constant else pattern_of(axis, groups, outer.keys()) for axis in axes
            )
            for name, axes in tensors.items()
        },
        outer={groups[inner]: groups[atom] for inner, atom in outer.items()},
        fixes_ones=frozenset(name for name, freedom in freedoms.items() if freedom and freedom.fixes_ones),
        folds=folds,
        statistics=frozenset(name for name in by_order.state if name not in by_order.parameters),
        frozen=tuple(by_mixture.losses.notes),
    )
