"""Rules under which the units of an axis may be mixed by any orthogonal matrix, not only permuted.

An operator allows it along an axis if it is linear along it: mixtures of units give the same mixtures of results.
Whatever works unit by unit freezes the axis, whatever adds the same to all units does, too, and so does a product along
an axis that both factors have. Norms and rotary embeddings are seen as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from weightspace.symmetry.kinds.norms import Norm
from weightspace.symmetry.kinds.rotary import Rotary
from weightspace.symmetry.rules import (
    Axes,
    Call,
    Rule,
    cat,
    dims_of,
    freeze_all,
    is_axes,
    name_of,
    ordered,
    pointwise,
    stack,
)
from weightspace.symmetry.rules import reduce as reduction
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, freeze, resolve, split
from weightspace.symmetry.rules.call import create, fixed_like, identity, one_shape, results
from weightspace.symmetry.rules.contractions import attention, convolution, einsum, linear, matmul
from weightspace.symmetry.rules.selection import embedding, index
from weightspace.symmetry.rules.slicing import pieces, select, slice_, unbind
from weightspace.symmetry.rules.views import (
    expand,
    permute,
    repeat,
    repeat_interleave,
    squeeze,
    transpose,
    unsqueeze,
    view,
)


class RotaryRules:
    """Rules under which rotary embeddings are seen as a whole; all others are those of permutations.

    Args:
        rotaries: rotary embeddings by their outputs.
    """

    #: Whether a constant with equal entries along an axis leaves its units free.
    frees_uniform = True

    def __init__(self, rotaries: Mapping[fx.Node, Rotary]) -> None:
        self.rotaries = rotaries
        self.inside = {node for rotary in rotaries.values() for node in rotary.inside}
        #: Axes that a rotary embedding turns.
        self.turned: list[Axis] = []
        #: The axes of the values so far, as the walk has them.
        self.values: Mapping[fx.Node, Any] = {}

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        """Return the rule of a node; ``rule`` is the one under which units are permuted."""
        if node in self.inside:
            return _unseen
        return self._turn(self.values[self.rotaries[node].source]) if node in self.rotaries else rule

    def _turn(self, x: Axes) -> Rule:
        def turn(call: Call) -> Any:
            self.turned.append(x[-1])
            return results(call, x)

        return turn


class OrthogonalRules(RotaryRules):
    """Rules under which the units of an axis may be mixed.

    Args:
        norms: norms by their outputs.
        rotaries: rotary embeddings by their outputs.
    """

    frees_uniform = False

    def __init__(self, norms: Mapping[fx.Node, Norm], rotaries: Mapping[fx.Node, Rotary]) -> None:
        super().__init__(rotaries)
        self.norms = norms
        self.inside |= {node for norm in norms.values() for node in norm.inside}
        #: Axes whose mean a norm subtracts.
        self.centred: list[Axis] = []

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        """Return the rule of a node; ``rule`` is the one under which units are permuted."""
        if node in self.inside or node in self.rotaries:
            return super().__call__(node, rule)
        if node in self.norms:
            return self._normalise(self.norms[node])
        if rule is pointwise:
            return _POINTWISE.get(name_of(node.target), freeze_all)
        if rule is reduction:
            return average if name_of(node.target) in ("mean", "sum") else freeze_all
        if rule is ordered:
            return rule if name_of(node.target) in ("cumsum", "flip", "roll") else freeze_all
        return LINEAR.get(rule, freeze_all)

    def _normalise(self, norm: Norm) -> Rule:
        def normalise(call: Call) -> Any:
            x: Axes = self.values[norm.source]
            _freeze(x[:-1])
            for name in norm.parameters(call):
                _freeze(name, "")
            if norm.obstacle is not None or not isinstance(resolve(x[-1]), Atom):
                freeze(x[-1], norm.obstacle)
            elif norm.centred:
                self.centred.append(x[-1])
            return results(call, x)

        return normalise


def _unseen(call: Call) -> Any:
    return fixed_like(call.shape)


def _freeze(axes: Iterable[Axis], cause: str | None = None) -> None:
    for axis in axes:
        freeze(axis, cause)


def _along(tensors: Sequence[Axes], shape: Sequence[int]) -> list[list[Axis]]:
    """Return for each axis of a result those of the tensors that are broadcast to it."""
    return [[x[place - len(shape)] for x in tensors if len(x) >= len(shape) - place] for place in range(len(shape))]


def add(call: Call) -> Any:
    """Add tensors; what is the same for all units of an axis distinguishes mixtures."""
    numbers = (call.args[key] for key in ("self", "other") if key in call.args)
    if any(isinstance(number, int | float) and number != 0 for number in numbers):
        return freeze_all(call)
    _freeze_spread(call.tensors(), one_shape(call))
    return pointwise(call)


def _freeze_spread(tensors: Sequence[Axes], shape: Sequence[int]) -> None:
    """Freeze the axes along which not all tensors vary."""
    for size, here in zip(shape, _along(tensors, shape), strict=True):
        if size > 1 and (len(here) < len(tensors) or any(axis.size == 1 for axis in here)):
            _freeze(here)


def _freeze_shared(tensors: Sequence[Axes], shape: Sequence[int]) -> None:
    """Freeze the axes along which several tensors vary."""
    for here in _along(tensors, shape):
        wide = [axis for axis in here if axis.size > 1]
        if len(wide) > 1:
            _freeze(wide)


def _multiply(call: Call) -> Any:
    """Multiply tensors: linear in each, along the axes that the other does not have."""
    _freeze_shared(call.tensors(), one_shape(call))
    return pointwise(call)


def _divide(call: Call) -> Any:
    """Divide by a number, or by something that is the same for all units of an axis."""
    if is_axes(call.args.get("other")):
        _freeze(call["other"])
    return _multiply(call) if is_axes(call.args.get("self")) else freeze_all(call)


def average(call: Call) -> Any:
    """Sum over some axes; the others are kept."""
    x = call.tensors()[0]
    _freeze(x[dim] for dim in dims_of(call.get("dim"), len(x)))
    return reduction(call)


def _linear(call: Call) -> Any:
    """Compute ``x Wᵀ + b``; the bias is the same along all axes of ``x`` but the last."""
    if is_axes(call["bias"]):
        _freeze(call["input"][:-1])
    return linear(call)


def _matmul(call: Call) -> Any:
    """Contract two tensors; batch axes of both are a product."""
    a, b = (
        call.get("mat1", "batch1", "mat", "self"),
        call.get("batch2", "mat2", "vec", "tensor", "other"),
    )
    shape = one_shape(call)
    if len(a) > 2 and len(b) > 2:
        _freeze_shared([a[:-2], b[:-2]], shape[:-2])
    result = matmul(call)
    if call.name in ("addmm", "baddbmm", "addmv"):
        _freeze_spread([result, call["self"]], shape)
    return result


def _einsum(call: Call) -> Any:
    """Contract tensors; a letter of the result that several have is a product."""
    left, _, right = call["equation"].replace(" ", "").partition("->")
    held: dict[str, list[Axis]] = {}
    for term, tensor in zip(left.split(","), call["tensors"], strict=False):
        for letter, axis in zip(term, tensor, strict=False):
            held.setdefault(letter, []).append(axis)
    for letter, axes in held.items():
        if letter in right and len(axes) > 1:
            _freeze(axes)
    return einsum(call)


def _convolve(call: Call) -> Any:
    """Contract channels; groups of them are a product, and the bias is the same for all positions and samples."""
    x, weight = call["input"], call["weight"]
    channel = len(x) - len(weight) + 1
    if is_axes(call.get("bias")):
        _freeze(x[:channel])
    if call["groups"] > 1:
        for axis in (x[channel], weight[0]):
            halves = split(axis, call["groups"])
            _freeze([axis] if halves is None else halves[:1])
    return convolution(call)


def _attend(call: Call) -> Any:
    """Mix values by scores, which are no linear function of heads and positions."""
    for key in ("query", "key", "value"):
        _freeze(call[key][:-1])
    return attention(call)


def _pick(call: Call) -> Any:
    """Pick units along some axes; the others are kept."""
    x = call["self"]
    if "dim" in call.args:
        _freeze([x[call["dim"]]])
    else:
        _freeze(axis for axis, indices in zip(x, call["indices"], strict=False) if indices is not None)
    return index(call)


def _repeated(rule: Rule) -> Rule:
    """Return a rule for repeating units, along whose new axes all are the same."""

    def repeated(call: Call) -> Any:
        x, result = call["self"], rule(call)
        if not is_axes(result):
            return result
        for place, axis in enumerate(result):
            source = place - len(result) + len(x)
            if source < 0 or x[source].size != axis.size:
                freeze(axis)
        return result

    return repeated


def _create(call: Call) -> Any:
    """Return zeros, which any mixture leaves as they are; other numbers are distinguished by it."""
    return create(call) if "zero" in call.name else fixed_like(call.shape)


def _pass(call: Call) -> Any:
    return freeze_all(call) if call.name.startswith("fake_quantize") else identity(call)


_POINTWISE: Mapping[str, Rule] = {
    **dict.fromkeys(("add", "add_", "sub", "sub_", "rsub", "neg", "neg_"), add),
    **dict.fromkeys(("mul", "mul_"), _multiply),
    **dict.fromkeys(("div", "div_"), _divide),
}

_KEPT: tuple[Callable[[Call], Any], ...] = (
    *(embedding, cat, stack, pieces, select, slice_, unbind),
    *(permute, squeeze, transpose, unsqueeze, view),
)

#: Rule for permutations -> rule for mixtures; all others freeze what they touch.
LINEAR: Mapping[Rule, Rule] = {
    **{rule: rule for rule in _KEPT},
    **{rule: _repeated(rule) for rule in (expand, repeat, repeat_interleave)},
    linear: _linear,
    matmul: _matmul,
    einsum: _einsum,
    convolution: _convolve,
    attention: _attend,
    index: _pick,
    create: _create,
    identity: _pass,
}
