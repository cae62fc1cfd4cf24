"""Merging of a model's adapters into one, of any formats and ranks; no full-size matrix is formed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import WeightspaceError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.factored import truncated
from weightspace.lora.flux_modules import flux_as_written
from weightspace.lora.read import read_adapter
from weightspace.merging.adapter_inputs import pair_of, targets_of, unified, warn_of_disjoint, warn_of_other_bases
from weightspace.merging.adapter_method import AdapterMethod
from weightspace.merging.adapter_output import Merged, check_output, chosen_format, metadata_of, save_merged
from weightspace.reprs import brief


@brief
@dataclass(frozen=True)
class AdapterMergeReport:
    """Result of merging adapters.

    Attributes:
        out: the folder or file that was written.
        method: a name in ``ADAPTER_METHODS``.
        inner: the elementwise method; "" for ``linear``.
        ranks: tensor of the model -> rank of its merged factors. Files of kohya and diffusers have the largest for all,
            filled up with zeros.
        format: ``peft``, ``kohya`` or ``diffusers``.
        errors: tensor of the model -> relative error in the Frobenius norm, if it was reduced to a given rank.
    """

    out: str
    method: str
    inner: str
    ranks: dict[str, int]
    format: str = "peft"
    errors: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def merge_adapters(
    adapters: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str = "knots",
    inner: str | None = None,
    weights: Sequence[float] | None = None,
    density: float | Sequence[float] | None = None,
    lambda_: float | None = None,
    rank: int | None = None,
    format: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
) -> AdapterMergeReport:
    """Merge LoRA adapters of one model into one.

    Args:
        adapters: folders of PEFT, files of kohya, LyCORIS (LoCon, LoHa, LoKr) or diffusers; ranks, scales and targets
            may differ. A tensor that an adapter lacks has ``ΔW = 0``.
        out: a folder, for kohya and diffusers a ``.safetensors`` file; an adapter that this library made is replaced.
        method: ``knots``, ``core_space`` or ``linear`` (``Σ w ΔW``, exact; its rank is the sum of all ranks).
        inner: the method that merges the coordinates, with zero as its base: any of ``METHODS`` that needs a base and
            no evidence. Default: ``ties``; ``linear`` has none.
        weights: one finite number per adapter; default: those of the inner method, and ``1 / T`` for ``linear``.
        density, lambda_: options of the inner method.
        rank: largest rank of the result; larger ones are reduced by the singular values of the product of the factors.
        format: ``peft``, ``kohya`` or ``diffusers``; by default that of all inputs.
        parameters: other options of the inner method by name.
        force: replace an adapter that this library did not make.

    Returns:
        The resulting ranks, and the errors of reducing them; factors are computed in float64 and written in float32 or
        wider, their scale is 1.

    Raises:
        CheckpointError: an adapter is missing or damaged, has a tensor that isn't understood, DoRA or whole modules, or
            does not fit the others; a name can't be written in the format; ``out`` is no adapter, or writing fails.
        WeightspaceError: a method, weight or option is invalid, or a factor holds NaN or infinity.

    Source:
        Stoica et al. 2025, https://arxiv.org/abs/2410.19735, section 4; Panariello et al. 2025,
        https://arxiv.org/abs/2509.17786, section 4.
    """
    options = dict(parameters or {})
    options |= {name: value for name, value in (("density", density), ("lambda", lambda_)) if value is not None}
    merging = AdapterMethod(method, inner, weights, options, len(adapters))
    _check_rank(rank)
    read = [read_adapter(fetched_path(adapter)) for adapter in adapters]
    written = chosen_format(format, read)
    check_output(out, written, force=force)
    warn_of_other_bases(read)
    inputs = unified(flux_as_written(read, written))
    warn_of_disjoint(inputs)
    targets = targets_of(inputs)
    merged, errors = _merged(merging, inputs, targets, rank)
    recorded = {"inner": merging.inner, "weights": list(merging.weights), "parameters": options}
    recorded |= {} if rank is None else {"rank": rank}
    save_merged(merged, targets, inputs, out, written, metadata_of(inputs, method, recorded))
    ranks = {name: len(a) for name, (_, a) in merged.items()}
    return AdapterMergeReport(os.fspath(out), method, merging.inner, ranks, written, errors)


def _check_rank(rank: int | None) -> None:
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise WeightspaceError(f"The rank is {rank!r}; expected a whole number of at least 1.")


def _merged(
    merging: AdapterMethod, adapters: Sequence[Adapter], targets: Mapping[str, Factors], rank: int | None
) -> tuple[Merged, dict[str, float]]:
    """Return the merged factors of all tensors, and the errors of reducing them to a rank."""
    states = [CheckpointReader(adapter.contents) for adapter in adapters]
    merged: Merged = {}
    errors: dict[str, float] = {}
    for group in merging.groups(list(targets)):
        pairs = {
            name: [pair_of(*both, name, targets[name]) for both in zip(adapters, states, strict=True)] for name in group
        }
        for name, (b, a) in merging.merged(pairs).items():
            if rank is not None:
                b, a, errors[name] = truncated(b, a, rank)
            merged[name] = b, a
    return merged, errors
