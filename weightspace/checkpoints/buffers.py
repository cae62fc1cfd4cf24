"""Tensors that are not averaged like weights, recognised by their names and shapes.

Names suffice to plan a merge from headers; nothing here needs torch. Two parametrizations store tensors that depend on
others: weight norm stores ``w = g v/‖v‖`` as a magnitude ``g`` and a direction ``v``; spectral norm stores the leading
singular vectors ``u, v`` beside the weight, which it divides by ``σ = uᵀWv``. Pruning stores ``w = w_orig m`` with a
mask ``m``, which must be the same in all merged models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from weightspace.errors import WeightspaceError

Shape = Sequence[int]

#: Counters of training steps: BatchNorm, moving averages (also of diffusion models), optimisers, trainers.
_COUNTER = re.compile(
    r"(?:.*_)?(?:num_batches_tracked|num_updates|n_averaged|num_averaged|update_count|step_count|num_iterations)"
)

#: Names that are counters only if scalar; lists of steps have the same names.
_SINGLE_COUNTER = re.compile(
    r"(?:.*_)?(?:(?:steps?|iters?|iterations?|epochs?|updates?|batch(?:es)?|calls?)(?:_(?:num|count|done|seen|trained))?"
    r"|count(?:er)?s?|cnt|niter|n_iter|(?:samples|tokens|examples|images|batches)_seen)"
)

#: Buffers of indices into other tensors, for which averages are meaningless.
_INDEX = re.compile(
    r"(?:.*_)?(?:position_ids?|token_type_ids|rel(?:ative)?_pos(?:ition)?_ind(?:ex|ices)|relative_position_bucket)"
)

#: Masks, stored as bools, integers or floats.
_MASK = re.compile(r"(?:attn|attention|causal)?_?mask|tril")

#: Buffers that a network computes when built or counts from zero, and that only some files hold, depending on the
#: release of transformers or timm; torch has counted batches since 0.4.1.
_COMPUTED = re.compile(
    r"inv_freq|(?:cos|sin)_cached|masked_bias|position_ids|token_type_ids|relative_position_index"
    r"|relative_coords_table|attn_mask|num_batches_tracked"
)

#: Running variances of activations, and standard deviations.
_VARIANCE = re.compile(r"(?:running|moving|pop(?:ulation)?|ema)_(?:i?var(?:iance)?|std|(?:mean_)?sq(?:uares?)?)")

#: The same in modules that normalise observations, with one-word names.
_NORMALISER_VARIANCE = re.compile(r"(?:.*[./])?\w*(?:rms|mean_std|normali[sz]er)[./]_?(?:var(?:iance)?|std)")

#: The base point of an orthogonal parametrization; fixed during training.
_ORTHOGONAL_BASE = re.compile(r"(?:.*\.)?parametrizations\.[^.]+\.\d+\.base")

#: A tensor name of ``torch.nn.utils.parametrizations``: module, parameter, role.
_PARAMETRIZED = re.compile(r"((?:.*\.)?)parametrizations\.([^.]+)\.(.+)")


def is_counter(name: str, shape: Shape) -> bool:
    """Return whether a tensor counts training steps; a merge keeps the largest count."""
    last = _last(name)
    single = math.prod(shape) == 1 and _SINGLE_COUNTER.fullmatch(last) is not None
    return single or _COUNTER.fullmatch(last) is not None


def is_variance(name: str) -> bool:
    """Return whether a tensor is a running variance or standard deviation, which is never negative."""
    return _VARIANCE.fullmatch(_last(name)) is not None or _NORMALISER_VARIANCE.fullmatch(name) is not None


def is_fixed(name: str) -> bool:
    """Return whether a tensor, of floats or integers, must be the same in all merged models."""
    return _INDEX.fullmatch(_last(name)) is not None or _ORTHOGONAL_BASE.fullmatch(name) is not None


def holds_whole_numbers(name: str, shape: Shape) -> bool:
    """Return whether a tensor may be float in one model and integer in another: counters, indices, masks."""
    last = _last(name)
    return (
        _is_causal(name, shape)
        or is_counter(name, shape)
        or _INDEX.fullmatch(last) is not None
        or _MASK.fullmatch(last) is not None
    )


def is_computed(name: str, shape: Shape) -> bool:
    """Return whether a tensor is a table or mask that the network computes itself, stored in the file or not."""
    return _COMPUTED.fullmatch(_last(name)) is not None or _is_causal(name, shape)


def _is_causal(name: str, shape: Shape) -> bool:
    """Return whether a tensor is the causal mask of GPT-2, which is named like a bias."""
    return _last(name) == "bias" and len(shape) == 4 and shape[0] == shape[1] == 1 and shape[2] == shape[3]


@dataclass(frozen=True)
class WeightNorm:
    """A weight stored as magnitude and direction, ``w = g v/‖v‖``, with one norm per element of ``g``."""

    magnitude: str
    direction: str

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of tensors that don't represent the weight."""
        return (self.magnitude,)


@dataclass(frozen=True)
class SpectralNorm:
    """The leading singular vectors of a weight.

    Attributes:
        matrix: name of the weight, or of its direction if weight norm is applied first.
        left: name of ``u``.
        right: name of ``v``, or None if only ``u`` is stored.
        value: name of ``σ``, or None.
    """

    matrix: str
    left: str
    right: str | None = None
    value: str | None = None

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the tensors that are computed from the weight."""
        return tuple(name for name in (self.left, self.right, self.value) if name is not None)


@dataclass(frozen=True)
class Parametrizations:
    """The parametrized weights of a checkpoint.

    Attributes:
        weight_norms: name of the direction -> weight norm.
        spectral_norms: name of the matrix -> its spectral norms.
        masks: name of a pruned tensor (``0.weight_orig``) -> name of its mask.
    """

    weight_norms: Mapping[str, WeightNorm] = field(default_factory=dict)
    spectral_norms: Mapping[str, tuple[SpectralNorm, ...]] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, WeightNorm | SpectralNorm]]:
        """Yield each norm with the name of the tensor that represents the weight."""
        yield from self.weight_norms.items()
        yield from ((matrix, norm) for matrix, norms in self.spectral_norms.items() for norm in norms)

    @property
    def functions(self) -> set[str]:
        """The names of all tensors that are computed from a merged weight or are part of it."""
        return {name for _, norm in self for name in norm.functions} | set(self.masks.values())


def find_parametrizations(shapes: Mapping[str, Shape]) -> Parametrizations:
    """Return the weight norms, spectral norms and pruned tensors of a checkpoint.

    Supports ``torch.nn.utils.parametrizations`` (``parametrizations.weight.original0``, ``.0._u``), its predecessors
    (``weight_g``, ``weight_v``; ``weight_orig``, ``weight_u``), two spellings of spectral norm in generative
    adversarial networks (``weight_bar``; ``u0`` and ``sv0``), and ``torch.nn.utils.prune`` (``weight_orig``,
    ``weight_mask``).

    Args:
        shapes: name -> shape, for all tensors.

    Raises:
        WeightspaceError: a spectral norm is applied to another parametrization, so that its weight is unknown, or part
            of a parametrized weight is pruned.
    """
    masks = {original: mask for original in shapes if (mask := _pruning_mask(original, shapes)) is not None}
    pruned = {original.removesuffix("_orig"): shapes[original] for original in masks}
    shapes = {**shapes, **pruned}
    weight_norms: dict[str, WeightNorm] = {}
    spectral_norms: dict[str, list[SpectralNorm]] = {}
    for name in shapes:
        weight_norm = _weight_norm(name, shapes)
        if weight_norm is not None:
            weight_norms[weight_norm.direction] = weight_norm
    for name in shapes:
        spectral_norm = _spectral_norm(name, shapes, weight_norms)
        if spectral_norm is not None:
            spectral_norms.setdefault(spectral_norm.matrix, []).append(spectral_norm)
    found = Parametrizations(weight_norms, {matrix: tuple(norms) for matrix, norms in spectral_norms.items()}, masks)
    _check_unpruned(found, pruned)
    return found


def mask_of(original: str) -> str:
    """Return the name of a pruned tensor's mask: ``0.weight_mask`` for ``0.weight_orig``."""
    return f"{original.removesuffix('_orig')}_mask"


def is_pruning_mask(name: str, names: Container[str]) -> bool:
    """Return whether a tensor is the mask of a pruned tensor among these names."""
    return name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in names


def is_pruned_in_one(name: str, first: Container[str], second: Container[str]) -> bool:
    """Return whether a tensor missing from one of two models is due to pruning in only one of them."""
    plain = re.sub(r"_(orig|mask)$", "", name)
    parts = (f"{plain}_orig", f"{plain}_mask")
    return any(
        all(part in pruned for part in parts) and plain in other and parts[0] not in other
        for pruned, other in ((first, second), (second, first))
    )


def is_parametrized_part(name: str) -> bool:
    """Return whether ``torch.nn.utils.parametrize`` computes a weight from a tensor of this name."""
    return _PARAMETRIZED.fullmatch(name) is not None


def effective_name(name: str) -> str:
    """Return the name of a parametrized weight in its module: ``0.weight`` for ``0.weight_v``."""
    match = _PARAMETRIZED.fullmatch(name)
    if match is not None:
        return f"{match[1]}{match[2]}"
    return re.sub(r"_(g|v|orig|bar)$", "", name)


def check_ties(parametrizations: Parametrizations, tied: Mapping[str, str]) -> None:
    """Check that of each parametrized weight, all tensors, none, or only the matrix share memory with others.

    Args:
        parametrizations: parametrizations of a model.
        tied: name -> the name that it shares memory with.

    Raises:
        WeightspaceError: only some of the tensors share memory.
    """
    for name, norm in parametrizations:
        parts = [part for part in norm.functions if part in tied]
        matrix_alone = name in tied and not parts and isinstance(norm, SpectralNorm)
        if not matrix_alone and len({part in tied for part in (name, *norm.functions)}) > 1:
            alone = name if name in tied else parts[0]
            raise WeightspaceError(
                f"{alone!r} shares its memory with {tied[alone]!r}, but the other tensors of the weight "
                f"{effective_name(name)!r} do not. Expected weight norm or spectral norm removed in every model first."
            )


def check_evidence(model: str, names: Iterable[str], parametrizations: Parametrizations) -> None:
    """Check that data statistics refer to whole weights, not to parts of parametrizations.

    Args:
        model: name of their model for errors.
        names: names of the tensors with statistics.
        parametrizations: parametrizations of the models.

    Raises:
        WeightspaceError: they refer to the magnitude or direction of a weight norm.
    """
    parts = {part for name, norm in parametrizations.weight_norms.items() for part in (name, norm.magnitude)}
    for name in names:
        if name in parts:
            raise WeightspaceError(
                f"The evidence of {model} refers to {name!r}, a part of the weight {effective_name(name)!r} under "
                "weight norm, but only whole weights can be merged by it. Expected weight norm removed in every model "
                "before the evidence is collected."
            )


def _weight_norm(name: str, shapes: Mapping[str, Shape]) -> WeightNorm | None:
    """Return the weight norm whose magnitude has this name, if any."""
    if name.endswith(".original0") and _PARAMETRIZED.fullmatch(name):
        prefix = name.removesuffix("0")
        other_kind = f"{prefix}2" in shapes
        norm, strict = WeightNorm(name, f"{prefix}1"), False
    elif name.endswith("_g"):
        stem = name.removesuffix("_g")
        other_kind = f"{stem}_orig" in shapes
        # Other pairs of vectors have such names, too (RWKV's time_maa_g and time_maa_v).
        norm, strict = WeightNorm(name, f"{stem}_v"), re.search("weight|bias", _last(stem)) is None
    else:
        return None
    if other_kind or norm.direction not in shapes:
        return None
    return norm if _is_magnitude(shapes[name], shapes[norm.direction], strict=strict) else None


def _is_magnitude(magnitude: Shape, direction: Shape, *, strict: bool) -> bool:
    """Return whether a shape is that of norms over all axes of a direction, or over all but one.

    There must be strictly fewer norms than elements.
    """
    if strict and math.prod(magnitude) == math.prod(direction):
        return False
    if not magnitude:
        return len(direction) > 0
    kept = [size for size in magnitude if size != 1]
    fits = len(magnitude) == len(direction) and all(a in (1, b) for a, b in zip(magnitude, direction, strict=True))
    return fits and len(kept) <= 1


def _spectral_norm(
    name: str, shapes: Mapping[str, Shape], weight_norms: Mapping[str, WeightNorm]
) -> SpectralNorm | None:
    """Return the spectral norm whose left vector has this name, if any."""
    if name.endswith("._u") and (match := _PARAMETRIZED.fullmatch(name)):
        norm = SpectralNorm(_matrix_below(name, match, shapes, weight_norms), name, f"{name[:-1]}v")
    elif name.endswith("_u"):
        stem = name.removesuffix("_u")
        matrix = next((f"{stem}_{end}" for end in ("orig", "bar") if f"{stem}_{end}" in shapes), "")
        norm = SpectralNorm(matrix, name, f"{stem}_v" if f"{stem}_v" in shapes else None)
    elif _last(name) == "u0" and f"{name[:-2]}sv0" in shapes:
        norm = SpectralNorm(f"{name[:-2]}weight", name, None, f"{name[:-2]}sv0")
    else:
        return None
    if norm.matrix not in shapes or not all(part in shapes for part in norm.functions):
        return None
    sizes, rows = shapes[norm.matrix], math.prod(shapes[name])
    elements = math.prod(sizes) if norm.right is None else rows * math.prod(shapes[norm.right])
    return norm if rows in sizes and elements == math.prod(sizes) else None


def _matrix_below(
    name: str, match: re.Match[str], shapes: Mapping[str, Shape], weight_norms: Mapping[str, WeightNorm]
) -> str:
    """Return the tensor whose singular vectors a parametrization stores.

    Raises:
        WeightspaceError: a parametrization other than weight norm or spectral norm is applied first.
    """
    prefix = f"{match[1]}parametrizations.{match[2]}."
    number = int(match[3].partition(".")[0])
    matrix = f"{prefix}original1" if f"{prefix}original1" in weight_norms else f"{prefix}original"
    first = 1 if matrix in weight_norms else 0  # weight norm is applied first, and has no buffers
    if any(f"{prefix}{below}._u" not in shapes for below in range(first, number)):
        raise WeightspaceError(
            f"{name!r} belongs to a spectral norm on top of another parametrization, so its weight cannot be "
            "determined from the checkpoint. Expected torch.nn.utils.parametrize.remove_parametrizations on every "
            "model first."
        )
    return matrix


def _pruning_mask(original: str, shapes: Mapping[str, Shape]) -> str | None:
    """Return the mask of a pruned tensor of this name, or None."""
    mask = mask_of(original)
    fits = original.endswith("_orig") and mask in shapes and tuple(shapes[mask]) == tuple(shapes[original])
    return mask if fits else None


def _check_unpruned(parametrizations: Parametrizations, pruned: Mapping[str, Shape]) -> None:
    """Check that no part of a weight under weight norm or spectral norm is pruned."""
    for name, norm in parametrizations:
        for part in (name, *norm.functions):
            if part in pruned:
                raise WeightspaceError(
                    f"{part}_orig and {mask_of(part)} prune a part of the weight {effective_name(name)!r} under weight "
                    "norm or spectral norm, so the weight cannot be determined from the checkpoint. Expected "
                    "torch.nn.utils.prune.remove on every model first."
                )


def _last(name: str) -> str:
    """Return the last part of a name; networks ported from TensorFlow separate parts by slashes."""
    return name.rpartition(".")[2].rpartition("/")[2]
