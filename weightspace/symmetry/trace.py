"""From a network to its permutation spec: walk the graph of ``torch.export`` once, rule by rule."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from weightspace.errors import SpecError
from weightspace.symmetry.axes import Atom, Axis, Sum, atoms, freeze, is_fixed, resolve
from weightspace.symmetry.axes import Product as AxisProduct
from weightspace.symmetry.naming import name_groups
from weightspace.symmetry.nesting import Event, nest
from weightspace.symmetry.pattern import Concat, Fixed, Pattern, Product, Units
from weightspace.symmetry.rules import RULES, Axes, Call, fixed_like, freeze_all, is_axes, pointwise
from weightspace.symmetry.spec import PermutationSpec

_STATISTICS = {"running_mean", "running_var"}


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
    training, fastpath = module.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels that no graph shows
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(module.eval(), example_args).run_decompositions({})
    except Exception as error:  # torch.export raises whatever the user's code and dynamo raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise SpecError(f"torch.export cannot trace {type(module).__name__}: {first[0]}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        module.train(training)


class _Walk:
    """One pass over the graph: the axes of every value so far, and what was mixed."""

    def __init__(self, module: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.state = module.state_dict(keep_vars=True)
        self.parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.tensors: dict[str, Axes] = {}
        self.values: dict[torch.fx.Node, Any] = {}
        self.events: list[Event] = []
        self.frozen: list[str] = []

    def run(self) -> None:
        """Visit every node."""
        sources = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(sources[node.name], node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = None
            elif node.op == "output":
                for axes in _tensors(self._values(node.args)[0]):
                    for axis in axes:
                        freeze(axis)

    def _placeholder(self, source: Any, node: torch.fx.Node) -> Any:
        fake = node.meta.get("val")
        if not isinstance(fake, Tensor):
            return fake
        name = source.target
        is_statistic = source.kind == InputKind.BUFFER and name.rpartition(".")[2] in _STATISTICS
        if not node.users:  # an auxiliary head that this pass does not run
            return fixed_like(tuple(fake.shape))
        if source.kind == InputKind.PARAMETER or (is_statistic and name in self.state):
            if (twin := self._twin(name)) is None:
                self.tensors[name] = tuple(Atom(size) for size in fake.shape)
                self.events.append(Event(self.tensors[name]))
            else:
                self.tensors[name] = self.tensors[twin]
            return self.tensors[name]
        return fixed_like(
            tuple(fake.shape)
        )  # inputs, masks and tables of positions: nothing may permute them

    def _call(self, node: torch.fx.Node) -> Any:
        if node.target is operator.getitem:
            source, place = self._values(node.args)
            return source[place] if isinstance(source, list) else None
        shape = _shapes(node.meta.get("val"))
        if not isinstance(node.target, torch._ops.OpOverload):
            raise SpecError(f"the graph holds {node.target}, a call of a subgraph, which has no rule")
        if shape is None:  # assertions and sizes
            return None
        call = Call(node.target.overloadpacket.__name__, self._bind(node), shape, on_freeze=self._report)
        value = self._apply(call, torch.Tag.pointwise in node.target.tags)
        for reduced, kept in call.mixed:
            self.events.append(Event((*reduced, *kept), reduced=len(reduced)))
        self.events += [Event(axes) for axes in _tensors([value])]
        return value

    @staticmethod
    def _apply(call: Call, is_pointwise: bool) -> Any:
        rule = RULES.get(call.name) or (pointwise if is_pointwise else freeze_all)
        if (
            all(is_fixed(resolve(axis)) for axes in call.tensors() for axis in axes)
            and rule is not RULES["expand"]
        ):
            return fixed_like(call.shape) if call.tensors() else RULES.get(call.name, freeze_all)(call)
        return rule(call)

    def _bind(self, node: torch.fx.Node) -> dict[str, Any]:
        arguments = node.target._schema.arguments  # type: ignore[union-attr]
        bound = {arg.name: arg.default_value if arg.has_default_value() else None for arg in arguments}
        bound |= dict(zip((arg.name for arg in arguments), self._values(node.args), strict=False))
        return bound | {name: self._values(value) for name, value in node.kwargs.items()}

    def _values(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return self.values[argument]
        if isinstance(argument, list | tuple):
            listed = [self._values(item) for item in argument]
            return listed if isinstance(argument, list) else tuple(listed)
        return argument

    def _report(self, call: Call) -> None:
        touched = {atom for axes in call.tensors() for axis in axes for atom in atoms(axis) if not atom.fixed}
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
            axes={
                name: tuple(_pattern(axis, names, outer.keys()) for axis in axes)
                for name, axes in tensors.items()
            },
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
