"""A checkpoint of quantised tensors, seen as the float tensors that they represent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.fetching import fetched_path, missing_bytes
from weightspace.checkpoints.metadata import (
    CheckpointMetadata,
    QuantisedTensor,
    StoredPart,
    TensorInfo,
    dequantising_note,
)
from weightspace.checkpoints.quantisation import (
    Quantised,
    check_not_quantised,
    find_quantised,
    find_quantised_folder,
)
from weightspace.checkpoints.quantised.comfyui import check_marks, is_described
from weightspace.checkpoints.quantised.companions import is_activation_scale
from weightspace.checkpoints.quantised.format import Format, Found, Settings, Stored
from weightspace.checkpoints.quantised.formats import FORMATS
from weightspace.checkpoints.quantised.settings import computing_dtype, read_config, read_settings
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from weightspace.checkpoints.load_save import StrPath
    from weightspace.checkpoints.state_dict import StateDict

#: Networks with transposed matrices (Conv1D), and their modules; quantised, they are stored like linear layers'.
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "ctrl", "clvp"})
_TRANSPOSED_MODULES = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})

#: Last parts of the names of a matrix's scales, which are refused beside a plain matrix.
_SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")

#: Maximum number of bytes of a tensor that planning reads, such as a JSON description.
_SMALL = 2**16


def dequantised(contents: CheckpointMetadata) -> CheckpointMetadata:
    """Return the metadata of a checkpoint with one float32 tensor for each quantised one, in place of its parts.

    Tensors in formats that aren't read stay as they are.

    Raises:
        CheckpointError: the configuration describes a variant of a format that isn't read.
    """
    settings = _settings(contents)
    stored = Stored(contents.tensors, settings, lambda name: _content(contents, name))
    check_marks(contents, stored)
    found = {own.name: (form, own) for form in FORMATS for own in form.find(stored)}
    found = _without_nested(contents, found)
    if not found:
        return contents
    _check(contents, settings, dict.fromkeys(form for form, _ in found.values()))
    _check_orientation(contents, [own.name for form, own in found.values() if not form.title.startswith("FP8")])
    left = [name for name, info in contents.tensors.items() if is_activation_scale(name) and info.numel == 1]
    left += [name for _, own in found.values() for name in own.left_out]
    gone = {*left, *(name for _, own in found.values() for name in own.parts.values())}
    if any((name in gone) != (owner in gone) for name, owner in contents.tied.items()):
        return contents  # refused: a part is shared with a tensor that isn't quantised
    dtype = _dtype(contents, gone)
    quantised = {name: _tensor(contents, form, own, dtype) for name, (form, own) in found.items()}
    first = {next(iter(own.parts.values())): name for name, (_, own) in found.items()}
    tensors: dict[str, TensorInfo] = {}
    for name, info in contents.tensors.items():
        if name in first:
            tensors[first[name]] = TensorInfo("F32", quantised[first[name]].shape)
        elif name not in gone:
            tensors[name] = info
    tied = {name: owner for name, owner in contents.tied.items() if name in tensors and owner in tensors}
    tied = {name: owner for name, owner in tied.items() if _are_same(quantised.get(name), quantised.get(owner))}
    places = {name: place for name, place in contents.places.items() if name not in gone}
    notes = (*contents.notes, *_notes(contents, quantised.values(), dict.fromkeys(left)))
    return replace(contents, tensors=tensors, tied=tied, places=places, quantised=quantised, notes=notes)


def _settings(contents: CheckpointMetadata) -> Settings:
    """Return the description of a checkpoint's quantisation; for a file with narrow dtypes, that of its folder."""
    path = contents.path
    if path.is_dir():
        return read_settings(path)
    is_narrow = any(info.dtype.startswith(("F8", "U8", "I8", "I32")) for info in contents.tensors.values())
    return read_settings(path.parent) if is_narrow else Settings()


def _check_orientation(contents: CheckpointMetadata, names: Iterable[str]) -> None:
    """Refuse quantised matrices of networks whose matrices are transposed.

    Raises:
        CheckpointError: a matrix may have to be transposed.
    """
    named = next((name for name in names if {*name.split(".")[-2:-1]} <= _TRANSPOSED_MODULES and "." in name), None)
    if named is None:
        return
    path = contents.path
    kind = read_config(path if path.is_dir() else path.parent).get("model_type")
    if kind is None or kind in _TRANSPOSED:
        raise CheckpointError(
            f"{path} is quantised, and {named!r} is the matrix of a Conv1D layer, which is transposed when it is "
            "quantised; this is not read. Use the model that it was quantised from, or dequantise it first."
        )


def _content(contents: CheckpointMetadata, name: str) -> bytes | None:
    """Return the bytes of a small tensor, or None if it isn't stored contiguously in a local file."""
    place, size = contents.places.get(name), contents.tensors[name].nbytes
    if place is None or place.strides is not None or size > _SMALL or missing_bytes((place.file,)):
        return None
    with one_line_errors(place.file, "read"), open(place.file, "rb") as file:
        file.seek(place.start)
        return file.read(size)


def _are_same(tensor: QuantisedTensor | None, other: QuantisedTensor | None) -> bool:
    """Return whether two tensors that share memory are both plain, or are stored in the same parts."""
    if tensor is None or other is None:
        return tensor is other
    places = [{role: part.place for role, part in one.parts.items()} for one in (tensor, other)]
    return places[0] == places[1] and None not in places[0].values()


def _without_nested(
    contents: CheckpointMetadata, found: Mapping[str, tuple[Format, Found]]
) -> dict[str, tuple[Format, Found]]:
    """Return the tensors except those whose modules have submodules, such as quantisers with scales of their own.

    A linear layer has none, so it is unknown how they affect its weight.
    """
    gone = {name for _, own in found.values() for name in (*own.parts.values(), *own.left_out)}
    outer = {name.rpartition(".")[0].rpartition(".")[0] for name in contents.tensors if name not in gone} - {""}
    nested = {name for name in found if name.endswith(".weight") and name.rpartition(".")[0] in outer}
    return {name: own for name, own in found.items() if name not in nested}


def _check(contents: CheckpointMetadata, settings: Settings, formats: Iterable[Format]) -> None:
    """Check that the settings fit the formats of the tensors.

    Raises:
        CheckpointError: they don't, or they aren't supported.
    """
    advice = "Use the model that it was quantised from, or dequantise it first."
    for form in formats:
        if settings.method not in form.methods:
            raise CheckpointError(
                f"{contents.path} is quantised: its tensors are stored as {form.title}, but its quant_method is "
                f"{settings.method[:80]!r} ({settings.evidence}). {advice}"
            )
        reason = form.refusal(settings)
        if reason is not None:
            raise CheckpointError(
                f"{contents.path} is quantised: {form.title} with {reason} ({settings.evidence}), which is not read. "
                f"{advice}"
            )


def _tensor(contents: CheckpointMetadata, form: Format, found: Found, dtype: str) -> QuantisedTensor:
    """Return a quantised tensor with the locations of its parts."""
    parts = {
        role: StoredPart(contents.renamed.get(name, name), contents.tensors[name], contents.places.get(name))
        for role, name in found.parts.items()
    }
    return QuantisedTensor(
        found.format, found.shape, parts, form.decoder, found.settings, found.left_out, dtype, found.overhead
    )


def _dtype(contents: CheckpointMetadata, gone: set[str]) -> str:
    """Return the dtype that the network computes in: the configuration's, else that of most other elements, or F32."""
    known = computing_dtype(contents.path) if contents.path.is_dir() else None
    if known is not None:
        return known
    sizes: Counter[str] = Counter()
    for name, info in contents.tensors.items():
        if name not in gone and info.dtype in ("F32", "F16", "BF16"):
            sizes[info.dtype] += info.numel
    return max(sizes, key=lambda dtype: sizes[dtype], default="F32")


def _notes(contents: CheckpointMetadata, tensors: Iterable[QuantisedTensor], left: Iterable[str]) -> list[str]:
    """Return lines on what is dequantised, and on the activation scales that are left out."""
    lines = dequantising_note(contents.path, tensors)
    scales = [name for name in left if is_activation_scale(name)]
    if scales:
        kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in scales))
        lines.append(f"{contents.path}: left out of the merge: {_tensors(len(scales))} beside the weights ({kinds}).")
    return lines


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def load_dequantised(path: StrPath, *, key: str | None = None) -> StateDict:
    """Read the tensors of a checkpoint into memory; quantised ones become float32, as a merge reads them.

    Args:
        path: as for ``load_checkpoint``.
        key: as for ``load_checkpoint``.

    Returns:
        Name -> tensor; scales and other parts of quantised tensors are not listed.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or is quantised in a way that isn't read.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.checkpoints import load_dequantised
        >>> weight = torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn)
        >>> ws.save_checkpoint({"q.weight": weight, "q.weight_scale": torch.tensor(0.5)}, "model.safetensors")
        >>> load_dequantised("model.safetensors")
        {'q.weight': tensor([[ 0.5000, -1.0000]])}
    """
    from weightspace.checkpoints.reader import CheckpointReader

    contents = dequantised(read_contents(fetched_path(path), key=key))
    check_dequantised(str(path), contents)
    return CheckpointReader(contents).state()


def check_dequantised(label: str, contents: CheckpointMetadata) -> None:
    """Check that a checkpoint has no quantised tensors besides those that are dequantised on reading.

    Args:
        label: its name in errors.
        contents: its metadata, as ``dequantised`` returns it.

    Raises:
        CheckpointError: it has some (the message names the format), or a configuration is damaged.
    """
    plain = {name: info for name, info in contents.tensors.items() if name not in contents.quantised}
    check_not_quantised(label, _without_scales(contents, plain))
    quantised = find_quantised({name: (info.dtype, len(info.shape)) for name, info in plain.items()})
    if quantised is not None:
        settings = _settings(contents)
        _check(contents, settings, [form for form in FORMATS if settings.method and settings.method in form.methods])
    if quantised is None and contents.path.is_dir() and not contents.quantised:
        quantised = find_quantised_folder(contents.path, read_config(contents.path))
    check_not_quantised(label, quantised)


def _without_scales(contents: CheckpointMetadata, plain: Mapping[str, TensorInfo]) -> Quantised | None:
    """Return a plain tensor that stands beside quantised ones and must be a part of one itself, or None.

    Args:
        contents: the metadata.
        plain: the tensors that aren't dequantised.
    """
    settings = _settings(contents)
    if not (contents.quantised or settings.method):
        return None
    for name, info in plain.items():
        module, _, last = name.rpartition(".")
        if last in _SCALES and f"{module}.weight" in plain:
            if (matrix := plain[f"{module}.weight"]).dtype.startswith("F8"):
                return Quantised(_misfit(matrix, info, settings), name)
            return Quantised("a scale beside a matrix that is not in FP8", name)
    for name, info in plain.items():
        if info.dtype.startswith("F8") and len(info.shape) > 1 and not is_described(contents):
            return Quantised("FP8 without its scale", name)
    return None


def _misfit(matrix: TensorInfo, scales: TensorInfo, settings: Settings) -> str:
    """Return why an FP8 matrix is not read, with what was found."""
    sizes = settings.options.get("weight_block_size")
    block = f"weight_block_size {str(sizes)[:40]} of the {settings.evidence}" if sizes else "no weight_block_size"
    return (
        f"FP8 whose scales don't fit it, or with zero points: scales of shape {tuple(scales.shape)} in {scales.dtype} "
        f"for a matrix of shape {tuple(matrix.shape)}, and {block}"
    )
