"""Derivation of all symmetries: the graph is walked once for permutations, and once for orthogonal maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn
from torch.export.graph_signature import InputKind

from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.norms import Norm, norms_of
from weightspace.symmetry.kinds.orthogonal import OrthogonalRules, RotaryRules
from weightspace.symmetry.kinds.rotary import rotary_at
from weightspace.symmetry.kinds.symmetry_spec import Fold, Kind, SymmetrySpec
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.nesting import name_groups, nest
from weightspace.symmetry.outputs import Network
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, Product, Sum, freeze, resolve
from weightspace.symmetry.trace import Walk, export_graph, pattern_of

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
    permuting, rotating = RotaryRules(rotaries), OrthogonalRules(norms, rotaries)
    by_order = _walked(module, program, permuting)
    by_rotation = _walked(module, program, rotating)
    kinds, ones = _kinds(by_order, by_rotation, permuting, rotating)
    for atom in {resolve(axis) for axis in permuting.turned}:
        if isinstance(atom, Atom) and atom not in kinds:
            freeze(atom, "")
    folded = _folds(norms, kinds, by_order)
    constant = {fold.gain for fold in folded} | {fold.shift for fold in folded if not fold.keeps_shift}
    for name in constant - {None}:
        for axis in by_order.tensors.get(str(name), ()):
            pass
    return _spec(by_order, by_rotation, kinds, ones, folded, constant)


def _walked(module: nn.Module, program: Any, rules: Any) -> Walk:
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
        for number, factor in enumerate(axis.factors):
            inner = 1
            for other in axis.factors[number + 1 :]:
                inner *= other.size
            yield from places(factor, start, stride * inner)
    else:
        assert isinstance(axis, Sum)
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


def _kinds(
    by_order: Walk, by_rotation: Walk, permuting: RotaryRules, rotating: OrthogonalRules
) -> tuple[dict[Atom, Kind], set[Atom]]:
    """Return the kinds of the groups that have more than permutations, and those that fix the vector of ones."""
    ordered, rotated = _occurrences(by_order), _occurrences(by_rotation)
    centred = {resolve(axis) for axis in rotating.centred}
    turned = {resolve(axis) for axis in rotating.turned}
    held: dict[Atom, list[_Place]] = {}
    for place, atom in rotated.items():
        held.setdefault(atom, []).append(place)
    kinds: dict[Atom, Kind] = {}
    ones: set[Atom] = set()
    for atom, listed in held.items():
        if atom.fixed or atom.size < 2:
            continue
        units = {ordered.get(place) for place in listed}
        group = next(iter(units))
        if len(units) > 1 or group is None or group.fixed:
            continue
        kinds[group] = "phases" if atom in turned else "orthogonal"
        if atom in centred:
            ones.add(group)
    return kinds, ones


def _folds(norms: Mapping[fx.Node, Norm], kinds: Mapping[Atom, Kind], walk: Walk) -> tuple[Fold, ...]:
    """Return the folds of the norms over groups that have an orthogonal map."""
    folds: dict[str, Fold] = {}
    for norm in norms.values():
        axis = resolve(walk.values[norm.source][-1])
        if isinstance(axis, Atom) and axis in kinds and (norm.gain or norm.shift) and norm.readers is not None:
            folds[norm.gain or norm.shift or ""] = Fold(norm.gain, norm.shift, norm.readers)
    return tuple(folds.values())


def _spec(
    by_order: Walk,
    by_rotation: Walk,
    kinds: Mapping[Atom, Kind],
    ones: set[Atom],
    folds: tuple[Fold, ...],
    constant: set[str | None],
) -> SymmetrySpec:
    tensors = {name: by_order._axes_of(name) for name in by_order.state}
    groups = name_groups(tensors)
    outer = nest(list(groups), by_order.events)
    patterns = {name: tuple(pattern_of(axis, groups, outer.keys()) for axis in axes) for name, axes in tensors.items()}
    from weightspace.symmetry.pattern import Fixed

    for name in constant:
        if name is not None:
            patterns[name] = tuple(Fixed(axis.size) for axis in tensors[name])
    return SymmetrySpec(
        groups={name: atom.size for atom, name in groups.items()},
        kinds={name: kinds.get(atom, "permutation") for atom, name in groups.items()},
        axes=patterns,
        outer={groups[inner]: groups[atom] for inner, atom in outer.items()},
        fixes_ones=frozenset(groups[atom] for atom in ones if atom in groups),
        folds=folds,
        statistics=frozenset(name for name in by_order.state if name not in by_order.parameters),
        frozen=tuple(by_rotation.losses.notes),
    )
