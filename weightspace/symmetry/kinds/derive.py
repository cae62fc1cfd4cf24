"""Derivation of all symmetries: the graph is walked for permutations, for orthogonal maps and for signs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from weightspace.symmetry.export import export_graph
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.duals import mark_duals
from weightspace.symmetry.kinds.norms import Norm, linears_of, norms_of
from weightspace.symmetry.kinds.occurrences import Place, occurrences
from weightspace.symmetry.kinds.orthogonal import OrthogonalRules, RotaryRules
from weightspace.symmetry.kinds.reasons import Reasons
from weightspace.symmetry.kinds.rotary import rotary_at
from weightspace.symmetry.kinds.signed import SignedRules
from weightspace.symmetry.kinds.symmetry_spec import Fold, Kind, SymmetrySpec
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.nesting import name_groups, nest
from weightspace.symmetry.outputs import Network
from weightspace.symmetry.pattern import Concat, Fixed, Pattern, Product, Units, size_of
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, atoms, freeze, resolve
from weightspace.symmetry.trace import PERMUTATIONS, Rules, Walk, pattern_of


def trace_symmetries(module: nn.Module, inputs: Inputs) -> SymmetrySpec:
    """Derive the symmetries of a network without verifying them.

    Raises:
        SpecError: the network can't be copied, run or traced.
    """
    program, names = _exported(module, inputs)
    norms = {norm.output: norm for norm in norms_of(program.graph, names)}
    rotaries = {node: found for node in program.graph.nodes if (found := rotary_at(node)) is not None}
    ordering, mixing = RotaryRules(rotaries), OrthogonalRules(norms, rotaries)
    by_order, by_mixture = _walked(module, program, ordering), _walked(module, program, mixing)
    by_sign = _walked(module, program, SignedRules(program.graph, names))
    foldable = [norm for norm in norms.values() if norm.obstacle is None]
    kinds = _kinds(by_order, by_mixture, mixing, {name for norm in foldable for name in (norm.gain, norm.shift)})
    lost = [atom for axis in ordering.turned if resolve(axis) not in kinds for atom in atoms(axis) if not atom.fixed]
    reasons = Reasons(by_order, by_mixture, "rotations")
    notes = dict.fromkeys(map(reasons.of_lost, lost))
    for atom in lost:
        freeze(atom, "")
    spec = _spec(by_order, by_sign, kinds, foldable, reasons)
    spec = replace(spec, frozen=(*spec.frozen, *notes))
    return mark_duals(spec, module, inputs, linears_of(program.graph, names))


def trace_signs(module: nn.Module, inputs: Inputs) -> SymmetrySpec:
    """Derive the permutations of a network, and the signs that its units may have, without verifying them.

    Raises:
        SpecError: the network can't be copied, run or traced.
    """
    program, names = _exported(module, inputs)
    by_order = _walked(module, program, PERMUTATIONS)
    by_sign = _walked(module, program, SignedRules(program.graph, names))
    return _spec(by_order, by_sign, {}, (), Reasons(by_order, by_sign, "signs"))


def _exported(module: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, dict[fx.Node, str]]:
    """Return the graph of a network, and the names of the parameters among its placeholders."""
    with keep_random_state(module):
        program = export_graph(module, inputs)
    sources = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    names = {
        node: (sources[node.name].target or "").removeprefix(Network.PREFIX)
        for node in program.graph.find_nodes(op="placeholder")
        if sources[node.name].kind == InputKind.PARAMETER
    }
    return program, names


def _walked(module: nn.Module, program: ExportedProgram, rules: Rules) -> Walk:
    """Walk the graph under some rules."""
    walk = Walk(module, program, rules)
    if isinstance(rules, RotaryRules):
        rules.values = walk.values
    walk.run()
    return walk


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
    ordered, mixed = occurrences(by_order), occurrences(by_mixture)
    held: dict[Atom, set[Place]] = {}
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


def _signed_places(
    by_order: Walk, by_sign: Walk, kinds: Mapping[Axis, _Freedom]
) -> tuple[set[Atom], dict[tuple[str, int], set[tuple[int, int]]]]:
    """Return the groups of permutations whose units may change their signs, and where they do.

    Units of the other walk may do so if all the places where they are belong to one group.

    Returns:
        The groups; and tensor and axis -> first unit and distance of the units with signs.
    """
    ordered = {place: atom for place, atom in occurrences(by_order).items() if not atom.fixed and atom not in kinds}
    held: dict[Atom, list[Place]] = {}
    for place, atom in occurrences(by_sign).items():
        if not atom.fixed and atom.size > 1:
            held.setdefault(atom, []).append(place)
    signed: set[Atom] = set()
    marks: dict[tuple[str, int], set[tuple[int, int]]] = {}
    for listed in held.values():
        group, *others = {ordered.get(place) for place in listed}
        if group is None or others:
            continue
        signed.add(group)
        for name, dim, start, stride, _ in listed:
            marks.setdefault((name, dim), set()).add((start, stride))
    return signed, marks


def _marked(
    pattern: Pattern, groups: Mapping[str, int], signed: Collection[tuple[int, int]], start: int = 0, stride: int = 1
) -> Pattern:
    """Return the pattern of an axis with marks at the units that change their signs.

    Args:
        pattern: of the axis, or of a part of it.
        groups: name -> number of units.
        signed: first unit and distance of the units that change their signs.
        start: the first unit of this part.
        stride: the distance of its units.
    """
    if isinstance(pattern, Units):
        return replace(pattern, signed=(start, stride) in signed)
    if isinstance(pattern, Product):
        factors: list[Pattern] = []
        for factor in reversed(pattern.factors):
            factors.insert(0, _marked(factor, groups, signed, start, stride))
            stride *= size_of(factor, groups)
        return replace(pattern, factors=tuple(factors))
    if isinstance(pattern, Concat):
        terms: list[Pattern] = []
        for term in pattern.terms:
            terms.append(_marked(term, groups, signed, start, stride))
            start += size_of(term, groups) * stride
        return replace(pattern, terms=tuple(terms))
    return pattern


def _spec(
    by_order: Walk, by_sign: Walk, kinds: Mapping[Axis, _Freedom], norms: Iterable[Norm], reasons: Reasons
) -> SymmetrySpec:
    """Convert the axes to data."""
    tensors = {name: by_order.axes_of(name) for name in by_order.state}
    known = {id(axes): name for name, axes in by_order.tensors.items()}
    groups = name_groups(tensors)
    outer = nest(list(groups), by_order.events)
    free = [atom for atom in groups if atom in kinds and atom not in outer.values()]
    freedoms: dict[Axis, _Freedom] = {atom: kinds[atom] for atom in free}
    folds = _folds(norms, freedoms, by_order)
    constant = {fold.gain for fold in folds} | {fold.shift for fold in folds if not fold.keeps_shift}
    signed, marks = _signed_places(by_order, by_sign, freedoms)
    sizes = {name: atom.size for atom, name in groups.items()}

    def pattern(name: str, dim: int, axis: Axis) -> Pattern:
        here = marks.get((known.get(id(tensors[name]), name), dim), ())
        return _marked(pattern_of(axis, groups, outer.keys()), sizes, here)

    def kind(atom: Atom) -> Kind:
        return freedoms[atom].kind if atom in freedoms else "signed" if atom in signed else "permutation"

    return SymmetrySpec(
        groups=sizes,
        kinds={name: kind(atom) for atom, name in groups.items()},
        axes={
            name: tuple(
                Fixed(axis.size) if name in constant else pattern(name, dim, axis) for dim, axis in enumerate(axes)
            )
            for name, axes in tensors.items()
        },
        outer={groups[inner]: groups[atom] for inner, atom in outer.items()},
        fixes_ones=frozenset(groups[atom] for atom in free if kinds[atom].fixes_ones),
        folds=folds,
        statistics=frozenset(name for name in by_order.state if name not in by_order.parameters),
        frozen=(
            *by_order.losses.notes,
            *(note for atom, name in groups.items() if (note := reasons.of_group(name, kind(atom), atom))),
        ),
    )
