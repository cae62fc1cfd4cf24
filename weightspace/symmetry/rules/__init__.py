"""One small rule per operator: the effect of an aten graph call on the axes of its tensors.

A rule takes a ``Call`` (arguments by their schema names; a tensor is the tuple of its axes) and returns the axes of the
result, uniting, splitting and freezing axes on the way. An operator without a rule freezes everything it touches;
nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from weightspace.symmetry.rules.call import (
    Axes,
    Call,
    Indices,
    Rule,
    Uniform,
    create,
    dims_of,
    fixed_like,
    freeze_all,
    identity,
    is_axes,
    pointwise,
)
from weightspace.symmetry.rules.contractions import attention, convolution, einsum, linear, matmul
from weightspace.symmetry.rules.fused import follow
from weightspace.symmetry.rules.norms import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    prelu,
    softmax,
    weight_norm,
)
from weightspace.symmetry.rules.operators import (
    KEEPS_INDICES,
    LAYER_NORMS,
    PASS_THROUGH,
    POINTWISE,
    RANGES,
    SOFTMAXES,
    SPLITS,
    TRANSPOSES,
    VIEWS,
    name_of,
)
from weightspace.symmetry.rules.recurrent import cell, recurrent
from weightspace.symmetry.rules.reductions import ordered, reduce, triangle
from weightspace.symmetry.rules.selection import (
    choose,
    compare,
    count_up,
    embedding,
    gather,
    index,
    index_add,
    index_put,
    one_hot,
    scatter,
)
from weightspace.symmetry.rules.slicing import (
    cat,
    glu,
    pad,
    pieces,
    select,
    slice_,
    slice_scatter,
    stack,
    unbind,
)
from weightspace.symmetry.rules.spatial import (
    columns,
    from_columns,
    pixel_shuffle,
    pixel_unshuffle,
    spatial,
    unfold,
)
from weightspace.symmetry.rules.views import (
    as_complex,
    as_real,
    expand,
    permute,
    repeat,
    repeat_interleave,
    squeeze,
    transpose,
    unsqueeze,
    view,
)

__all__ = [
    "RULES",
    "Axes",
    "Call",
    "Indices",
    "Rule",
    "Uniform",
    "cat",
    "dims_of",
    "fixed_like",
    "follow",
    "freeze_all",
    "is_axes",
    "looks_up",
    "name_of",
    "ordered",
    "pointwise",
    "reduce",
    "rule_of",
    "stack",
    "takes_constants",
]


def rule_of(operator: Any) -> Rule:
    """Return the rule of an operator, or one that freezes everything."""
    name = name_of(operator)
    is_pointwise = isinstance(operator, OpOverload) and torch.Tag.pointwise in operator.tags
    return RULES.get(name) or (pointwise if is_pointwise else freeze_all)


def looks_up(name: str, argument: str) -> bool:
    """Return whether an operator only moves the indices in this argument, or uses them to look up units."""
    return name in KEEPS_INDICES or argument in _LOOK_UPS.get(RULES.get(name, freeze_all), ())


def takes_constants(name: str) -> bool:
    """Return whether a rule does more with fixed axes than keep them fixed."""
    return name in KEEPS_INDICES or RULES.get(name) in (create, expand, count_up)


def _table(rule: Rule, names: str | Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(names.split() if isinstance(names, str) else sorted(names), rule)


#: Operator (overload packet) -> rule. Operators tagged as pointwise by torch need no row.
RULES: Mapping[str, Rule] = {
    **_table(matmul, "mm bmm mv dot vdot matmul addmm baddbmm addmv"),
    **_table(linear, "linear"),
    **_table(einsum, "einsum"),
    **_table(convolution, "convolution _convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d"),
    **_table(
        attention,
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention",
    ),
    **_table(embedding, "embedding"),
    **_table(recurrent, "lstm gru rnn_tanh rnn_relu"),
    **_table(cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    **_table(
        batch_norm,
        "batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit native_batch_norm cudnn_batch_norm",
    ),
    **_table(layer_norm, LAYER_NORMS),
    **_table(group_norm, "group_norm native_group_norm"),
    **_table(instance_norm, "instance_norm"),
    **_table(softmax, SOFTMAXES),
    **_table(weight_norm, "_weight_norm _weight_norm_interface"),
    **_table(prelu, "prelu"),
    **_table(
        reduce,
        "mean sum amax amin max min var std norm linalg_norm linalg_vector_norm logsumexp prod any all var_mean "
        "count_nonzero median nanmedian",
    ),
    **_table(choose, "topk sort argsort argmax argmin kthvalue mode"),
    **_table(count_up, "arange"),
    **_table(one_hot, "one_hot"),
    **_table(compare, "eq ne"),
    **_table(gather, "gather take_along_dim"),
    **_table(scatter, "scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_"),
    **_table(index_add, "index_add index_add_ index_copy index_copy_ index_reduce index_fill index_fill_"),
    **_table(index_put, "index_put index_put_"),
    **_table(ordered, "cumsum cumprod flip roll logcumsumexp cummax cummin"),
    **_table(triangle, "tril triu"),
    **_table(view, VIEWS),
    **_table(as_complex, "view_as_complex"),
    **_table(as_real, "view_as_real"),
    **_table(permute, "permute"),
    **_table(transpose, TRANSPOSES),
    **_table(unsqueeze, "unsqueeze"),
    **_table(squeeze, "squeeze"),
    **_table(expand, "expand expand_as broadcast_to"),
    **_table(repeat, "repeat"),
    **_table(repeat_interleave, "repeat_interleave"),
    **_table(cat, "cat concat concatenate"),
    **_table(stack, "stack"),
    **_table(pieces, SPLITS),
    **_table(glu, "glu"),
    **_table(slice_, RANGES),
    **_table(slice_scatter, "slice_scatter"),
    **_table(select, "select"),
    **_table(unbind, "unbind"),
    **_table(index, "index index_select"),
    **_table(pad, "pad constant_pad_nd"),
    **_table(
        spatial,
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d "
        "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa",
    ),
    **_table(pixel_shuffle, "pixel_shuffle"),
    **_table(pixel_unshuffle, "pixel_unshuffle"),
    **_table(unfold, "unfold"),
    **_table(columns, "im2col"),
    **_table(from_columns, "col2im"),
    **_table(identity, PASS_THROUGH),
    **_table(pointwise, POINTWISE),
    **_table(
        create,
        "zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like "
        "scalar_tensor zero zero_",
    ),
}

#: Rule -> the arguments in which it interprets integers as indices.
_LOOK_UPS: Mapping[Rule, tuple[str, ...]] = {
    cat: ("tensors",),
    stack: ("tensors",),
    compare: ("self", "other"),
    create: ("self",),
    embedding: ("indices",),
    gather: ("self", "index", "indices"),
    index: ("self", "index", "indices"),
    index_add: ("index",),
    index_put: ("indices",),
    one_hot: ("self",),
    scatter: ("index",),
}
