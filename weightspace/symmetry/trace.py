"""Tracing: derive a network's permutation spec by walking the graph of ``torch.export`` once, rule by rule."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind

from weightspace.symmetry.buffers import moves_with_units
from weightspace.symmetry.export import export_graph
from weightspace.symmetry.fused_axes import view_as_parts
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.lost_symmetries import Losses, free_units
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.nesting import Event, name_groups, nest
from weightspace.symmetry.outputs import Network
from weightspace.symmetry.pattern import Concat, Fixed, Pattern, Product, Units
from weightspace.symmetry.rules import (
    Axes,
    Call,
    Indices,
    Rule,
    Uniform,
    cat,
    fixed_like,
    follow,
    freeze_all,
    is_axes,
    looks_up,
    name_of,
    rule_of,
    stack,
    takes_constants,
)
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, Choice, Sum, fixed, freeze, is_fixed, resolve
from weightspace.symmetry.rules.axis_algebra import Product as AxisProduct
from weightspace.symmetry.rules.call import Parts
from weightspace.symmetry.rules.operators import KEEPS_INDICES, PICKS_INDICES, VIEWS
from weightspace.symmetry.shapes import shapes_of
from weightspace.symmetry.spec import PermutationSpec
from weightspace.symmetry.stand_ins import is_unknown

#: Exceptions of rules on axes that they don't support.
_MISFITS = (ValueError, IndexError, KeyError, TypeError, AttributeError)


def trace_spec(module: nn.Module, inputs: Inputs) -> PermutationSpec:
    """Derive the spec of a network without verifying it.

    Raises:
        SpecError: the network can't be copied, run or traced.
    """
    with keep_random_state(module):
        walk = Walk(module, export_graph(module, inputs))
    walk.run()
    return walk.spec()


class Rules(Protocol):
    """Chooses the rule of each node, where it isn't that of permutations.

    Attributes:
        frees_uniform: whether units along which a constant doesn't vary are free.
    """

    frees_uniform: bool

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        """Return the rule of a node, given that of permutations."""
        ...


class _Permutations:
    """The rules of permutations as they are."""

    frees_uniform = True

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        return rule


#: The default of ``Walk``.
PERMUTATIONS = _Permutations()


class Walk:
    """One pass over the graph: the axes of every value so far, and the mixed axes.

    Args:
        module: the network.
        program: its graph.
        rules: what the operators do to axes; by default, to axes whose units are permuted.
    """

    def __init__(
        self,
        module: nn.Module,
        program: torch.export.ExportedProgram,
        rules: Rules = PERMUTATIONS,
    ) -> None:
        self.program = program
        self.rules = rules
        self.state = module.state_dict(keep_vars=True)
        self.parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.tensors: dict[str, Axes] = {}
        self.values: dict[fx.Node, Any] = {}
        self.events: list[Event] = []
        self.losses = Losses(self.tensors)
        self.learnt: set[fx.Node] = set()
        self.unused: list[str] = []
        self.choices: dict[Any, Choice] = {}

    def run(self) -> None:
        """Visit every node, and freeze the outputs of the network."""
        sources = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.find_nodes(op="placeholder"):
            self.values[node] = self._placeholder(sources[node.name], node)
        for axes in _tensors([self._visit(self.program.graph)]):
            for axis in (*axes, *([axes.units] if isinstance(axes, Indices) else [])):
                freeze(axis, "")
        self.losses.add("unused when run", [name for name in self.unused if not self._twin(name)])

    def _visit(self, graph: fx.Graph) -> Any:
        """Walk a graph whose inputs are known, and return its outputs."""
        for node in graph.nodes:
            if node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = _submodule(node)
            elif node.op == "output":
                return self._values(node.args)[0]
        raise AssertionError("every graph has an output")

    def _placeholder(self, source: Any, node: fx.Node) -> Any:
        fake = node.meta.get("val")
        if not isinstance(fake, Tensor):
            return fake
        name = (source.target or "").removeprefix(Network.PREFIX)
        is_statistic = source.kind == InputKind.BUFFER and name in self.state and moves_with_units(name, self.state)
        if not node.users:  # an auxiliary head that isn't run
            if source.kind == InputKind.PARAMETER and fake.numel() > 1:
                self.unused.append(name)
            return fixed_like(tuple(fake.shape))
        if source.kind == InputKind.PARAMETER or is_statistic:
            self.learnt.add(node)
            if (twin := self._twin(name)) is None:
                self.tensors[name] = tuple(Atom(size) for size in fake.shape)
                self.events.append(Event(self.tensors[name]))
            else:
                self.tensors[name] = self.tensors[twin]
            return self.tensors[name]
        return self._constant(source, tuple(fake.shape))

    def _constant(self, source: Any, shape: tuple[int, ...]) -> Axes:
        """Return the axes of an input, a mask or a table: fixed, except those along which a constant doesn't vary."""
        if source.kind == InputKind.USER_INPUT:
            return fixed_like(shape)
        label = (source.target or "").removeprefix(Network.PREFIX)
        cause = f"the buffer {label}" if source.kind == InputKind.BUFFER else "a constant"
        never_saved = source.kind == InputKind.BUFFER and source.persistent is False
        value = self.program.constants[source.target] if never_saved else None
        if source.kind == InputKind.CONSTANT_TENSOR:
            value = self.program.constants[source.target]
        if not isinstance(value, Tensor) or is_unknown(value):
            return tuple(fixed(size, cause) for size in shape)
        if not self.rules.frees_uniform and bool(value.any()):
            return tuple(fixed(size, cause) for size in shape)
        same = [size and bool((value == value.narrow(dim, 0, 1)).all()) for dim, size in enumerate(shape)]
        axes = (Atom(size) if free else fixed(size, cause) for size, free in zip(shape, same, strict=True))
        return Uniform(axes) if all(same) else tuple(axes)

    def _call(self, node: fx.Node) -> Any:
        if is_learnt := any(source in self.learnt for source in node.all_input_nodes):
            self.learnt.add(node)
        if node.target is operator.getitem:
            source, place = self._values(node.args)
            return source[place] if isinstance(source, list | tuple) else None
        if not isinstance(node.target, OpOverload):
            return self._call_of_graph(node)
        shape = shapes_of(node.meta.get("val"))
        if shape is None:  # assertions and sizes
            return None
        call = Call(name_of(node.target), self._bind(node), shape, is_table=self._is_table(node), is_learnt=is_learnt)
        free = free_units(call.axes())
        value = self._apply(node, call)
        self.losses.settle(call, free)
        for reduced, kept in call.mixed:
            self.events.append(Event((*reduced, *kept), reduced=len(reduced)))
        self.events += [Event(axes) for axes in _tensors([value])]
        return value

    def _is_table(self, node: fx.Node) -> bool:
        """Return whether an operator looks up rows of an unmodified parameter."""
        if name_of(node.target) not in ("index", "index_select"):
            return False
        value = self._values(node.args[0])
        return any(value is axes for axes in self.tensors.values())

    def _call_of_graph(self, node: fx.Node) -> Any:
        """Walk the single graph wrapped by a block such as ``torch.autocast``; freeze a choice between several."""
        values = self._values(node.args)
        graphs = [value for value in values if isinstance(value, fx.GraphModule)]
        if len(graphs) != 1:
            call = Call(str(node.target), {"operands": list(_tensors(values))}, shapes_of(node.meta.get("val")) or [])
            free = free_units(call.axes())
            frozen = freeze_all(call)
            self.losses.settle(call, free)
            return frozen
        inside = graphs[0].graph
        operands = values[values.index(graphs[0]) + 1 :]
        self.values |= zip(inside.find_nodes(op="placeholder"), operands, strict=True)
        self.learnt |= set(inside.find_nodes(op="placeholder") if node in self.learnt else ())
        return self._visit(inside)

    def _apply(self, node: fx.Node, call: Call) -> Any:
        """Apply the rule of an operator to its traced arguments."""
        general = rule_of(node.target)
        rule = self.rules(node, general)
        is_laid = call.is_learnt and general in (cat, stack)
        if (
            rule is general
            and not takes_constants(call.name)
            and not is_laid
            and all(is_fixed(resolve(axis)) for axis in call.axes())
        ):
            return fixed_like(call.shape, "" if any(call.axes()) else call.name)
        for name, indices in call.named_indices():
            if not looks_up(call.name, name):  # ordinary numbers
                freeze(indices.units)
        first: Any = next(iter(call.args.values()), None)
        try:
            parts = follow(call, rule)
            if parts is None and isinstance(call.shape, tuple) and is_axes(first) and not isinstance(first, Indices):
                parts = view_as_parts(node, first, call.shape)
            if parts is not None:
                return parts
            if call.name in VIEWS or rule in (cat, stack):  # others see united parts
                self.losses.unite(call)
            value = rule(call)
        except _MISFITS:
            return freeze_all(call)
        if _sizes(value) != call.shape:
            return freeze_all(call)
        if not isinstance(first, Indices) or call.name not in KEEPS_INDICES | PICKS_INDICES:
            return value
        if _is_logical(node):  # a test for zero distinguishes one of the units
            freeze(first.units)
            return value
        return self._indices(node, value, first)

    def _indices(self, node: fx.Node, value: Any, source: Indices, number: int = 0) -> Any:
        """Return the result of an operator on indices; the same result of the same indices is the same choice."""
        if isinstance(value, list):
            return [self._indices(node, item, source, number) for number, item in enumerate(value)]
        key = (source.choice, node.target, str(node.args[1:]), str(node.kwargs), number)
        result = Indices(value, source.units, self.choices.get(key))
        self.choices[key] = result.choice
        return result

    def _bind(self, node: fx.Node) -> dict[str, Any]:
        arguments = node.target._schema.arguments  # type: ignore[union-attr]
        bound = {arg.name: arg.default_value if arg.has_default_value() else None for arg in arguments}
        bound |= dict(zip((arg.name for arg in arguments), self._values(node.args), strict=False))
        return bound | {name: self._values(value) for name, value in node.kwargs.items()}

    def _values(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, list | tuple):
            listed = [self._values(item) for item in argument]
            return listed if isinstance(argument, list) else tuple(listed)
        return argument

    def spec(self) -> PermutationSpec:
        """Convert the resolved axes to data."""
        tensors = {name: self.axes_of(name) for name in self.state}
        groups = name_groups(tensors)
        outer = nest(list(groups), self.events)
        names = {atom: groups[atom] for atom in groups}
        return PermutationSpec(
            groups={name: atom.size for atom, name in groups.items()},
            axes={
                name: tuple(pattern_of(axis, names, outer.keys()) for axis in axes) for name, axes in tensors.items()
            },
            outer={groups[inner]: groups[atom] for inner, atom in outer.items()},
            statistics=frozenset(name for name in self.state if name not in self.parameters),
            frozen=tuple(self.losses.notes),
        )

    def axes_of(self, name: str) -> Axes:
        """Return the axes of a tensor of the network, which the graph may know by its tied name."""
        if name in self.tensors:
            return self.tensors[name]
        twin = self._twin(name)
        return self.tensors[twin] if twin else fixed_like(tuple(self.state[name].shape))

    def _twin(self, name: str) -> str | None:
        """Return another name of the same (tied) tensor, if the graph has one."""
        return next((other for other in self.tensors if self.state.get(other) is self.state[name]), None)


def _submodule(node: fx.Node) -> Any:
    """Return the graph wrapped by a block, or None for other attributes."""
    value = getattr(node.graph.owning_module, str(node.target), None)
    return value if isinstance(value, fx.GraphModule) else None


def _is_logical(node: fx.Node) -> bool:
    result = node.meta["val"]
    return any(item.dtype == torch.bool for item in (result if isinstance(result, list | tuple) else [result]))


def _sizes(value: Any) -> Any:
    if isinstance(value, list):
        return [_sizes(item) for item in value]
    return tuple(value.sizes if isinstance(value, Parts) else (axis.size for axis in value))


def _tensors(values: Iterable[Any]) -> Iterator[Axes]:
    for value in values:
        if is_axes(value):
            yield value
        elif isinstance(value, Parts):
            yield from value.alternatives
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def pattern_of(axis: Axis, names: Mapping[Atom, str], inner: Container[Atom]) -> Pattern:
    """Return an axis as data."""
    axis = resolve(axis)
    if isinstance(axis, AxisProduct):
        return Product(_merged([pattern_of(factor, names, inner) for factor in axis.factors], product=True))
    if isinstance(axis, Sum):
        return Concat(_merged([pattern_of(term, names, inner) for term in axis.terms], product=False))
    return Units(names[axis], axis in inner) if axis in names else Fixed(axis.size)


def _merged(parts: list[Pattern], *, product: bool) -> tuple[Pattern, ...]:
    """Join adjacent fixed parts, such as those from atoms without a name."""
    result: list[Pattern] = []
    for part in parts:
        if result and isinstance(part, Fixed) and isinstance(result[-1], Fixed):
            size = result[-1].size * part.size if product else result[-1].size + part.size
            result[-1] = Fixed(size)
        else:
            result.append(part)
    return tuple(result)
