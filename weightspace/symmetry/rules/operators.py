"""Names of operators that rules and the tracking of fused tensors treat alike, declared only here.

A name is that of the overload packet in ``torch.ops.aten``. The table of rules and both halves of the tracking (the
graph's use of a marked axis, and the effect of a rule on parts) read these sets.
"""

from __future__ import annotations

from typing import Any


def name_of(operator: Any) -> str:
    """Return the name of an operator, empty for anything else."""
    return getattr(getattr(operator, "overloadpacket", None), "__name__", "")


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


#: The same values in the same axes: copies, casts, and noise that is off in evaluation mode.
PASS_THROUGH = _names(
    "clone contiguous detach detach_ alias to _to_copy type_as lift_fresh lift_fresh_copy positive conj _conj "
    "resolve_conj resolve_neg dropout dropout_ feature_dropout alpha_dropout feature_alpha_dropout native_dropout "
    "fake_quantize_per_tensor_affine"
)

#: Elementwise, although torch doesn't tag them as pointwise.
POINTWISE = _names("where masked_fill fill fill_ copy copy_ relu relu_ hardswish silu mish gelu nan_to_num")

#: The same units regrouped into other axes, in row-major order.
VIEWS = _names("view reshape _unsafe_view flatten unflatten view_as reshape_as _reshape_alias view_copy")

#: Swap two axes.
TRANSPOSES = _names("transpose t swapaxes numpy_T")

#: The same axes in another order, or with an axis of size one added or removed.
REARRANGEMENTS = TRANSPOSES | _names("permute unsqueeze squeeze")

#: Cut an axis into consecutive pieces.
SPLITS = _names("split split_with_sizes chunk tensor_split")

#: Keep a range of an axis.
RANGES = _names("slice narrow")

#: Select or cut apart units of one axis by their position.
CUTS = SPLITS | RANGES | _names("select unbind")

#: Normalise over the last axes.
LAYER_NORMS = _names("layer_norm native_layer_norm rms_norm _fused_rms_norm")

#: Normalise along one axis.
SOFTMAXES = _names("softmax _softmax log_softmax _log_softmax _safe_softmax")

#: Normalise over some axes, identically for every unit of the others.
NORMALISATIONS = LAYER_NORMS | SOFTMAXES

#: Results on indices are indices of the same units.
KEEPS_INDICES = PASS_THROUGH | VIEWS | REARRANGEMENTS | CUTS | _names("expand expand_as broadcast_to repeat flip roll")

#: Indices that are themselves looked up remain indices.
PICKS_INDICES = _names("gather take_along_dim index index_select")
