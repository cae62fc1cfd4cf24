"""Norms whose gain and shift can be folded into the linear layers that read them.

A norm ``γ ⊙ n(x) + β`` distinguishes units by its gain. If it is read by linear layers only, the gain can move into
their weights and the shift into their biases; the remaining ``n`` commutes with every orthogonal map (one that fixes
the vector of ones, if ``n`` subtracts the mean).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from weightspace.symmetry.kinds.graph import operand, operands, users
from weightspace.symmetry.kinds.symmetry_spec import Reader
from weightspace.symmetry.rules import Axes, Call, dims_of, name_of
from weightspace.symmetry.rules.operators import CUTS, PASS_THROUGH, SPLITS, TRANSPOSES, VIEWS
from weightspace.symmetry.shapes import shape_of

#: A square root, and the operator by which it scales.
_ROOTS = {"rsqrt": "mul", "sqrt": "div"}


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
        other: a clause that says what else does, empty if nothing does.
    """

    output: fx.Node
    source: fx.Node
    inside: frozenset[fx.Node]
    gain: str | None
    shift: str | None
    centred: bool
    readers: tuple[Reader, ...] | None
    other: str = ""

    def parameters(self, call: Call) -> Iterator[Axes]:
        """Yield the axes of gain and shift among the arguments of the call that has the result."""
        yield from (axes for axes in call.tensors() if len(axes) == 1)

    @property
    def obstacle(self) -> str | None:
        """A clause that says why it cannot be folded, or None."""
        return self.other if self.readers is None and (self.gain or self.shift) else None


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
        elif name in ("linalg_norm", "linalg_vector_norm", "norm"):
            yield from _by_length(node, names)


def _fused(node: fx.Node, names: Mapping[fx.Node, str], *, centred: bool) -> Norm:
    """Return the norm of one operator."""
    arguments = dict(zip((arg.name for arg in node.target._schema.arguments), node.args, strict=False))  # type: ignore[union-attr]
    arguments |= node.kwargs
    gain, shift = (names.get(arguments.get(key)) for key in ("weight", "bias"))  # type: ignore[arg-type]
    source = arguments["input"]
    assert isinstance(source, fx.Node)
    if len(arguments["normalized_shape"]) != 1:  # type: ignore[arg-type]
        several = f"{_layer(gain, shift)} normalises over several axes"
        return Norm(node, source, frozenset(), gain, shift, centred, None, several)
    return Norm(node, source, frozenset(), gain, shift, centred, *_readers(node, names, _layer(gain, shift)))


def _layer(gain: str | None, shift: str | None) -> str:
    """Return the name of the layer that has a norm's parameters."""
    name = gain or shift or "the norm"
    return name.rpartition(".")[0] or name


def _written_out(root: fx.Node, names: Mapping[fx.Node, str]) -> Iterator[Norm]:
    """Yield the norm that is written out as ``γ ⊙ x · rsqrt(mean(x²) + ε)``."""
    mean = _mean_below(root)
    square = None if mean is None else operand(mean, 0)
    source = None if square is None else _squared(square)
    if mean is None or square is None or source is None or len(list(users(square))) > 1:
        return
    scaled = next((user for user in users(root) if name_of(user.target) == _ROOTS[name_of(root.target)]), None)
    if scaled is None or source not in operands(scaled)[: 1 if name_of(scaled.target) == "div" else 2]:
        return
    inside, output, gain = {square, mean, root, scaled}, scaled, None
    after = list(users(scaled))
    if len(after) == 1 and name_of(after[0].target) == "mul":
        vectors = (node for node in operands(after[0]) if node in names and len(shape_of(node.meta["val"])) == 1)
        parameter = next(vectors, None)
        if parameter is not None:
            output, gain = after[0], names[parameter]
    readers, other = _readers(output, names, _layer(gain, None))
    yield Norm(output, source, frozenset(inside - {output}), gain, None, False, readers, other)


def _by_length(length: fx.Node, names: Mapping[fx.Node, str]) -> Iterator[Norm]:
    """Yield the division of each row by its Euclidean length, as in ``torch.nn.functional.normalize``."""
    source = operand(length, 0)
    order, dims, keepdim = (*length.args[1:4], *(2, None, False)[len(length.args) - 1 :])
    rank = 0 if source is None else len(shape_of(source.meta["val"]))
    if source is None or order not in (2, None) or dims is None or keepdim is not True:
        return
    inside, divisor = {length}, length
    while dims_of(dims, rank) == [rank - 1] and len(after := list(users(divisor))) == 1:
        if name_of(after[0].target) == "div" and operand(after[0], 0) is source:
            yield Norm(after[0], source, frozenset(inside), None, None, False, *_readers(after[0], names, "the norm"))
            return
        if not _bounds_or_repeats(after[0]):
            return
        divisor = after[0]
        inside.add(divisor)


def _bounds_or_repeats(node: fx.Node) -> bool:
    """Return whether an operator clamps lengths, adds a number to them, or repeats them for each unit."""
    numbers = not any(isinstance(arg, fx.Node) for arg in node.args[1:])
    return name_of(node.target) in (("clamp", "clamp_min", "add", "expand") if numbers else ("expand_as",))


def _mean_below(root: fx.Node) -> fx.Node | None:
    """Return the mean or sum over the last axis that a root is taken of, a small number added."""
    node = operand(root, 0)
    if node is not None and name_of(node.target) == "add" and isinstance(node.args[1], int | float):
        node = operand(node, 0)
    if node is None or name_of(node.target) not in ("mean", "sum") or len(node.args) < 3 or node.args[2] is not True:
        return None
    rank = len(shape_of(node.meta["val"]))
    return node if dims_of(node.args[1], rank) == [rank - 1] else None


def _squared(node: fx.Node) -> fx.Node | None:
    """Return what a node is the square of, or None."""
    name, base = name_of(node.target), operand(node, 0)
    is_square = (name == "pow" and bool(node.args[1] == 2)) or name == "square"
    return base if is_square or (name == "mul" and base is operand(node, 1)) else None


def _readers(
    node: fx.Node, names: Mapping[fx.Node, str], norm: str
) -> tuple[tuple[Reader, ...], str] | tuple[None, str]:
    """Return the linear layers that are all that reads a norm, and that read nothing else; else None and why not."""
    found: dict[str, Reader] = {}
    reading: set[fx.Node] = set()
    others: list[fx.Node] = []
    pending = [node]
    for here in pending:
        for user in here.users:
            if user.op != "output" and user.meta.get("val") is None:  # an assertion
                continue
            reader = _reader(user, here, names)
            if reader is not None:
                found[reader.weight] = reader
                reading.add(user)
            elif _keeps_last(user, here):
                pending += [user] if user not in pending else []
            else:
                others.append(user)
    if others:
        return None, _other(others, norm)
    for origin, name in names.items():
        if any(name in (reader.weight, reader.bias) for reader in found.values()) and not _ends(origin) <= reading:
            return None, f"{name}, which reads the output of {norm}, is tied: it is used elsewhere as well"
    return tuple(found.values()), ""


def _other(others: Sequence[fx.Node], norm: str) -> str:
    """Return a clause about what reads a norm and is no linear layer."""
    names = [name_of(user.target) or user.op for user in others]
    if "output" in names:
        return f"the output of {norm} is an output of the network"
    if "add" in names or "add_" in names:
        return f"the output of {norm} enters the residual stream, and is read by more than linear layers"
    return f"the output of {norm} is read by {names[0]}, not only by linear layers"


def _ends(weight: fx.Node) -> set[fx.Node]:
    """Return the operators that use a weight, or its transpose."""
    ends: set[fx.Node] = set()
    for user in users(weight):
        ends |= set(users(user)) if name_of(user.target) in TRANSPOSES else {user}
    return ends


def _keeps_last(user: fx.Node, node: fx.Node) -> bool:
    """Return whether an operator leaves each row along the last axis as it is, or averages whole rows."""
    if user.target is operator.getitem:
        return True
    name, rank = name_of(user.target), len(shape_of(node.meta["val"]))
    if name in PASS_THROUGH:
        return True
    if name in VIEWS or name in ("expand", "unsqueeze", "squeeze"):
        return shape_of(user.meta["val"])[-1:] == shape_of(node.meta["val"])[-1:]
    if name == "permute":
        return _order(user, rank)[-1] == rank - 1
    if name in ("transpose", "swapaxes"):
        return rank - 1 not in dims_of(list(user.args[1:3]), rank)
    if name in CUTS:
        place = user.args[2] if name in SPLITS and len(user.args) > 2 else user.args[1] if len(user.args) > 1 else 0
        return isinstance(place, int) and place % rank != rank - 1
    if name == "mean":
        return len(user.args) > 1 and rank - 1 not in dims_of(user.args[1], rank)
    return name == "index" and len(user.args[1]) < rank  # type: ignore[arg-type]


def _order(user: fx.Node, rank: int) -> list[int]:
    """Return the order of axes of a ``permute``."""
    return [dim % rank for dim in user.args[1]]  # type: ignore[union-attr]


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


def linears_of(graph: fx.Graph, names: Mapping[fx.Node, str]) -> list[tuple[str, str]]:
    """Return weight and bias of every linear layer that has both.

    Args:
        graph: of the network.
        names: placeholder -> name of the parameter.
    """
    readers = (_reader(node, source, names) for node in graph.nodes for source in node.all_input_nodes)
    return [(reader.weight, reader.bias) for reader in readers if reader is not None and reader.bias is not None]
