"""Adapters of Flux under the names of the original code, as kohya has them, and under those of diffusers.

A change of a fused matrix is split by rows: each part has the same ``A``, and its own rows of ``B``. Changes of the
parts are stacked again by rows. Both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.formats.flux import diffusers_parts, fits_flux, is_flux_original, original_part
from weightspace.lora.formats.module import DENOISER, Module, canonical
from weightspace.lora.tied_weights import Shapes

#: Blocks that only Flux's transformer in diffusers has, unlike that of Stable Diffusion 3, and the original matrix.
_SINGLE, _FUSED = "single_transformer_blocks", "img_attn.qkv."


def flux_as_written(adapters: Sequence[Adapter], written: str) -> list[Adapter]:
    """Return adapters of Flux under the names of a format; others as they are.

    Relatives of Flux, such as HunyuanVideo and Chroma, have blocks of the same names beside modules without a
    counterpart. Adapters whose modules can't all be converted keep their names, if these are of one kind, and of the
    format to write.

    Args:
        adapters: adapters that are merged.
        written: the format to write: the original names for kohya, else those of diffusers.

    Raises:
        CheckpointError: a module of an adapter has no counterpart, and the names aren't already those of the format.
    """
    is_original = any(map(_is_original, adapters))
    if not is_original and not (written == "kohya" and any(map(_is_split, adapters))):
        return list(adapters)
    convert = in_original_names if written == "kohya" else in_diffusers_names
    try:
        return [convert(one) if one.modules else one for one in adapters]
    except CheckpointError:
        if is_original and any(map(_has_diffusers_blocks, adapters)):
            raise
        if not (is_original and written == "kohya") and any(one.format != written for one in adapters):
            raise
        return list(adapters)


def flux_as_in_model(adapter: Adapter, shapes: Shapes) -> Adapter:
    """Return an adapter of Flux under the names that a model of Flux has; others as they are.

    Raises:
        CheckpointError: a module of an adapter of Flux has no counterpart.
    """
    if _is_original(adapter) and any(_SINGLE in name for name in shapes):
        return in_diffusers_names(adapter)
    if not _is_original(adapter) and any(_FUSED in name for name in shapes) and _has_diffusers_blocks(adapter):
        return in_original_names(adapter)
    return adapter


def in_diffusers_names(adapter: Adapter) -> Adapter:
    """Return an adapter of the original Flux under diffusers' names.

    Raises:
        CheckpointError: a module has no counterpart.
    """
    factors: dict[str, Factors] = {}
    modules: dict[str, Module] = {}
    for target, own in adapter.factors.items():
        module, parameter = adapter.modules[target], target.rpartition(".")[2]
        flat = canonical(module.path)
        if module.component != DENOISER or original_part(flat) is not None:
            factors[target], modules[target] = own, module
            continue
        parts = diffusers_parts(flat)
        fits = parts is not None and fits_flux(flat, own.shape) and own.shape[0] % sum(parts.sizes) == 0
        if parts is None or not fits or (len(parts.names) > 1 and own.axis is not None):
            raise _no_counterpart(adapter, target, own, "diffusers'")
        starts = _starts(parts.sizes, own.shape[0])
        for name, first, last in zip(parts.names, starts, starts[1:], strict=False):
            part = own if len(parts.names) == 1 else _rows(own, first, last)
            new = f"transformer.{name}.{parameter}"
            factors[new], modules[new] = part, Module(DENOISER, name, "transformer.")
    return replace(adapter, factors=factors, modules=modules)


def in_original_names(adapter: Adapter) -> Adapter:
    """Return an adapter of Flux as diffusers has it under the original names.

    Raises:
        CheckpointError: a module has no counterpart.
    """
    factors: dict[str, Factors] = {}
    modules: dict[str, Module] = {}
    for target, own in adapter.factors.items():
        module, parameter = adapter.modules[target], target.rpartition(".")[2]
        flat = canonical(module.path)
        if module.component != DENOISER or is_flux_original(flat) or diffusers_parts(flat) is not None:
            factors[target], modules[target] = own, module
            continue
        part = original_part(flat)
        unit = 0 if part is None else own.shape[0] // part.sizes[part.place]
        if part is None or own.shape[0] != unit * part.sizes[part.place]:
            raise _no_counterpart(adapter, target, own, "the original")
        path = part.name.replace(".", "_")
        new = f"lora_unet_{path}.{parameter}"
        shape = (unit * sum(part.sizes), *own.shape[1:])
        known = factors.get(new)
        if not fits_flux(path, shape) or (known or own).shape[1:] != own.shape[1:]:
            raise _no_counterpart(adapter, target, own, "the original")
        if len(part.sizes) > 1:
            if own.axis is not None or (known is not None and known.shape != shape):
                raise _no_counterpart(adapter, target, own, "the original")
            own = _stacked(known, own, _starts(part.sizes, shape[0])[part.place], shape)
        factors[new], modules[new] = own, Module(DENOISER, path, "lora_unet_")
    return replace(adapter, factors=factors, modules=modules)


def _rows(whole: Factors, first: int, last: int) -> Factors:
    """Return the change of some rows."""
    shape = (last - first, *whole.shape[1:])
    return Factors(whole.names, whole.rank, 1.0, False, False, shape, product="rows", stack={first: whole})


def _stacked(before: Factors | None, own: Factors, start: int, shape: tuple[int, ...]) -> Factors:
    """Return the change of a fused matrix with that of one more part."""
    stack = {**({} if before is None else before.stack), start: own}
    names = {f"{first}:{role}": name for first, each in stack.items() for role, name in each.names.items()}
    rank = sum(each.rank for each in stack.values())
    return Factors(names, rank, 1.0, False, False, shape, product="stacked", stack=stack)


def _starts(sizes: Sequence[int], rows: int) -> list[int]:
    """Return the first rows of parts of relative sizes, and the end."""
    return [size * rows // sum(sizes) for size in accumulate(sizes, initial=0)]


def _flat_names(adapter: Adapter) -> list[str]:
    """Return the names of the denoiser's modules, flattened."""
    return [canonical(module.path) for module in adapter.modules.values() if module.component == DENOISER]


def _is_original(adapter: Adapter) -> bool:
    return any(map(is_flux_original, _flat_names(adapter)))


def _is_split(adapter: Adapter) -> bool:
    return any(name.startswith(_SINGLE) for name in _flat_names(adapter))


def _has_diffusers_blocks(adapter: Adapter) -> bool:
    return any(name.startswith(("transformer_blocks_", _SINGLE)) for name in _flat_names(adapter))


def _no_counterpart(adapter: Adapter, target: str, own: Factors, names: str) -> CheckpointError:
    """Return the error for a module that can't be converted."""
    return CheckpointError(
        f"{adapter.path}: {target!r} of shape {own.shape}{' with DoRA' if own.axis is not None else ''} can't be "
        f"converted to {names} names: it is no matrix of Flux's blocks and embeddings that both have. Write the "
        "format of the input, or apply the adapter to a model that has its modules."
    )
