"""GPTQ: 4- or 8-bit integers packed along the inputs, with scales and zero points per group of inputs.

``qweight`` has shape ``(inputs · bits / 32, outputs)``, ``qzeros`` ``(groups, outputs · bits / 32)``, ``scales``
``(groups, outputs)``, and ``g_idx``, the group of each input, ``(inputs,)``. Element ``(o, i)`` of the matrix is
``scales[g, o] · (q[i, o] − z[g, o])`` with ``g = g_idx[i]``, exact in float32. Files store ``z − 1``, except in the
formats ``gptq_v2`` and ``gptq_p``. gptqmodel subtracts the ones from whole words, so that a zero point of 0 borrows
from the next one; other programs store it differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo
from weightspace.checkpoints.quantised.companions import is_understood
from weightspace.checkpoints.quantised.format import Format, Found, Settings, Stored
from weightspace.checkpoints.quantised.integers import BITS, SCALES, is_grouped_by, numbers
from weightspace.checkpoints.quantised.panels import PanelReader, panel_bytes, read_columns
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

_METHOD = "gptq"

#: Role -> last part of the tensor's name; ``groups`` may be missing.
_PARTS = {"values": "qweight", "zeros": "qzeros", "scales": "scales", "groups": "g_idx"}

#: Format -> whether its zero points are stored minus one.
_FORMATS = {"gptq": True, "gptq_v2": False, "gptq_p": False}


def find(stored: Stored) -> list[Found]:
    """Return the matrices of a model whose configuration names GPTQ."""
    if stored.settings.method != _METHOD:
        return []
    found = (_matrix(parts, stored.tensors, stored.settings) for parts in stored.modules.values() if "qweight" in parts)
    return [own for own in found if own is not None]


def _matrix(parts: Mapping[str, str], tensors: Mapping[str, TensorInfo], settings: Settings) -> Found | None:
    """Return the matrix of a module."""
    if not {"qweight", "qzeros", "scales"} <= parts.keys() or not is_understood(parts, set(_PARTS.values())):
        return None
    roles = {role: parts[last] for role, last in _PARTS.items() if last in parts}
    infos = {role: tensors[name] for role, name in roles.items()}
    if [len(info.shape) for info in infos.values()] != [2, 2, 2, 1][: len(infos)] or not infos["values"].numel:
        return None
    groups, outputs = infos["scales"].shape
    bits = 32 * infos["zeros"].shape[1] // max(1, outputs)
    if bits not in BITS or infos["scales"].dtype not in SCALES or "weight" in parts:
        return None
    inputs = infos["values"].shape[0] * 32 // bits
    if not _is_declared(settings, bits, inputs, groups):
        return None
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "values": ("I32", (inputs * bits // 32, outputs)),
        "zeros": ("I32", (groups, outputs * bits // 32)),
        "scales": (infos["scales"].dtype, (groups, outputs)),
    }
    if "groups" in roles:
        expected["groups"] = "I32", (inputs,)
    elif inputs % groups or settings.options.get("desc_act"):
        return None
    if {role: (info.dtype, info.shape) for role, info in infos.items()} != expected or outputs * bits % 32:
        return None
    shape, step = (outputs, inputs), 32 // bits
    own = {"bits": bits, "groups": groups, "less_one": _FORMATS.get(_format(settings), True)}
    own["borrows"] = _is_by_gptqmodel(settings)
    name = f"{parts['qweight'].removesuffix('qweight')}weight"
    return Found(name, f"GPTQ, {bits} bits", shape, roles, own, overhead=2 * panel_bytes(shape, inputs, step))


def _is_declared(settings: Settings, bits: int, inputs: int, groups: int) -> bool:
    """Return whether bits and groups match the settings; always if these differ between modules."""
    if settings.options.get("dynamic"):
        return True
    size = settings.options.get("group_size")
    return settings.options.get("bits") in (None, bits) and is_grouped_by(size, inputs, groups)


def _format(settings: Settings) -> str:
    return str(settings.options.get("checkpoint_format") or settings.options.get("format") or "gptq")


def _is_by_gptqmodel(settings: Settings) -> bool:
    """Return whether the settings name gptqmodel among the programs that wrote the checkpoint."""
    meta = settings.options.get("meta")
    programs = meta.get("quantizer") if isinstance(meta, Mapping) else None
    listed = programs if isinstance(programs, list) else [programs]
    return any(str(program).partition(":")[0].lower() == "gptqmodel" for program in listed)


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader:
    """Return a reader of a GPTQ matrix."""
    import torch

    (outputs, inputs), bits, groups = tensor.shape, tensor.settings["bits"], tensor.settings["groups"]
    per_word = 32 // bits

    def decode(first: int, last: int) -> Tensor:
        count = last - first
        packed = read_columns(parts["values"], 0, inputs // per_word, outputs, first, last)
        codes = numbers(packed, bits).permute(1, 0, 2).reshape(count, inputs)
        words = read_columns(parts["zeros"], 0, groups, outputs // per_word, first // per_word, last // per_word)
        zeros = _plus_one(words, tensor.settings) if tensor.settings["less_one"] else numbers(words, bits)
        zeros = zeros.view(groups, count)
        scales = read_columns(parts["scales"], 0, groups, outputs, first, last).to(torch.float32)
        order = _order(parts.get("groups"), inputs, groups)
        return codes.sub_(zeros.T[:, order]).mul_(scales.T[:, order])

    return PanelReader(tensor.shape, outputs, inputs, per_word, decode)


def _plus_one(words: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Return the integers in words plus one, as float32.

    Raises:
        CheckpointError: it is unknown whether one was subtracted from each integer or from whole words.
    """
    bits = settings["bits"]
    ones = sum(1 << place for place in range(0, 32, bits))
    found = numbers(words + ones, bits)
    if not settings["borrows"] and not found.equal((numbers(words, bits) + 1).remainder_(2**bits)):
        raise CheckpointError(
            "A GPTQ matrix has zero points of 0, stored minus one, which programs store differently, and the "
            "configuration does not say that gptqmodel wrote it. Use the model that it was quantised from, or "
            "quantise that again in the format gptq_v2."
        )
    return found


def _order(stored: RangeReader | None, inputs: int, groups: int) -> Tensor:
    """Return the group of each input.

    Raises:
        CheckpointError: the file names a group that doesn't exist.
    """
    import torch

    if stored is None:
        return torch.arange(inputs) // (inputs // groups)
    order = stored.read(0, inputs).long()
    beyond = order[(order < 0) | (order >= groups)]
    if len(beyond):
        raise CheckpointError(
            f"g_idx of a GPTQ matrix names group {int(beyond[0])}; expected 0 to {groups - 1}. The file is damaged."
        )
    return order


def _refusal(settings: Settings) -> str | None:
    """Return why the settings are not supported, or None."""
    if _format(settings) not in _FORMATS:
        return f"checkpoint_format {_format(settings)[:80]!r}"
    return "rotation" if settings.options.get("rotation") else None


FORMAT = Format("GPTQ", frozenset({_METHOD}), find, decoder, _refusal)
