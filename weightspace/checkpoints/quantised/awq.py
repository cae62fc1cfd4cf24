"""AWQ in the GEMM layout: 4-bit integers packed along the outputs, with scales and zero points per group of inputs.

``qweight`` has shape ``(inputs, outputs / 8)``, ``qzeros`` ``(groups, outputs / 8)`` and ``scales``
``(groups, outputs)``. The eight numbers of a word are those of outputs 0, 2, 4, 6, 1, 3, 5, 7. Element ``(o, i)`` of
the matrix is ``scales[g, o] · (q[i, o] − z[g, o])``, exact in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo
from weightspace.checkpoints.quantised.companions import is_understood
from weightspace.checkpoints.quantised.format import Format, Found, Settings, Stored
from weightspace.checkpoints.quantised.integers import SCALES, is_grouped_by, numbers
from weightspace.checkpoints.quantised.panels import PanelReader, panel_bytes, read_columns

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

_METHOD = "awq"

#: Numbers per word, and the position of each output's number in it.
_WORD, _PLACES = 8, (0, 4, 1, 5, 2, 6, 3, 7)

_PARTS = {"values": "qweight", "zeros": "qzeros", "scales": "scales"}


def find(stored: Stored) -> list[Found]:
    """Return the matrices of a model whose configuration names AWQ."""
    if stored.settings.method != _METHOD:
        return []
    size = stored.settings.options.get("group_size", stored.settings.options.get("q_group_size"))
    found = (_matrix(parts, stored.tensors, size) for parts in stored.modules.values() if "qweight" in parts)
    return [own for own in found if own is not None]


def _matrix(parts: Mapping[str, str], tensors: Mapping[str, TensorInfo], size: Any) -> Found | None:
    """Return the matrix of a module."""
    if not set(_PARTS.values()) <= parts.keys() or not is_understood(parts, set(_PARTS.values())) or "weight" in parts:
        return None
    roles = {role: parts[last] for role, last in _PARTS.items()}
    values, zeros, scales = (tensors[name] for name in roles.values())
    if len(values.shape) != 2 or len(scales.shape) != 2 or not values.numel or scales.dtype not in SCALES:
        return None
    inputs, (groups, outputs) = values.shape[0], scales.shape
    expected = ("I32", (inputs, outputs // _WORD)), ("I32", (groups, outputs // _WORD))
    if ((values.dtype, values.shape), (zeros.dtype, zeros.shape)) != expected or outputs % _WORD or inputs % groups:
        return None
    if not is_grouped_by(size, inputs, groups):
        return None
    shape, name = (outputs, inputs), f"{parts['qweight'].removesuffix('qweight')}weight"
    return Found(name, "AWQ, 4 bits", shape, roles, {"groups": groups}, overhead=2 * panel_bytes(shape, inputs, _WORD))


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader:
    """Return a reader of an AWQ matrix."""
    import torch

    (outputs, inputs), groups = tensor.shape, tensor.settings["groups"]

    def columns(role: str, rows: int, first: int, last: int) -> Tensor:
        words = read_columns(parts[role], 0, rows, outputs // _WORD, first // _WORD, last // _WORD)
        return numbers(words, 4)[..., list(_PLACES)].view(groups, rows // groups, last - first)

    def decode(first: int, last: int) -> Tensor:
        scales = read_columns(parts["scales"], 0, groups, outputs, first, last).to(torch.float32)
        codes = columns("values", inputs, first, last).sub_(columns("zeros", groups, first, last))
        return codes.mul_(scales[:, None]).view(inputs, last - first).T

    return PanelReader(tensor.shape, outputs, inputs, _WORD, decode)


def _refusal(settings: Settings) -> str | None:
    """Return why the settings are not supported, or None."""
    options = settings.options
    bits = options.get("bits") or options.get("w_bit") or 4
    for key in ("version", "checkpoint_format", "format"):
        version = str(options.get(key) or "gemm").lower()
        if version not in ("gemm", "awq"):
            return f"{key} {version[:80]!r}"
    return None if bits == 4 else f"{bits} bits"


FORMAT = Format("AWQ", frozenset({_METHOD}), find, decoder, _refusal)
