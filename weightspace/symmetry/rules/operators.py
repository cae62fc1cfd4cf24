"""Names of the operators that rules and the tracking of fused tensors treat alike, each declared here alone.

A name is that of the overload packet in ``torch.ops.aten``. The table of rules and both halves of the tracking (what a
graph makes of a marked axis, and what a rule makes of the parts) read these sets.
"""

from __future__ import annotations

from typing import Any


def name_of(operator: Any) -> str:
    """Return the name of an operator, empty for what is none."""
    return getattr(getattr(operator, "overloadpacket", None), "__name__", "")


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


#: The same values in the same axes: copies, casts, and noise that evaluation switches off.
PASS_THROUGH = _names(
    "clone contiguous detach detach_ alias to _to_copy type_as lift_fresh lift_fresh_copy positive conj _conj "
    "resolve_conj resolve_neg dropout dropout_ feature_dropout alpha_dropout feature_alpha_dropout native_dropout "
    "fake_quantize_per_tensor_affine"
)

#: Unit by unit, although torch does not tag them as pointwise.
POINTWISE = _names("where masked_fill fill fill_ copy copy_ relu relu_ hardswish silu mish gelu nan_to_num")

#: The same units grouped into other axes, in row-major order.
VIEWS = _names("view reshape _unsafe_view flatten unflatten view_as reshape_as _reshape_alias view_copy")

#: Swap two axes.
TRANSPOSES = _names("transpose t swapaxes numpy_T")

#: The same axes in another order, or with axes of one more or less.
REARRANGEMENTS = TRANSPOSES | _names("permute unsqueeze squeeze")

#: Cut an axis into pieces that lie end to end.
SPLITS = _names("split split_with_sizes chunk tensor_split")

#: Keep a range of an axis.
RANGES = _names("slice narrow")

#: Units of one axis are picked or cut apart by their position.
CUTS = SPLITS | RANGES | _names("select unbind")

#: Normalise over the last axes.
LAYER_NORMS = _names("layer_norm native_layer_norm rms_norm _fused_rms_norm")

#: Normalise along one axis.
SOFTMAXES = _names("softmax _softmax log_softmax _log_softmax _safe_softmax")

#: Normalise over some axes, alike for every unit of the others.
NORMALISATIONS = LAYER_NORMS | SOFTMAXES

#: What these make of indices are indices of the same units.
KEEPS_INDICES = PASS_THROUGH | VIEWS | REARRANGEMENTS | CUTS | _names("expand expand_as broadcast_to repeat flip roll")

#: So are indices that are looked up themselves.
PICKS_INDICES = _names("gather take_along_dim index index_select")
