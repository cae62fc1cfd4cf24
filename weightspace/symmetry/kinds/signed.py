"""Rules under which the units of an axis may change their signs.

An operator keeps signs along an axis if it is odd unit by unit, or linear. A fixed axis here means that a value does
not change with the signs: even functions return one and leave their argument free. A product has the sign of the factor
that changes; if both do, one is frozen, if possible a parameter.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from weightspace.symmetry.kinds.orthogonal import LINEAR, add, average
from weightspace.symmetry.rules import Axes, Call, Rule, dims_of, freeze_all, is_axes, name_of, ordered, pointwise
from weightspace.symmetry.rules import reduce as reduction
from weightspace.symmetry.rules.axis_algebra import Axis, cut, fixed, freeze, is_fixed, resolve
from weightspace.symmetry.rules.call import fixed_like, identity, one_shape, results
from weightspace.symmetry.rules.norms import batch_norm, instance_norm, layer_norm, weight_norm
from weightspace.symmetry.rules.recurrent import cell, recurrent
from weightspace.symmetry.rules.slicing import glu, pad
from weightspace.symmetry.rules.spatial import spatial

#: Functions with f(−x) = −f(x), unit by unit.
_ODD = (
    *("tanh", "tanh_", "sin", "sin_", "tan", "asin", "atan", "sinh", "asinh", "atanh", "erf", "erfinv"),
    *("reciprocal", "sign", "sgn", "round", "trunc", "fix", "hardshrink", "softshrink"),
)

#: Functions with f(−x) = f(x).
_EVEN = ("abs", "abs_", "square", "cos", "cosh")


class SignedRules:
    """Rules under which the units of an axis may change their signs.

    Args:
        graph: of the network.
        parameters: the placeholders of its parameters.
    """

    #: Whether a constant with equal entries along an axis leaves its units free.
    frees_uniform = False

    def __init__(self, graph: fx.Graph, parameters: Collection[fx.Node]) -> None:
        #: Values that depend on parameters only.
        self.weights = set(parameters)
        for node in graph.nodes:
            if node.all_input_nodes and all(source in self.weights for source in node.all_input_nodes):
                self.weights.add(node)

    def __call__(self, node: fx.Node, rule: Rule) -> Rule:
        """Return the rule of a node; ``rule`` is the one under which units are permuted."""
        name = name_of(node.target)
        if rule is pointwise:
            return self._pointwise(node, name)
        if rule is reduction:
            return _REDUCTIONS.get(name, freeze_all)
        if rule is ordered:
            return rule if name in ("cumsum", "flip", "roll") else freeze_all
        return _RULES.get(rule) or LINEAR.get(rule, freeze_all)

    def _pointwise(self, node: fx.Node, name: str) -> Rule:
        if name in ("add", "add_", "sub", "sub_", "rsub", "neg", "neg_"):
            return add
        if name in ("mul", "mul_", "div", "div_"):
            return _product(second_first=len(node.args) > 1 and node.args[1] in self.weights)
        if name in ("pow", "pow_"):
            return _power
        if name in ("hardtanh", "hardtanh_", "clamp", "clamp_"):
            return _clip
        if name in ("where", "masked_fill"):
            return _choose
        return identity if name in _ODD else _even if name in _EVEN else freeze_all


def _even(call: Call) -> Any:
    return fixed_like(call.shape)


def _product(*, second_first: bool) -> Rule:
    """Return the rule of a product or quotient of two tensors, one of which is frozen first if both have signs."""

    def multiply(call: Call) -> Any:
        first, second = call.get("self"), call.get("other")
        if not is_axes(first) or not is_axes(second):
            return identity(call)
        if first is second:
            return _even(call)
        kept, frozen = (first, second) if second_first else (second, first)
        shape = one_shape(call)
        return tuple(_sign(kept, frozen, place - len(shape), size) for place, size in enumerate(shape))

    return multiply


def _sign(kept: Axes, frozen: Axes, place: int, size: int) -> Axis:
    """Return the axis of a product from those of its factors."""
    wide = [resolve(axes[place]) for axes in (kept, frozen) if len(axes) >= -place and axes[place].size == size]
    free = [axis for axis in wide if not is_fixed(axis)]
    if len(free) < 2:
        return free[0] if free else fixed(size)
    if free[0] is free[1]:
        return fixed(size)
    freeze(free[1])
    return free[0]


def _power(call: Call) -> Any:
    """Raise to a whole number."""
    exponent = call.args.get("exponent")
    if not isinstance(exponent, int | float) or not is_axes(call.args.get("self")) or exponent != int(exponent):
        return freeze_all(call)
    return identity(call) if int(exponent) % 2 else _even(call)


def _clip(call: Call) -> Any:
    """Clip to an interval; it keeps signs if it is symmetric."""
    low, high = (call.args.get(key, call.args.get(f"{key}_val")) for key in ("min", "max"))
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    return identity(call) if numbers and low == -high else freeze_all(call)


def _choose(call: Call) -> Any:
    """Take one value or another by a condition that does not change with signs."""
    condition = call.get("condition", "mask")
    values = {key: value for key, value in call.args.items() if key not in ("condition", "mask")}
    if any(isinstance(value, int | float) and value != 0 for value in values.values()):
        return freeze_all(call)
    for axis in condition:
        freeze(axis)
    return add(Call(call.name, values, call.shape))


def _norm(call: Call) -> Any:
    """Compute a norm, which does not change with signs."""
    return fixed_like(call.shape)


def _variance(call: Call) -> Any:
    """Compute a variance; the mean in it mixes units along its axes."""
    x = call.tensors()[0]
    for dim in dims_of(call.get("dim"), len(x)):
        freeze(x[dim])
    return fixed_like(call.shape)


def _layer_norm(call: Call) -> Any:
    """Normalise over the last axes: without a mean, all but the gain keeps signs."""
    x, count = call["input"], len(call["normalized_shape"])
    _freeze(call, "weight", "bias")
    if "rms" not in call.name:
        for axis in x if is_axes(call.get("bias")) else x[-count:]:
            freeze(axis)
    return results(call, x)


def _batch_norm(call: Call) -> Any:
    """Normalise each channel: its mean and shift have its sign."""
    _freeze(call, "weight", "running_var")
    for axis in (*call["input"][:1], *call["input"][2:]):
        freeze(axis)
    for name in ("bias", "running_mean"):
        if is_axes(call.get(name)):
            batch_norm(Call(call.name, {"input": call["input"], name: call[name]}, call.shape))
    return results(call, call["input"])


def _weight_norm(call: Call) -> Any:
    """Compute ``g v / ‖v‖``."""
    _freeze(call, "g")
    return results(call, call["v"])


def _recur(call: Call) -> Any:
    """Run over time, with an odd activation."""
    if not call.name.startswith("rnn_tanh"):
        return freeze_all(call)
    for axis in call["input"][:-1]:
        freeze(axis)
    return cell(call) if call.name == "rnn_tanh_cell" else recurrent(call)


def _freeze(call: Call, *names: str) -> None:
    """Freeze some arguments, where they are tensors."""
    for name in names:
        for axis in call.get(name) or ():
            freeze(axis)


def _gate(call: Call) -> Any:
    """Gate the first half by the second."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    left, right = cut(x[dim], x[dim].size // 2)
    freeze(right)
    return (*x[:dim], left, *x[dim + 1 :])


def _resample(call: Call) -> Any:
    return freeze_all(call) if "max" in call.name else spatial(call)


def _fill(call: Call) -> Any:
    """Add zeros, or copies of units."""
    return freeze_all(call) if call.get("mode") in (None, "constant") and call.get("value") else pad(call)


_REDUCTIONS: dict[str, Rule] = {
    "mean": average,
    "sum": average,
    "norm": _norm,
    "linalg_norm": _norm,
    "linalg_vector_norm": _norm,
    "var": _variance,
    "std": _variance,
}

_RULES: dict[Rule, Rule] = {
    batch_norm: _batch_norm,
    cell: _recur,
    glu: _gate,
    instance_norm: _batch_norm,
    layer_norm: _layer_norm,
    pad: _fill,
    recurrent: _recur,
    spatial: _resample,
    weight_norm: _weight_norm,
}
