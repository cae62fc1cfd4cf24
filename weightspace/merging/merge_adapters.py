r"""Merging of a model's adapters into one, in coordinates that they share; no full-size matrix is formed.

With :math:`\Delta_t = s_t B_t A_t`:

``knots``: :math:`[\Delta_1 \dots \Delta_T] = U \Sigma [V_1^\top \dots V_T^\top]`, merged as
:math:`U \operatorname{merge}(\Sigma V_1^\top, \dots)`;
``core_space``: :math:`U_B, V_A` bases of all :math:`B_t` and of all :math:`A_t^\top`, merged as
:math:`U_B \operatorname{merge}(U_B^\top \Delta_1 V_A, \dots) V_A^\top`;
``linear``: :math:`\sum_t w_t \Delta_t`, the factors concatenated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.hashing import sha256_of
from weightspace.checkpoints.provenance import described
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError, WeightspaceError, warn_caller
from weightspace.lora.adapter import Adapter, Factors, read_adapter
from weightspace.lora.base_names import model_name, trained_on
from weightspace.lora.config import CONFIG
from weightspace.lora.layout import fused_names
from weightspace.lora.low_rank import filled_up, matrices, wide_dtype
from weightspace.lora.write import (
    check_adapter_replaceable,
    exact_targets,
    factor_names,
    lora_config,
    shaped,
    write_adapter,
)
from weightspace.merging.in_memory import merge
from weightspace.merging.methods._svd import column_space
from weightspace.merging.recipe.merge_roles import find_method, split_base
from weightspace.reprs import brief
from weightspace.suggestions import unknown

#: Name on the command line -> paper.
ADAPTER_METHODS: Mapping[str, str] = {
    "knots": "Stoica et al. 2025, https://arxiv.org/abs/2410.19735",
    "core_space": "Panariello et al. 2025, https://arxiv.org/abs/2509.17786",
    "linear": "Hu et al. 2021, https://arxiv.org/abs/2106.09685",
}


@brief
@dataclass(frozen=True)
class AdapterMergeReport:
    """Result of merging adapters.

    Attributes:
        out: the folder that was written.
        method: a name in ``ADAPTER_METHODS``.
        inner: the elementwise method; "" for ``linear``.
        ranks: tensor of the model -> rank of its merged factors.
    """

    out: str
    method: str
    inner: str
    ranks: dict[str, int]


class Pair(NamedTuple):
    """Factors of ``scale · b a``, ``(out, r)`` and ``(r, in)``; ``r`` is 0 where an adapter lacks the tensor."""

    b: Tensor
    a: Tensor
    scale: float


class Space(NamedTuple):
    """Shared coordinates of several pairs: pair ``t`` is ``left · coordinates[t] · right``."""

    left: Tensor
    coordinates: list[Tensor]
    right: Tensor | None


@torch.no_grad()
def merge_adapters(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str = "knots",
    inner: str | None = None,
    weights: Sequence[float] | None = None,
    density: float | Sequence[float] | None = None,
    lambda_: float | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> AdapterMergeReport:
    """Merge LoRA adapters of one model into one, as a PEFT folder.

    Args:
        folders: the adapters; ranks, scales and targets may differ. A tensor that an adapter lacks has ``ΔW = 0``.
        out: a new folder, or that of an adapter, which is replaced.
        method: ``knots``, ``core_space`` or ``linear`` (``Σ w ΔW``, exact; its rank is the sum of all ranks).
        inner: the method that merges the coordinates, with zero as its base: any of ``METHODS`` that needs a base and
            no evidence. Default: ``ties``; ``linear`` has none.
        weights: one finite number per adapter; default: those of the inner method, and ``1 / T`` for ``linear``.
        density: option of the inner method.
        lambda_: option of the inner method.
        parameters: other options of the inner method by name.

    Returns:
        The resulting ranks; factors are computed in float64 and written in float32 or wider, their scale is 1.

    Raises:
        CheckpointError: an adapter is missing or damaged, has fully trained modules, or does not fit the others;
            ``out`` is something other than an adapter, or writing fails.
        WeightspaceError: the methods, the weights or the options are invalid, or a factor holds NaN or infinity.

    Source:
        Stoica et al. 2025, https://arxiv.org/abs/2410.19735, section 4; Panariello et al. 2025,
        https://arxiv.org/abs/2509.17786, section 4.
    """
    options = dict(parameters or {})
    options |= {name: value for name, value in (("density", density), ("lambda", lambda_)) if value is not None}
    merging = _Merging(method, inner, weights, options, len(folders))
    check_adapter_replaceable(out)
    adapters = [read_adapter(local_path(folder)) for folder in folders]
    _warn_of_other_bases(adapters)
    targets = _targets(adapters)
    states = [CheckpointReader(adapter.contents) for adapter in adapters]
    merged: dict[str, tuple[Tensor, Tensor]] = {}
    for group in merging.groups(list(targets)):
        pairs = {
            name: [_pair(*both, name, targets[name]) for both in zip(adapters, states, strict=True)] for name in group
        }
        merged |= merging.merged(pairs)
    common = _fill_up_experts(merged)
    state: StateDict = {}
    for name, (b, a) in merged.items():
        state |= _stored(name, targets[name], b, a, _dtype(adapters, name))
    ranks = {name: len(a) for name, (_, a) in merged.items()}
    recorded = {"inner": merging.inner, "weights": list(merging.weights), "parameters": options}
    write_adapter(state, _config(adapters, ranks, common), out, metadata=_metadata(adapters, method, recorded))
    return AdapterMergeReport(os.fspath(out), method, merging.inner, ranks)


def _warn_of_other_bases(adapters: Sequence[Adapter]) -> None:
    """Warn of an adapter that was trained on another model than the first."""
    bases = [(adapter.path, name) for adapter in adapters if (name := trained_on(adapter.configuration)) is not None]
    for path, base in bases[1:]:
        first, other = bases[0]
        if model_name(base) != model_name(other):
            warn_caller(
                f"The adapter {path} was trained on {base}, but {first} on {other} (base_model_name_or_path in "
                f"{CONFIG}). Are they adapters of one model?"
            )


def _fill_up_experts(merged: dict[str, tuple[Tensor, Tensor]]) -> int | None:
    """Pad the factors of fused experts in place to one rank, as PEFT requires; return that rank, if any."""
    fused = fused_names(merged)
    common = max((len(merged[name][1]) for name in fused), default=None)
    for name in fused:
        b, a = merged[name]
        a, b = filled_up(a, b, common or 0)
        merged[name] = b, a
    return common


class _Merging:
    """A method with its inner method, weights and options, all checked."""

    def __init__(
        self,
        method: str,
        inner: str | None,
        weights: Sequence[float] | None,
        options: Mapping[str, Any],
        count: int,
    ) -> None:
        if method not in ADAPTER_METHODS:
            raise unknown("method of merging adapters", method, ADAPTER_METHODS)
        if not count:
            raise WeightspaceError("Found no adapters to merge; expected one or more folders.")
        if method == "linear" and (inner is not None or options):
            found = f"inner method {inner!r}" if inner is not None else f"option {next(iter(options))!r}"
            raise WeightspaceError(f"Method 'linear' sums the adapters and takes no inner method; found {found}.")
        self.method = method
        self.inner = "" if method == "linear" else inner or "ties"
        self.options = options
        row = find_method(self.inner or "linear")
        if self.inner and (row.base != "required" or row.evidence):
            raise WeightspaceError(
                f"The inner method {self.inner!r} cannot merge coordinates: expected one that works on differences "
                "from a base and needs no evidence, such as ties, task_arithmetic or dare_ties."
            )
        numbers = list(range(count))
        chosen = [1 / count] * count if weights is None and not self.inner else weights
        self.weights: Sequence[float] = split_base(row, numbers, -1 if self.inner else None, (), chosen)[2]
        self.inner_weights = None if weights is None else self.weights
        if self.inner:
            row.arguments(options, count)

    def groups(self, names: list[str]) -> list[list[str]]:
        """Group the tensors that are merged together: all of them if the inner method's scope is the model."""
        return [names] if self.options.get("scope") == "model" else [[name] for name in names]

    def merged(self, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the merged ``B`` and ``A`` by name."""
        if not self.inner:
            return {name: _sum(several, self.weights) for name, several in pairs.items()}
        find = _knots_space if self.method == "knots" else _core_space
        spaces = {name: find(several) for name, several in pairs.items()}
        count = len(self.weights)
        states = [{name: space.coordinates[index] for name, space in spaces.items()} for index in range(count)]
        zeros = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
        merged = merge(states, self.inner, base=zeros, weights=self.inner_weights, parameters=self.options)
        return {name: _factored(space, merged[name]) for name, space in spaces.items()}


def _knots_space(pairs: Sequence[Pair]) -> Space:
    """Return ``U`` and ``ΣV_tᵀ`` of the SVD of all differences concatenated, computed from their factors."""
    basis, blocks = torch.linalg.qr(torch.cat([pair.b for pair in pairs], dim=1))
    parts = blocks.split([pair.b.shape[1] for pair in pairs], dim=1)
    inside = [pair.scale * (part @ pair.a) for pair, part in zip(pairs, parts, strict=True)]
    rotation = column_space(inside)
    return Space(basis @ rotation, [rotation.T @ block for block in inside], None)


def _core_space(pairs: Sequence[Pair]) -> Space:
    """Return ``U_B``, the cores and ``V_Aᵀ``."""
    left = column_space([pair.b for pair in pairs])
    right = column_space([pair.a.T for pair in pairs])
    return Space(left, [pair.scale * ((left.T @ pair.b) @ (pair.a @ right)) for pair in pairs], right.T)


def _factored(space: Space, merged: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``B`` and ``A`` of merged coordinates, with the smaller rank that they allow."""
    if space.right is None:
        return space.left, merged
    if merged.shape[0] <= merged.shape[1]:
        return space.left, merged @ space.right
    return space.left @ merged, space.right


def _sum(pairs: Sequence[Pair], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the factors of ``Σ w ΔW`` by concatenation."""
    left = [pair.b * (weight * pair.scale) for pair, weight in zip(pairs, weights, strict=True)]
    return torch.cat(left, dim=1), torch.cat([pair.a for pair in pairs])


def _targets(adapters: Sequence[Adapter]) -> dict[str, Factors]:
    """Return the tensors that the adapters change, each with the factors of the first adapter that has it."""
    targets: dict[str, tuple[Adapter, Factors]] = {}
    for adapter in adapters:
        if adapter.saved:
            raise CheckpointError(
                f"{adapter.path} replaces all of {next(iter(adapter.saved))!r} (modules_to_save); expected only "
                "factors. Merge the models instead: `weightspace merge MODEL+ADAPTER …`."
            )
        if adapter.configuration.parameters:
            raise CheckpointError(
                f"{adapter.path} targets parameters such as those of fused experts "
                f"({adapter.configuration.parameters[0]!r}); expected factors of modules. Merge the models instead: "
                "`weightspace merge MODEL+ADAPTER …`."
            )
        for name, factors in adapter.factors.items():
            first, other = targets.setdefault(name, (adapter, factors))
            if (factors.shape, factors.transposed) != (other.shape, other.transposed):
                raise CheckpointError(
                    f"{name!r} has shape {other.shape} in {first.path} and {factors.shape} in {adapter.path}; expected "
                    "one shape and one fan_in_fan_out. Are these adapters of the same model?"
                )
    return {name: factors for name, (_, factors) in targets.items()}


def _pair(adapter: Adapter, state: CheckpointReader, name: str, like: Factors) -> Pair:
    """Return the factors of one adapter as float64 matrices."""
    shape = like.shape[::-1] if like.transposed else like.shape
    factors = adapter.factors.get(name)
    if factors is None:
        empty = torch.zeros(0, dtype=torch.float64)
        return Pair(empty.reshape(shape[0], 0), empty.reshape(0, math.prod(shape[1:])), 1.0)
    both = (state[factors.a_name], state[factors.b_name])
    for tensor, called in zip(both, (factors.a_name, factors.b_name), strict=True):
        if not bool(tensor.isfinite().all()):
            raise WeightspaceError(f"{called!r} of {adapter.path} holds NaN or infinity; expected finite factors.")
    b, a = (matrix.to(torch.float64) for matrix in matrices(*both))
    if not math.isfinite(factors.scale * float(b.norm()) * float(a.norm())):
        raise WeightspaceError(
            f"{factors.b_name!r} of {adapter.path} times {factors.a_name!r}, scaled by {factors.scale:.3g}, "
            "overflows float64. Is the lora_alpha of its configuration right?"
        )
    return Pair(b, a, factors.scale)


def _stored(name: str, like: Factors, b: Tensor, a: Tensor, dtype: torch.dtype) -> StateDict:
    """Return the factors of a tensor as PEFT stores them; rank 0 is stored as zeros of rank 1."""
    shape = like.shape[::-1] if like.transposed else like.shape
    if not len(a):
        b, a = b.new_zeros(len(b), 1), a.new_zeros(1, a.shape[1])
    if not all(bool(factor.to(dtype).isfinite().all()) for factor in (a, b)):
        raise WeightspaceError(
            f"The merged factors of {name!r} overflow {str(dtype).removeprefix('torch.')}. Are the scales of the "
            "adapters right?"
        )
    names = factor_names(name.removesuffix(".weight"), embedding=like.embedding)
    return dict(zip(names, shaped(a.to(dtype), b.to(dtype), shape), strict=True))


def _dtype(adapters: Sequence[Adapter], name: str) -> torch.dtype:
    """Return the dtype in which the merged factors are written."""
    found = [
        adapter.contents.tensors[tensor].dtype
        for adapter in adapters
        if name in adapter.factors
        for tensor in (adapter.factors[name].a_name, adapter.factors[name].b_name)
    ]
    return wide_dtype(*(torch.float64 for dtype in found if dtype == "F64"))


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int], common: int | None) -> dict[str, Any]:
    """Return the configuration of the merged adapter, with the common rank of fused experts, if any."""
    fields = adapters[0].configuration.fields
    kept = {key: fields[key] for key in ("base_model_name_or_path", "task_type", "auto_mapping") if key in fields}
    turned = any(adapter.configuration.fan_in_fan_out for adapter in adapters)
    modules = {name.removesuffix(".weight"): max(1, rank) for name, rank in ranks.items()}
    config = lora_config(modules, common=common, fan_in_fan_out=turned, **kept)
    by_pattern = any(isinstance(adapter.configuration.fields.get("target_modules"), str) for adapter in adapters)
    return exact_targets(config) if by_pattern and any("." not in module for module in modules) else config


def _metadata(adapters: Sequence[Adapter], method: str, recorded: Mapping[str, Any]) -> dict[str, str]:
    """Return the provenance of the merged adapter."""
    files = dict.fromkeys(file for adapter in adapters for file in adapter.files)
    digests = {file: sha256_of(file) for file in files}
    return described([(adapter.path, adapter.files) for adapter in adapters], digests, f"adapters:{method}", recorded)
