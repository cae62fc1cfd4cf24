"""One small rule an operator: what a call of the aten graph does to the axes of its tensors.

A rule takes a ``Call`` (arguments by the names of the operator's schema; a tensor is the tuple of its axes) and
returns the axes of the result, uniting, splitting and freezing on the way. A name without a rule freezes all that
it touches; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

from weightspace.symmetry.rules.call import (
    Axes,
    Call,
    Rule,
    Uniform,
    create,
    fixed_like,
    freeze_all,
    identity,
    is_axes,
    pointwise,
)
from weightspace.symmetry.rules.contractions import attention, convolution, einsum, embedding, linear, matmul
from weightspace.symmetry.rules.normalisation import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    prelu,
    softmax,
    weight_norm,
)
from weightspace.symmetry.rules.pieces import (
    cat,
    glu,
    index,
    pad,
    pieces,
    select,
    slice_,
    slice_scatter,
    stack,
    unbind,
)
from weightspace.symmetry.rules.positions import columns, from_columns, pixel_shuffle, spatial, unfold
from weightspace.symmetry.rules.recurrent import cell, recurrent
from weightspace.symmetry.rules.reductions import ordered, reduce, triangle
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

__all__ = ["RULES", "Axes", "Call", "Uniform", "create", "expand", "fixed_like", "freeze_all", "is_axes", "pointwise"]


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: Operator (overload packet) -> rule. Operators that torch itself tags as pointwise need no row.
RULES: Mapping[str, Rule] = {
    **_table(matmul, "mm bmm matmul addmm baddbmm"),
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
    **_table(unfold, "unfold"),
    **_table(columns, "im2col"),
    **_table(from_columns, "col2im"),
    **_table(
        identity,
        "clone contiguous detach alias to _to_copy type_as dropout lift_fresh_copy lift_fresh "
        "feature_dropout alpha_dropout native_dropout",
    ),
    **_table(pointwise, "where masked_fill fill fill_ copy copy_ relu relu_ hardswish silu mish gelu"),
    **_table(
        create,
        "zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like "
        "scalar_tensor zero zero_",
    ),
}
