"""Names of the operators that rules and the tracking of fused tensors treat alike.

A name is that of the overload packet in ``torch.ops.aten``.
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

#: The same axes in another order, or with axes of one more or less.
REARRANGEMENTS = _names("permute transpose t swapaxes numpy_T unsqueeze squeeze")

#: Units of one axis are picked or cut apart by their position.
CUTS = _names("select unbind slice narrow split split_with_sizes chunk tensor_split")

#: Normalise over some axes, alike for every unit of the others.
NORMALISATIONS = _names(
    "layer_norm native_layer_norm rms_norm _fused_rms_norm softmax _softmax log_softmax _log_softmax _safe_softmax"
)

#: What these make of indices are indices of the same units.
KEEPS_INDICES = PASS_THROUGH | VIEWS | REARRANGEMENTS | CUTS | _names("expand expand_as broadcast_to repeat flip roll")

#: So are indices that are looked up themselves.
PICKS_INDICES = _names("gather take_along_dim index index_select")
