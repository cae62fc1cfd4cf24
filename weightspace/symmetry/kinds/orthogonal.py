"""Rules under which the units of a group may be mixed by any orthogonal matrix, not only permuted.

Linear operators treat all mixtures alike; what works unit by unit does not, and freezes the axis. Norms and rotary
embeddings are seen as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from weightspace.symmetry.kinds.norms import Norm
from weightspace.symmetry.kinds.rotary import Rotary
from weightspace.symmetry.rules import Axes, Call, Rule, dims_of, fixed_like, freeze_all, is_axes, name_of, pointwise
from weightspace.symmetry.rules import reduce as reduction
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, freeze, unite
from weightspace.symmetry.rules.call import create, identity, one_shape, results
from weightspace.symmetry.rules.contractions import attention, convolution, einsum, linear, matmul
from weightspace.symmetry.rules.selection import embedding, index
from weightspace.symmetry.rules.slicing import cat, pieces, select, slice_, stack, unbind
from weightspace.symmetry.rules.views import expand, permute, repeat, repeat_interleave, squeeze, transpose, unsqueeze
from weightspace.symmetry.rules.views import view

#: Rules of operators that are linear in each argument and keep whole axes.
_LINEAR = {
    matmul, linear, einsum, embedding, cat, stack, pieces, select, slice_, unbind, expand, permute, repeat,
    repeat_interleave, squeeze, transpose, unsqueeze, view, identity, create,
}  # fmt: skip

_SUMS = {"add", "add_", "sub", "sub_", "rsub", "neg"}
_PRODUCTS = {"mul", "mul_", "div", "div_"}


class RotaryRules:
    """Chooses rules under which rotary embeddings are seen as a whole; all others are those of permutations.

    Args:
        rotaries: rotary embeddings by their outputs.
    """

    def __init__(self, rotaries: Mapping[fx.Node, Rotary]) -> None:
        self.rotaries = rotaries
        self.passed = {node for rotary in rotaries.values() for node in rotary.inside}
        self.turned: list[Axis] = []
        self.values: Mapping[fx.Node, Any] = {}

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        """Return the rule of a node; ``rule`` is the one under which units are permuted."""
        if node in self.rotaries:
            return self._rotary(self.rotaries[node])
        return (lambda call: fixed_like(call.shape)) if node in self.passed else rule

    def _rotary(self, rotary: Rotary) -> Rule:
        def apply(call: Call) -> Any:
            x: Axes = self.values[rotary.source]
            self.turned.append(x[-1])
            return results(call, x)

        return apply


class OrthogonalRules(RotaryRules):
    """Chooses rules under which the units of a group may be mixed.

    Args:
        norms: norms by their outputs.
        rotaries: rotary embeddings by their outputs.
    """

    def __init__(self, norms: Mapping[fx.Node, Norm], rotaries: Mapping[fx.Node, Rotary]) -> None:
        super().__init__(rotaries)
        self.norms = norms
        self.passed |= {node for norm in norms.values() for node in norm.inside}
        self.centred: list[Axis] = []

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        """Return the rule of a node; ``rule`` is the one under which units are permuted."""
        if node in self.norms:
            return self._norm(self.norms[node])
        if node in self.rotaries or node in self.passed:
            return super().__call__(node, rule)
        if rule in _LINEAR:
            return rule
        if rule is attention:
            return _attention
        if rule is index:
            return _index
        if rule is reduction and name_of(node.target) in ("mean", "sum"):
            return _mean
        if rule is convolution:
            return rule
        if rule is pointwise and name_of(node.target) in _SUMS:
            return _sum
        if rule is pointwise and name_of(node.target) in _PRODUCTS:
            return _product
        return freeze_all

    def _norm(self, norm: Norm) -> Rule:
        def apply(call: Call) -> Any:
            x: Axes = self.values[norm.source]
            for axis in x[:-1]:
                freeze(axis)
            for axis in (axis for axes in call.tensors() if len(axes) == 1 for axis in axes):
                freeze(axis, "")
            if norm.obstacle is not None:
                freeze(x[-1], norm.obstacle)
            elif norm.centred:
                self.centred.append(x[-1])
            return results(call, x)

        return apply


def _sum(call: Call) -> Any:
    """Add tensors; a number other than zero distinguishes units."""
    tensors = call.tensors()
    numbers = [call.args[key] for key in ("self", "other") if key in call.args and not is_axes(call.args[key])]
    if any(isinstance(number, int | float) and number != 0 for number in numbers):
        return freeze_all(call)
    return pointwise(call)


def _product(call: Call) -> Any:
    """Multiply tensors: an axis along which both vary is mixed by nothing but permutations."""
    tensors = call.tensors()
    if call.name.startswith("div") and is_axes(call.args.get("other")):
        for axis in call["other"]:
            if axis.size > 1:
                freeze(axis)
    shape = one_shape(call)
    for place, size in enumerate(shape):
        here = [t[place - len(shape)] for t in tensors if len(t) >= len(shape) - place]
        here = [axis for axis in here if axis.size == size and size > 1]
        if len(here) > 1:
            for axis in here:
                freeze(axis)
    return pointwise(call)


def _mean(call: Call) -> Any:
    x = call.tensors()[0]
    for dim in dims_of(call.get("dim"), len(x)):
        freeze(x[dim])
    return reduction(call)


def _index(call: Call) -> Any:
    """Pick units along some axes; the others are kept."""
    listed = call["indices"] if "indices" in call.args else [call["index"]]
    x = call["self"]
    picked = range(len(listed)) if "indices" in call.args else [call["dim"]]
    for place in picked:
        if "dim" in call.args or listed[place] is not None:
            freeze(x[place])
    return index(call)


def _attention(call: Call) -> Any:
    """Scores are no linear function: heads and positions are not mixed."""
    for key in ("query", "key", "value"):
        for axis in call[key][:-1]:
            freeze(axis)
    return attention(call)
