"""Norms whose gain and shift can be folded into the linear layers that read them.

A norm ``γ ⊙ n(x) + β`` distinguishes units by its gain. If all that reads it is linear layers, the gain can move into
their weights, and the shift into their biases; what is left, ``n``, commutes with every orthogonal map (of the
complement of ``1``, if it subtracts the mean).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from weightspace.symmetry.kinds.symmetry_spec import Reader
from weightspace.symmetry.rules import Axes, Call, name_of
from weightspace.symmetry.rules.operators import PASS_THROUGH, RANGES, REARRANGEMENTS, TRANSPOSES, VIEWS
from weightspace.symmetry.shapes import shape_of

#: Operators that keep the last axis as it is.
_KEEPS_LAST = PASS_THROUGH | VIEWS | REARRANGEMENTS | RANGES | {"select", "unbind", "expand", "mean", "index", "cat"}

#: Reciprocal square roots.
_ROOTS = {"rsqrt", "sqrt"}


@dataclass(frozen=True)
class Norm:
    """A norm in the graph.

    Attributes:
        output: the node with the result.
        source: the node with the input.
        inside: nodes between the two.
        gain: name of its gain, or None.
        shift: name of its shift, or None.
        centred: whether it subtracts the mean.
        readers: the linear layers that read it; None: something else does.
    """

    output: fx.Node
    source: fx.Node
    inside: frozenset[fx.Node]
    gain: str | None
    shift: str | None
    centred: bool
    readers: tuple[Reader, ...] | None

    def parameters(self, call: Call) -> Iterator[Axes]:
        """Yield the axes of gain and shift among the arguments of the call that has the result."""
        yield from (axes for axes in call.tensors() if len(axes) == 1)

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be folded, or None."""
        if self.gain is None and self.shift is None:
            return None
        name = (self.gain or self.shift or "").rpartition(".")[0]
        if self.readers is None:
            return f"{name}: its output is read by more than linear layers"
        return None


def norms_of(graph: fx.Graph, names: Mapping[fx.Node, str]) -> Iterator[Norm]:
    """Yield the norms of a graph over a last axis.

    Args:
        graph: of the network.
        names: placeholder -> name of the parameter.
    """
    for node in graph.nodes:
        name = name_of(node.target)
        if name in ("layer_norm", "native_layer_norm"):
            yield _fused(node, names, centred=True)
        elif name in ("rms_norm", "_fused_rms_norm"):
            yield _fused(node, names, centred=False)
        elif name in _ROOTS:
            yield from _written_out(node, names)


def _fused(node: fx.Node, names: Mapping[fx.Node, str], *, centred: bool) -> Norm:
    """Return the norm of one operator."""
    arguments = dict(zip((arg.name for arg in node.target._schema.arguments), node.args, strict=False))  # type: ignore[union-attr]
    arguments |= node.kwargs
    gain, shift = (names.get(arguments.get(key)) for key in ("weight", "bias"))  # type: ignore[arg-type]
    source = arguments["input"]
    assert isinstance(source, fx.Node)
    readers = _readers(node, names) if len(arguments["normalized_shape"]) == 1 else None  # type: ignore[arg-type]
    return Norm(node, source, frozenset(), gain, shift, centred, readers)


def _written_out(root: fx.Node, names: Mapping[fx.Node, str]) -> Iterator[Norm]:
    """Yield the norm that is written out as ``γ ⊙ x · rsqrt(mean(x²) + ε)``."""
    mean = _up(root.args[0], {"add"})
    if mean is None or name_of(mean.target) not in ("mean", "sum"):
        return
    square = _up(mean.args[0], set())
    if square is None or not _is_square(square):
        return
    source = _origin(square.args[0])
    scaled = next((user for user in _users(root) if name_of(user.target) in ("mul", "div")), None)
    if scaled is None or not any(_origin(arg) is source for arg in scaled.args if isinstance(arg, fx.Node)):
        return
    inside, output, gain = {square, mean, root, scaled}, scaled, None
    users = list(_users(scaled))
    if len(users) == 1 and name_of(users[0].target) == "mul":
        other = next((arg for arg in users[0].args if isinstance(arg, fx.Node) and _origin(arg) in names), None)
        if other is not None:
            output, gain = users[0], names[_origin(other)]
    yield Norm(output, source, frozenset(inside - {output}), gain, None, False, _readers(output, names))


def _is_square(node: fx.Node) -> bool:
    name = name_of(node.target)
    if name == "pow":
        return node.args[1] == 2
    return name == "square" or (name == "mul" and node.args[0] is node.args[1])


def _up(node: object, through: set[str]) -> fx.Node | None:
    """Return the node that this one comes from through casts and other operators."""
    while isinstance(node, fx.Node) and name_of(node.target) in PASS_THROUGH | through:
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None


def _origin(node: object) -> fx.Node:
    found = _up(node, set())
    assert found is not None
    return found


def _users(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the users of a value, casts followed."""
    for user in node.users:
        if name_of(user.target) in PASS_THROUGH:
            yield from _users(user)
        elif user.op == "output" or user.meta.get("val") is not None:  # no assertion
            yield user


def _readers(node: fx.Node, names: Mapping[fx.Node, str]) -> tuple[Reader, ...] | None:
    """Return the linear layers that all end in, or None."""
    found: dict[str, Reader] = {}
    used: set[fx.Node] = set()
    pending, seen = [node], {node}
    while pending:
        here = pending.pop()
        for user in here.users:
            name = name_of(user.target)
            if user.op != "output" and user.meta.get("val") is None:  # an assertion
                continue
            reader = _reader(user, here, names)
            if reader is not None:
                found[reader.weight] = reader
                used.add(user)
            elif user.target.__name__ == "getitem" if callable(user.target) and not name else name in _KEEPS_LAST:  # type: ignore[union-attr]
                if name in _KEEPS_LAST and not _keeps_last(user, here):
                    return None
                if user not in seen:
                    seen.add(user)
                    pending.append(user)
            else:
                return None
    weights = [node for node, name in names.items() if name in found]
    return tuple(found.values()) if all(set(_users(weight)) <= used | _turned(weight) for weight in weights) else None


def _turned(weight: fx.Node) -> set[fx.Node]:
    """Return the transposes of a weight."""
    return {user for user in _users(weight) if name_of(user.target) in TRANSPOSES}


def _keeps_last(user: fx.Node, node: fx.Node) -> bool:
    """Return whether an operator leaves the last axis, which is the norm's, as it is and where it is."""
    value = user.meta.get("val")
    if isinstance(value, list | tuple):
        value = value[0]
    before, after = shape_of(node.meta["val"]), shape_of(value)
    return bool(after) and before[-1:] == after[-1:]


def _reader(user: fx.Node, node: fx.Node, names: Mapping[fx.Node, str]) -> Reader | None:
    """Return the linear layer that an operator is, if it reads along the last axis."""
    name, args = name_of(user.target), user.args
    if name == "linear" and args[0] is node and args[1] in names:
        bias = args[2] if len(args) > 2 else None
        return Reader(names[args[1]], 1, None if bias is None else names.get(bias))  # type: ignore[index, arg-type]
    if name in ("matmul", "mm", "addmm"):
        bias, (left, right) = (args[0], args[1:3]) if name == "addmm" else (None, args[:2])
        if left is not node or not isinstance(right, fx.Node):
            return None
        transposed = name_of(right.target) in ("t", "transpose", "permute", "numpy_T")
        origin = right.args[0] if transposed else right
        if origin in names:
            return Reader(names[origin], int(transposed), None if bias is None else names.get(bias))  # type: ignore[index, arg-type]
    return None
