"""From a network to its permutation spec: walk the graph of ``torch.export`` once, rule by rule."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind

from weightspace.errors import SpecError
from weightspace.symmetry.axes import Atom, Axis, Sum, atoms, freeze, is_fixed, resolve
from weightspace.symmetry.axes import Product as AxisProduct
from weightspace.symmetry.naming import name_groups
from weightspace.symmetry.nesting import Event, nest
from weightspace.symmetry.outputs import Network
from weightspace.symmetry.parts import view_as_parts
from weightspace.symmetry.pattern import Concat, Fixed, Pattern, Product, Units
from weightspace.symmetry.rules import (
    RULES,
    Axes,
    Call,
    Uniform,
    create,
    expand,
    fixed_like,
    freeze_all,
    is_axes,
    pointwise,
)
from weightspace.symmetry.rules.parts import Parts
from weightspace.symmetry.spec import PermutationSpec

#: Buffers that belong to the units of a norm and move with them. Others (tables of positions, frequencies, masks)
#: are the same in every network of an architecture and must stay so: nothing may permute them.
_CARRIED = {"running_mean", "running_var", "weight", "bias"}

#: What a rule raises that meets axes it was not written for.
_MISFITS = (ValueError, IndexError, KeyError, TypeError, AttributeError)


def trace_spec(module: nn.Module, example_args: tuple[Any, ...]) -> PermutationSpec:
    """Derive the spec of a network without verifying it.

    Raises:
        SpecError: torch.export cannot trace the network, or it has no tensors.
    """
    program = _export(module, example_args)
    walk = _Walk(module, program)
    walk.run()
    return walk.spec()


def _export(module: nn.Module, example_args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    if not isinstance(example_args, tuple):
        raise SpecError(f"example_args must be a tuple of inputs, got {type(example_args).__name__}.")
    _run(module, example_args)
    wrapped = Network(copy.deepcopy(module)).train().eval()  # a call may leave a cache behind
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels that no graph shows
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(wrapped, example_args, strict=False)
            try:
                return program.run_decompositions({})
            except Exception:  # it trips over wrapped blocks (torch.autocast); the rules know composite operators too
                return program
    except Exception as error:  # torch.export raises whatever the user's code and dynamo raise
        raise SpecError(f"torch.export cannot trace {type(module).__name__}: {_first_line(error)}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _run(module: nn.Module, example_args: tuple[Any, ...]) -> None:
    """Call a copy of the network once: its own mistakes are told more plainly than those of its trace."""
    try:
        with torch.no_grad():
            copy.deepcopy(module).eval()(*example_args)
    except Exception as error:
        name = type(module).__name__
        shapes = ", ".join(str(tuple(arg.shape)) for arg in example_args if isinstance(arg, Tensor)) or "no tensors"
        raise SpecError(
            f"{name} cannot run on its example inputs ({shapes}): {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Walk:
    """One pass over the graph: the axes of every value so far, and what was mixed."""

    def __init__(self, module: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.state = module.state_dict(keep_vars=True)
        self.parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.tensors: dict[str, Axes] = {}
        self.values: dict[fx.Node, Any] = {}
        self.events: list[Event] = []
        self.frozen: list[str] = []

    def run(self) -> None:
        """Visit every node, and freeze what leaves the network."""
        sources = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.find_nodes(op="placeholder"):
            self.values[node] = self._placeholder(sources[node.name], node)
        for axes in _tensors([self._visit(self.program.graph)]):
            for axis in axes:
                freeze(axis)

    def _visit(self, graph: fx.Graph) -> Any:
        """Walk a graph whose inputs are known, and return what it returns."""
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
        is_statistic = source.kind == InputKind.BUFFER and name in self.state and name.rpartition(".")[2] in _CARRIED
        if not node.users:  # an auxiliary head that this pass does not run
            return fixed_like(tuple(fake.shape))
        if source.kind == InputKind.PARAMETER or is_statistic:
            if (twin := self._twin(name)) is None:
                self.tensors[name] = tuple(Atom(size) for size in fake.shape)
                self.events.append(Event(self.tensors[name]))
            else:
                self.tensors[name] = self.tensors[twin]
            return self.tensors[name]
        return self._constant(source, tuple(fake.shape))

    def _constant(self, source: Any, shape: tuple[int, ...]) -> Axes:
        """Return the axes of an input, a mask or a table: fixed, but for those along which a constant is constant."""
        never_saved = source.kind == InputKind.BUFFER and source.persistent is False
        value = self.program.constants[source.target] if never_saved else None
        if source.kind == InputKind.CONSTANT_TENSOR:
            value = self.program.constants[source.target]
        if not isinstance(value, Tensor):
            return fixed_like(shape)
        same = [size and bool((value == value.narrow(dim, 0, 1)).all()) for dim, size in enumerate(shape)]
        axes = (Atom(size, fixed=not free) for size, free in zip(shape, same, strict=True))
        return Uniform(axes) if all(same) else tuple(axes)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, place = self._values(node.args)
            return source[place] if isinstance(source, list | tuple) else None
        if not isinstance(node.target, OpOverload):
            return self._call_of_graph(node)
        shape = _shapes(node.meta.get("val"))
        if shape is None:  # assertions and sizes
            return None
        call = Call(node.target.overloadpacket.__name__, self._bind(node), shape, on_freeze=self._report)
        value = self._apply(node, call)
        for reduced, kept in call.mixed:
            self.events.append(Event((*reduced, *kept), reduced=len(reduced)))
        self.events += [Event(axes) for axes in _tensors([value])]
        return value

    def _call_of_graph(self, node: fx.Node) -> Any:
        """Walk the one graph that a block such as ``torch.autocast`` wraps; freeze what several are chosen from."""
        values = self._values(node.args)
        graphs = [value for value in values if isinstance(value, fx.GraphModule)]
        if len(graphs) != 1:
            touched = {"operands": list(_tensors(values))}
            call = Call(str(node.target), touched, _shapes(node.meta.get("val")) or [], on_freeze=self._report)
            return freeze_all(call)
        inside = graphs[0].graph
        operands = values[values.index(graphs[0]) + 1 :]
        self.values |= zip(inside.find_nodes(op="placeholder"), operands, strict=True)
        return self._visit(inside)

    def _apply(self, node: fx.Node, call: Call) -> Any:
        """Apply the rule of an operator to what its arguments have become."""
        is_pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
        rule = RULES.get(call.name) or (pointwise if is_pointwise else freeze_all)
        if rule not in (create, expand) and all(is_fixed(resolve(axis)) for axis in call.axes()):
            return fixed_like(call.shape)
        args = dict(call.args)
        first: Any = next(iter(args.values()), None)
        parts: Any = None

        def alone(axes: Axes) -> Axes:
            return rule(replace(call, args={**args, "self": axes}))

        try:
            if isinstance(first, Parts):
                parts = first.apply(call.name, args, call.shape, alone)
            elif isinstance(call.shape, tuple) and is_axes(first):
                parts = view_as_parts(node, first, call.shape)
            return rule(call) if parts is None else parts
        except _MISFITS:
            return freeze_all(call)

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

    def _report(self, call: Call) -> None:
        touched = {atom for axis in call.axes() for atom in atoms(axis) if not atom.fixed}
        names = [n for n, axes in self.tensors.items() if touched & {a for axis in axes for a in atoms(axis)}]
        if names:
            note = f"{call.name}: {', '.join(names)}"
            if note not in self.frozen:
                self.frozen.append(note)

    def spec(self) -> PermutationSpec:
        """Turn what the axes have become into data."""
        tensors = {name: self._axes_of(name) for name in self.state}
        groups = name_groups(tensors)
        outer = nest(list(groups), self.events)
        names = {atom: groups[atom] for atom in groups}
        return PermutationSpec(
            groups={name: atom.size for atom, name in groups.items()},
            axes={name: tuple(_pattern(axis, names, outer.keys()) for axis in axes) for name, axes in tensors.items()},
            outer={groups[inner]: groups[atom] for inner, atom in outer.items()},
            statistics=frozenset(name for name in self.state if name not in self.parameters),
            frozen=tuple(self.frozen),
        )

    def _axes_of(self, name: str) -> Axes:
        """Return the axes of a tensor, which the graph may know by the name of its twin."""
        if name in self.tensors:
            return self.tensors[name]
        twin = self._twin(name)
        return self.tensors[twin] if twin else fixed_like(tuple(self.state[name].shape))

    def _twin(self, name: str) -> str | None:
        """Return another name of the same (tied) tensor, if the graph has shown one."""
        return next((other for other in self.tensors if self.state.get(other) is self.state[name]), None)


def _submodule(node: fx.Node) -> Any:
    """Return the graph that a block wraps, or None for an attribute that is none."""
    value = getattr(node.graph.owning_module, str(node.target), None)
    return value if isinstance(value, fx.GraphModule) else None


def _shapes(meta: Any) -> tuple[int, ...] | list[tuple[int, ...]] | None:
    if isinstance(meta, Tensor):
        return tuple(int(size) for size in meta.shape)
    if isinstance(meta, list | tuple) and any(isinstance(item, Tensor) for item in meta):
        return [tuple(int(size) for size in item.shape) if isinstance(item, Tensor) else () for item in meta]
    return None


def _tensors(values: Iterable[Any]) -> Iterator[Axes]:
    for value in values:
        if is_axes(value):
            yield value
        elif isinstance(value, Parts):
            yield from value.alternatives
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _pattern(axis: Axis, names: dict[Atom, str], inner: Any) -> Pattern:
    axis = resolve(axis)
    if isinstance(axis, AxisProduct):
        return Product(_merged([_pattern(factor, names, inner) for factor in axis.factors], product=True))
    if isinstance(axis, Sum):
        return Concat(_merged([_pattern(term, names, inner) for term in axis.terms], product=False))
    return Units(names[axis], axis in inner) if axis in names else Fixed(axis.size)


def _merged(parts: list[Pattern], *, product: bool) -> tuple[Pattern, ...]:
    """Join neighbouring fixed parts, which atoms without a name have become."""
    result: list[Pattern] = []
    for part in parts:
        if result and isinstance(part, Fixed) and isinstance(result[-1], Fixed):
            size = result[-1].size * part.size if product else result[-1].size + part.size
            result[-1] = Fixed(size)
        else:
            result.append(part)
    return tuple(result)
