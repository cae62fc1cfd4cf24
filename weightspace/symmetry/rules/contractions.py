"""Operators that sum over the units that two tensors share."""

from __future__ import annotations

from typing import Any

from weightspace.symmetry.rules.axis_algebra import Axis, fixed, freeze, product, split, unite
from weightspace.symmetry.rules.call import Axes, Call, broadcast, freeze_all, is_axes, one_shape, results, shared


def matmul(call: Call) -> Axes:
    """Contract the last axis of the first tensor with the second-to-last of the second; batch axes are broadcast."""
    a = call.get("mat1", "batch1", "mat", "self")
    b = call.get("batch2", "mat2", "vec", "tensor", "other")
    shape = one_shape(call)
    unite(a[-1], b[-2] if len(b) > 1 else b[0])
    batch = broadcast([a[:-2], b[:-2]], shape[: max(len(a), len(b)) - 2]) if max(len(a), len(b)) > 2 else ()
    call.mix(a[-1:], a[:-1])
    call.mix(b[-2:-1] if len(b) > 1 else b, (*b[:-2], *b[-1:]) if len(b) > 1 else ())
    result = (*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))
    if call.name in ("addmm", "baddbmm", "addmv"):
        return broadcast([result, call["self"]], shape)
    return result


def linear(call: Call) -> Axes:
    """Compute ``x Wᵀ + b``."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    unite(x[-1], weight[-1])
    call.mix(x[-1:], x[:-1])
    call.mix(weight[-1:], weight[:-1])
    if is_axes(bias):
        unite(bias[0], weight[0])
    return (*x[:-1], *weight[:-1])


def einsum(call: Call) -> Axes:
    """Unite the axes of each letter; letters absent from the result are summed over."""
    tensors = call["tensors"]
    left, _, right = call["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in left or not right or len(terms) != len(tensors) or any(len(set(one)) < len(one) for one in terms):
        return freeze_all(call)
    axes: dict[str, Axis] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, axis in zip(term, tensor, strict=True):
            if letter not in axes or axes[letter].size == 1:
                axes[letter] = axis
            elif axis.size > 1:
                axes[letter] = shared([axes[letter], axis])
    for term, tensor in zip(terms, tensors, strict=True):
        named = list(zip(term, tensor, strict=True))
        summed = [axis for letter, axis in named if letter not in right]
        call.mix(summed, [axis for letter, axis in named if letter in right])
    return tuple(axes[letter] for letter in right)


def convolution(call: Call) -> Axes:
    """Contract channels within groups; positions are fixed."""
    x, weight, bias, groups = call["input"], call["weight"], call.get("bias"), call["groups"]
    channel = len(x) - len(weight) + 1
    for axis in x[channel + 1 :]:
        freeze(axis)
    for axis in weight[2:]:
        freeze(axis, "")
    transposed = "transpose" in call.name or bool(call.get("transposed"))
    inputs = split(x[channel], groups)
    weights = split(weight[0], groups)
    if inputs is None or weights is None:
        return freeze_all(call)
    unite(inputs[0], weights[0])
    call.mix((inputs[1], *x[channel + 1 :]), (*x[:channel], inputs[0]))
    if transposed:
        unite(inputs[1], weights[1])
        call.mix((weights[1],), (weights[0], weight[1]))
        out = product(weights[0], weight[1])
    else:
        unite(inputs[1], weight[1])
        call.mix((weight[1],), weights)
        out = weight[0]
    if is_axes(bias):
        unite(bias[0], out)
    return (*x[:channel], out, *(fixed(size) for size in one_shape(call)[channel + 1 :]))


def attention(call: Call) -> Any:
    """Apply scaled dot-product attention: queries meet keys unit by unit; the values' last axis passes through."""
    query, key, value = call["query"], call["key"], call["value"]
    heads = (query[:-2], key[:-2], value[:-2])
    if query[-3:-2] and key[-3].size != query[-3].size:  # grouped queries
        halves = split(query[-3], key[-3].size)
        if halves is None:
            return freeze_all(call)
        unite(halves[0], key[-3])
        unite(key[-3], value[-3])
        heads = tuple(one[:-3] for one in heads)
    lead = broadcast(heads, one_shape(call)[: len(heads[0])])
    unite(query[-1], key[-1])
    unite(key[-2], value[-2])
    if call.get("is_causal"):
        freeze(query[-2])
        freeze(key[-2])
    scores = (*query[:-1], key[-2])
    mask = call.get("attn_mask", "attn_bias")
    if is_axes(mask):
        broadcast([scores, mask], [axis.size for axis in scores])
    for one in (query, key):
        call.mix(one[-1:], one[:-1])
    call.mix(value[-2:-1], (*value[:-2], *value[-1:]))
    out = (*lead, *query[len(lead) : -1], value[-1])
    return results(call, out)
