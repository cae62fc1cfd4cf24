"""One small rule an operator: what a call of the aten graph does to the axes of its tensors.

A rule takes a ``Call`` (arguments by the names of the operator's schema; a tensor is the tuple of its axes) and
returns the axes of the result, uniting, splitting and freezing on the way. A name without a rule freezes all that
it touches; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightspace.symmetry.axes import Atom, Axis, concat, cut, fixed, freeze, product, split, unite

#: A traced tensor: one axis a dimension. Operators with several results return a tuple of these in a list.
Axes = tuple[Axis, ...]


@dataclass
class Call:
    """One operator call: ``args`` by schema name, ``shape`` of the result, and what it mixes (see ``mix``)."""

    name: str
    args: Mapping[str, Any]
    shape: tuple[int, ...] | list[tuple[int, ...]]
    mixed: list[tuple[Axes, Axes]] = field(default_factory=list)
    #: Told of a call whose tensors are about to be frozen whole.
    on_freeze: Callable[[Call], None] = lambda call: None

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, *names: str) -> Any:
        """Return the first of several schema names that this operator has, or None."""
        return next((self.args[name] for name in names if name in self.args), None)

    def tensors(self) -> list[Axes]:
        """Return the tensors among the arguments, those in lists included."""
        listed = [value if isinstance(value, list) else [value] for value in self.args.values()]
        return [item for values in listed for item in values if is_axes(item)]

    def mix(self, reduced: Sequence[Axis], kept: Sequence[Axis]) -> None:
        """Record that units along ``reduced`` were combined for each unit of ``kept``."""
        self.mixed.append((tuple(reduced), tuple(kept)))


Rule = Callable[[Call], Any]


def is_axes(value: object) -> bool:
    """Tell whether an argument is a traced tensor."""
    return isinstance(value, tuple) and all(hasattr(axis, "size") for axis in value)


def broadcast(values: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """Unite the axes of tensors that are broadcast against each other, and return those of the result."""
    result: list[Axis] = []
    for place, size in enumerate(shape):
        here = [v[place - len(shape)] for v in values if len(v) >= len(shape) - place]
        here = [axis for axis in here if axis.size == size]
        for other in here[1:]:
            unite(here[0], other)
        result.append(here[0] if here else Atom(size))
    return tuple(result)


def pointwise(call: Call) -> Axes:
    """Same unit in, same unit out."""
    return broadcast(call.tensors(), _one_shape(call))


def identity(call: Call) -> Axes:
    """Return the first argument's axes."""
    return call.tensors()[0]


def create(call: Call) -> Axes:
    """Return a tensor whose entries are all equal: any permutation leaves it as it is."""
    return tuple(Atom(size) for size in _one_shape(call))


def freeze_all(call: Call) -> Any:
    """Freeze every tensor that the call touches (the answer to an operator without a rule)."""
    call.on_freeze(call)
    for axes in call.tensors():
        for axis in axes:
            freeze(axis)
    return fixed_like(call.shape)


def fixed_like(shape: tuple[int, ...] | list[tuple[int, ...]]) -> Any:
    """Return fixed axes of one shape, or of each of several."""
    if isinstance(shape, list):
        return [fixed_like(one) for one in shape]
    return tuple(fixed(size) for size in shape)


def _one_shape(call: Call) -> tuple[int, ...]:
    return call.shape[0] if isinstance(call.shape, list) else call.shape


def _results(call: Call, first: Axes) -> Any:
    """Return ``first``, beside fixed companions where the operator has several results."""
    if isinstance(call.shape, list):
        return [first, *(fixed_like(shape) for shape in call.shape[1:])]
    return first


def _dims(dims: Any, rank: int) -> list[int]:
    listed = range(rank) if dims is None or dims == [] else dims if isinstance(dims, list) else [dims]
    return sorted(dim % rank for dim in listed) if rank else []


# ---------------------------------------------------------------------------------------------- contractions


def matmul(call: Call) -> Axes:
    """Contract the last axis of one with the last but one of the other; batch axes are broadcast."""
    a = call.get("self", "batch1")
    b = call.get("mat2", "other", "batch2")
    if "mat1" in call.args:
        a, b = call["mat1"], call["mat2"]
    shape = _one_shape(call)
    unite(a[-1], b[-2] if len(b) > 1 else b[0])
    batch = broadcast([a[:-2], b[:-2]], shape[: max(len(a), len(b)) - 2]) if max(len(a), len(b)) > 2 else ()
    call.mix(a[-1:], a[:-1])
    call.mix(b[-2:-1] if len(b) > 1 else b, (*b[:-2], *b[-1:]) if len(b) > 1 else ())
    result = (*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))
    if call.name in ("addmm", "baddbmm"):
        return broadcast([result, call["self"]], shape)
    return result


def linear(call: Call) -> Axes:
    """``x W^T + b``."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    unite(x[-1], weight[-1])
    call.mix(x[-1:], x[:-1])
    call.mix(weight[-1:], weight[:-1])
    if is_axes(bias):
        unite(bias[0], weight[0])
    return (*x[:-1], *weight[:-1])


def convolution(call: Call) -> Axes:
    """Contract channels within groups; positions are fixed."""
    x, weight, bias, groups = call["input"], call["weight"], call.get("bias"), call["groups"]
    channel = len(x) - len(weight) + 1
    for axis in (*x[channel + 1 :], *weight[2:]):
        freeze(axis)
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
    return (*x[:channel], out, *(fixed(size) for size in _one_shape(call)[channel + 1 :]))


def attention(call: Call) -> Any:
    """Scaled dot product: queries meet keys unit by unit, the values' last axis passes."""
    query, key, value = call["query"], call["key"], call["value"]
    heads = (query[:-2], key[:-2], value[:-2])
    if query[-3:-2] and key[-3].size != query[-3].size:  # grouped queries
        halves = split(query[-3], key[-3].size)
        if halves is None:
            return freeze_all(call)
        unite(halves[0], key[-3])
        unite(key[-3], value[-3])
        heads = tuple(one[:-3] for one in heads)
    lead = broadcast(heads, _one_shape(call)[: len(heads[0])])
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
    return _results(call, out)


def embedding(call: Call) -> Axes:
    """Rows looked up by index: the vocabulary is fixed, the features pass."""
    weight, indices = call["weight"], call["indices"]
    freeze(weight[0])
    return (*indices, weight[1])


# ---------------------------------------------------------------------------------------------- normalisation


def batch_norm(call: Call) -> Any:
    """One scale, shift, mean and variance a channel."""
    x = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if is_axes(call.get(name)):
            unite(x[1], call[name][0])
    call.mix((*x[:1], *x[2:]), x[1:2])
    return _results(call, x)


def layer_norm(call: Call) -> Any:
    """Normalise over the last axes, then scale and shift them."""
    x, count = call["input"], len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if is_axes(call.get(name)):
            broadcast([x[-count:], call[name]], [axis.size for axis in x[-count:]])
    call.mix(x[-count:], x[:-count])
    return _results(call, x)


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
    return _results(call, x)


def instance_norm(call: Call) -> Any:
    """Normalise each channel over its positions."""
    return batch_norm(call)


def softmax(call: Call) -> Axes:
    """Normalise along one axis."""
    x, dim = call["self"], call["dim"]
    call.mix((x[dim],), [axis for place, axis in enumerate(x) if place != dim % len(x)])
    return x


def weight_norm(call: Call) -> Any:
    """``g v / ‖v‖``, the norm over all axes but one."""
    v, g, dim = call["v"], call["g"], call["dim"]
    call.mix([axis for place, axis in enumerate(v) if place != dim], (v[dim],))
    return _results(call, broadcast([v, g], [axis.size for axis in v]))


def prelu(call: Call) -> Axes:
    """One slope a channel."""
    x, weight = call["self"], call["weight"]
    if weight and weight[0].size > 1:
        unite(x[1], weight[0])
    return x


# ---------------------------------------------------------------------------------------------- reductions


def reduce(call: Call) -> Any:
    """Combine the units of some axes in a way that their order does not change."""
    if is_axes(call.get("other")):  # max(a, b) takes the larger of two tensors
        return pointwise(call)
    x = call.tensors()[0]
    dims = _dims(call.get("dim"), len(x))
    reduced = [x[dim] for dim in dims]
    kept = [axis for place, axis in enumerate(x) if place not in dims]
    call.mix(reduced, kept)
    if call.name in ("argmax", "argmin") or (isinstance(call.shape, list) and call.name in ("max", "min")):
        for axis in reduced:  # the result counts positions
            freeze(axis)
    if call.get("keepdim", "keepdims"):
        kept = [fixed(1) if place in dims else axis for place, axis in enumerate(x)]
    if isinstance(call.shape, list):
        return [tuple(kept) for _ in call.shape]
    return tuple(kept)


def ordered(call: Call) -> Any:
    """Depend on the order along one axis (cumsum, sort, flip, roll, …): it is frozen, the others pass."""
    x = call.tensors()[0]
    dims = call.get("dim", "dims")
    shapes = call.shape if isinstance(call.shape, list) else [call.shape]
    results = []
    for dim in _dims(dims, len(x)):
        freeze(x[dim])
    for shape in shapes:
        results.append(
            tuple(
                axis if place not in _dims(dims, len(x)) else fixed(shape[place])
                for place, axis in enumerate(x)
            )
        )
    return results if isinstance(call.shape, list) else results[0]


def triangle(call: Call) -> Axes:
    """Keep one triangle of the last two axes, whose order therefore matters."""
    x = call["self"]
    freeze(x[-1])
    freeze(x[-2])
    return x


# ---------------------------------------------------------------------------------------------- shapes


def view(call: Call) -> Axes:
    """Group the same units into other axes, splitting atoms where a boundary cuts them."""
    x = call.tensors()[0]
    shape = list(_one_shape(call))
    if 0 in shape:
        return freeze_all(call)
    result: list[Axis] = []
    source = [axis for axis in x if axis.size > 1]
    while shape:
        taken, wanted = ([source.pop(0)] if source and shape[0] > 1 else []), [shape.pop(0)]
        have, want = (taken[0].size if taken else 1), wanted[0]
        while have != want:
            if have < want:
                taken.append(source.pop(0))
                have *= taken[-1].size
            else:
                wanted.append(shape.pop(0))
                want *= wanted[-1]
        result += _factor(product(*taken), wanted)
    return tuple(result)


def _factor(axis: Axis, sizes: list[int]) -> list[Axis]:
    """View one axis as several of the given sizes."""
    result: list[Axis] = []
    rest = axis
    for size in sizes:
        halves = split(rest, size)
        if halves is None:
            freeze(axis)
            return [fixed(one) for one in sizes]
        result.append(halves[0])
        rest = halves[1]
    return result


def permute(call: Call) -> Axes:
    """Reorder the axes."""
    x = call["self"]
    return tuple(x[dim] for dim in call["dims"])


def transpose(call: Call) -> Axes:
    """Swap two axes."""
    axes = list(call["self"])
    first, second = (call["dim0"], call["dim1"]) if "dim0" in call.args else (0, -1)
    if len(axes) > 1:
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def unsqueeze(call: Call) -> Axes:
    """Insert an axis of one."""
    x = call["self"]
    place = call["dim"] % (len(x) + 1)
    return (*x[:place], fixed(1), *x[place:])


def squeeze(call: Call) -> Axes:
    """Drop axes of one."""
    x = call["self"]
    dims = _dims(call.get("dim"), len(x))
    return tuple(axis for place, axis in enumerate(x) if not (place in dims and axis.size == 1))


def expand(call: Call) -> Axes:
    """Repeat axes of one: the copies are equal, so any permutation may act on the new axis."""
    return broadcast([call["self"]], _one_shape(call))


def repeat(call: Call) -> Axes:
    """Tile whole axes."""
    x, repeats = call["self"], call["repeats"]
    x = (*(fixed(1) for _ in range(len(repeats) - len(x))), *x)
    return tuple(product(Atom(times), axis) for times, axis in zip(repeats, x, strict=True))


def repeat_interleave(call: Call) -> Axes:
    """Repeat each unit along one axis."""
    x, dim, repeats = call["self"], call["dim"], call["repeats"]
    if dim is None or not isinstance(repeats, int):
        return freeze_all(call)
    dim %= len(x)
    return (*x[:dim], product(x[dim], Atom(repeats)), *x[dim + 1 :])


def cat(call: Call) -> Axes:
    """Lay tensors end to end."""
    tensors = [axes for axes in call["tensors"] if not (len(axes) == 1 and axes[0].size == 0)]
    dim = call["dim"] % len(tensors[0])
    for other in tensors[1:]:
        for place, (a, b) in enumerate(zip(tensors[0], other, strict=True)):
            if place != dim:
                unite(a, b)
    joined = concat(*(axes[dim] for axes in tensors))
    return (*tensors[0][:dim], joined, *tensors[0][dim + 1 :])


def stack(call: Call) -> Axes:
    """Lay tensors along a new axis."""
    tensors = call["tensors"]
    dim = call["dim"] % (len(tensors[0]) + 1)
    for other in tensors[1:]:
        broadcast([tensors[0], other], [axis.size for axis in other])
    return (*tensors[0][:dim], fixed(len(tensors)), *tensors[0][dim:])


def pieces(call: Call) -> list[Axes]:
    """Cut one axis (split, chunk)."""
    x = call["self"]
    dim = (call.get("dim") or 0) % len(x)
    rest, result = x[dim], []
    for shape in call.shape:
        piece, rest = cut(rest, shape[dim])
        result.append((*x[:dim], piece, *x[dim + 1 :]))
    return result


def glu(call: Call) -> Axes:
    """One half gates the other."""
    x, dim = call["self"], call["dim"]
    left, right = cut(x[dim], x[dim].size // 2)
    unite(left, right)
    dim %= len(x)
    return (*x[:dim], left, *x[dim + 1 :])


def slice_(call: Call) -> Axes:
    """Keep a range of one axis."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    size, kept = x[dim].size, _one_shape(call)[dim]
    start = min(max((call["start"] or 0) + (size if (call["start"] or 0) < 0 else 0), 0), size)
    if kept == size:
        return x
    if call["step"] != 1:
        freeze(x[dim])
        return (*x[:dim], fixed(kept), *x[dim + 1 :])
    _, rest = cut(x[dim], start)
    piece, _ = cut(rest, kept)
    return (*x[:dim], piece, *x[dim + 1 :])


def select(call: Call) -> Axes:
    """Take one unit of an axis, which is thereby told from the others."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    freeze(x[dim])
    return (*x[:dim], *x[dim + 1 :])


def unbind(call: Call) -> list[Axes]:
    """Take every unit of an axis apart."""
    return [select(call) for _ in call.shape]


def index(call: Call) -> Axes:
    """Gather by index tensors: indexed axes are frozen, the others pass."""
    x, indices = call["self"], call["indices"]
    if "index" in call.args:
        indices = [None] * (call["dim"] % len(x)) + [call["index"]]
    places = [place for place, one in enumerate(indices) if one is not None]
    for place in places:
        freeze(x[place])
        for axis in indices[place]:
            freeze(axis)
    kept = [axis for place, axis in enumerate(x) if place not in places]
    count = len(_one_shape(call)) - len(kept)
    start = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    gathered = [fixed(size) for size in _one_shape(call)[start : start + count]]
    return (*kept[:start], *gathered, *kept[start:])


def pad(call: Call) -> Axes:
    """Add constant units at the ends of the last axes."""
    x, amounts = call["self"], call["pad"]
    if call.get("mode") not in (None, "constant") or min(amounts) < 0:
        return freeze_all(call)
    axes = list(x)
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place : 2 * place + 2]
        axes[-1 - place] = concat(Atom(before), axes[-1 - place], Atom(after))
    return tuple(axes)


def spatial(call: Call) -> Any:
    """Pool or resample positions; batch and channels pass."""
    x = call.tensors()[0]
    count = next(int(letter) for letter in call.name if letter.isdigit())
    for axis in x[-count:]:
        freeze(axis)
    shapes = call.shape if isinstance(call.shape, list) else [call.shape]
    results = [(*x[:-count], *(fixed(size) for size in shape[-count:])) for shape in shapes]
    return results if isinstance(call.shape, list) else results[0]


def pixel_shuffle(call: Call) -> Axes:
    """Move blocks of channels into positions."""
    x, factor = call["self"], call["upscale_factor"]
    halves = split(x[-3], x[-3].size // factor**2)
    if halves is None:
        return freeze_all(call)
    for axis in (halves[1], *x[-2:]):
        freeze(axis)
    return (*x[:-3], halves[0], *(fixed(size) for size in _one_shape(call)[-2:]))


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: Operator (overload packet) -> rule. Operators that torch itself tags as pointwise need no row.
RULES: Mapping[str, Rule] = {
    **_table(matmul, "mm bmm matmul addmm baddbmm"),
    **_table(linear, "linear"),
    **_table(convolution, "convolution _convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d"),
    **_table(
        attention,
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention",
    ),
    **_table(embedding, "embedding"),
    **_table(
        batch_norm, "batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm"
    ),
    **_table(layer_norm, "layer_norm native_layer_norm rms_norm _fused_rms_norm"),
    **_table(group_norm, "group_norm native_group_norm"),
    **_table(instance_norm, "instance_norm"),
    **_table(softmax, "softmax _softmax log_softmax _log_softmax _safe_softmax"),
    **_table(weight_norm, "_weight_norm _weight_norm_interface"),
    **_table(prelu, "prelu"),
    **_table(
        reduce,
        "mean sum amax amin max min var std norm linalg_vector_norm logsumexp prod any all argmax argmin var_mean",
    ),
    **_table(ordered, "cumsum cumprod sort topk argsort flip roll logcumsumexp"),
    **_table(triangle, "tril triu"),
    **_table(view, "view reshape _unsafe_view flatten unflatten view_as reshape_as"),
    **_table(permute, "permute"),
    **_table(transpose, "transpose t swapaxes numpy_T"),
    **_table(unsqueeze, "unsqueeze"),
    **_table(squeeze, "squeeze"),
    **_table(expand, "expand expand_as broadcast_to"),
    **_table(repeat, "repeat"),
    **_table(repeat_interleave, "repeat_interleave"),
    **_table(cat, "cat concat concatenate"),
    **_table(stack, "stack"),
    **_table(pieces, "split split_with_sizes chunk tensor_split"),
    **_table(glu, "glu"),
    **_table(slice_, "slice narrow"),
    **_table(select, "select"),
    **_table(unbind, "unbind"),
    **_table(index, "index index_select"),
    **_table(pad, "pad constant_pad_nd"),
    **_table(
        spatial,
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa",
    ),
    **_table(pixel_shuffle, "pixel_shuffle"),
    **_table(
        identity,
        "clone contiguous detach alias to _to_copy type_as dropout lift_fresh_copy lift_fresh "
        "feature_dropout alpha_dropout native_dropout",
    ),
    **_table(pointwise, "where masked_fill fill fill_ relu relu_ hardswish silu mish gelu"),
    **_table(
        create,
        "zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like "
        "scalar_tensor",
    ),
}
