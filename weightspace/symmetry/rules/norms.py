"""Operators that scale units by statistics of others, or by one parameter each."""

from __future__ import annotations

from typing import Any

from weightspace.symmetry.rules.axis_algebra import split, unite
from weightspace.symmetry.rules.call import Axes, Call, broadcast, freeze_all, is_axes, results


def batch_norm(call: Call) -> Any:
    """Normalise with one scale, shift, mean and variance per channel."""
    x = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if is_axes(call.get(name)):
            unite(x[1], call[name][0])
    call.mix((*x[:1], *x[2:]), x[1:2])
    return results(call, x)


def layer_norm(call: Call) -> Any:
    """Normalise over the last axes, then scale and shift them."""
    x, count = call["input"], len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if is_axes(call.get(name)):
            broadcast([x[-count:], call[name]], [axis.size for axis in x[-count:]])
    call.mix(x[-count:], x[:-count])
    return results(call, x)


def group_norm(call: Call) -> Any:
    """Normalise each group of channels over its channels and positions."""
    x = call["input"]
    for name in ("weight", "bias"):
        if is_axes(call.get(name)):
            unite(x[1], call[name][0])
    halves = split(x[1], call.get("num_groups", "group"))
    if halves is None:
        return freeze_all(call)
    call.mix((halves[1], *x[2:]), (x[0], halves[0]))
    return results(call, x)


def instance_norm(call: Call) -> Any:
    """Normalise each channel over its positions."""
    return batch_norm(call)


def softmax(call: Call) -> Axes:
    """Normalise along one axis."""
    x, dim = call["self"], call["dim"]
    call.mix((x[dim],), [axis for place, axis in enumerate(x) if place != dim % len(x)])
    return x


def weight_norm(call: Call) -> Any:
    """Compute ``g v / ‖v‖``, with the norm over all axes but one."""
    v, g, dim = call["v"], call["g"], call["dim"]
    call.mix([axis for place, axis in enumerate(v) if place != dim], (v[dim],))
    return results(call, broadcast([v, g], [axis.size for axis in v]))


def prelu(call: Call) -> Axes:
    """Apply one slope per channel."""
    x, weight = call["self"], call["weight"]
    if weight and weight[0].size > 1:
        unite(x[1], weight[0])
    return x
