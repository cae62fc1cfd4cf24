r"""A LoRA adapter out of the difference of two models.

.. math:: \Delta = W' - W \approx B A, \qquad B = U_r \sqrt{\Sigma_r}, \quad A = \sqrt{\Sigma_r}\, V_r^\top

the nearest matrix of that rank; kernels of convolutions are unfolded to ``(out, in · kernel)``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.adapters.low_rank import wide_dtype
from weightspace.adapters.writing import (
    check_adapter_replaceable,
    factor_names,
    lora_config,
    shaped,
    write_adapter,
)
from weightspace.checkpoints import StateDict, check_compatible, load_checkpoint, provenance
from weightspace.checkpoints.measure import is_inexact
from weightspace.errors import WeightspaceError

#: Ranks in the smaller side of a matrix, above which its leading singular vectors are found by subspace iteration.
_EXACT = 8

#: Vectors beyond the rank, and passes over the matrix and its transpose, of the subspace iteration.
_MORE, _PASSES = 16, 4

#: Modules that look tokens or positions up, by their last name: PEFT keeps their factors under other names.
_EMBEDDINGS = (
    *("embed_tokens", "embed_in", "tok_embeddings", "word_embeddings", "position_embeddings", "token_type_embeddings"),
    *("wte", "wpe", "shared", "embed_positions", "relative_attention_bias"),
)

#: Takes how many tensors were looked at, and of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExtractionReport:
    """How much of the difference an adapter holds.

    Attributes:
        errors: tensor -> ``‖Δ − BA‖ / ‖Δ‖`` (Frobenius), between 0 and 1.
        ranks: tensor -> rank of its factors.
        error: the same ratio over all tensors that have factors.
        left_out: tensors that differ and have none (norms, biases, counters): the adapter does not change them.
    """

    errors: dict[str, float]
    ranks: dict[str, int]
    error: float
    left_out: tuple[str, ...]

    @property
    def energy(self) -> float:
        """The share of ``‖Δ‖²`` that the adapter holds."""
        return 1 - self.error**2


@dataclass(frozen=True)
class Extraction:
    """An adapter in PEFT's names, its configuration, and what it leaves of the difference."""

    state: StateDict
    config: dict[str, Any]
    report: ExtractionReport


@torch.no_grad()
def extract_lora(
    base: StateDict,
    model: StateDict,
    *,
    rank: int = 16,
    fan_in_fan_out: bool = False,
    lenient: bool = False,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Extraction:
    """Return the LoRA adapter of a rank that is nearest to a model's difference from its base.

    Args:
        base: the pretrained model.
        model: a fine-tune of it, with the same names and shapes.
        rank: of the factors; smaller for a matrix with fewer rows or columns.
        fan_in_fan_out: Linear layers keep their weights as ``(in, out)``, as GPT-2's do.
        lenient: leave tensors out that differ and are no matrices or kernels, instead of refusing them.
        seed: of the subspace iteration.
        device: where the decompositions run.
        progress: is told how far it is.

    Returns:
        Factors in float32 at least, balanced (``√σ`` on both sides) with a scale of 1.

    Raises:
        CheckpointError: names or shapes differ.
        WeightspaceError: the rank is below 1, no matrix differs, a tensor that cannot have factors differs, or a
            difference holds NaN or infinity.

    Source:
        Eckart and Young 1936, https://doi.org/10.1007/BF02288367; where the smaller side is above 8 ranks, Halko et al.
        2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1.
    """
    if rank < 1:
        raise WeightspaceError(f"The rank of an adapter is 1 or more, found {rank}.")
    check_compatible(base, model, names=("the base", "the model"))
    work = _Work(rank, fan_in_fan_out, seed, device)
    for number, name in enumerate(base, start=1):
        if not _same(base[name], model[name]):
            work.add(name, base[name], model[name])
        if progress is not None:
            progress(number, len(base))
    return work.extraction(lenient=lenient)


def extract_lora_files(
    base: str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int = 16,
    fan_in_fan_out: bool = False,
    lenient: bool = False,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ExtractionReport:
    """Write the LoRA adapter that is nearest to a checkpoint's difference from its base, as a PEFT folder.

    Tensors are read one after the other from mapped files.

    Args:
        base: the pretrained checkpoint.
        model: a fine-tune of it.
        out: a new folder, or that of an adapter, which is replaced.
        rank: see ``extract_lora``; so are the other options.
        fan_in_fan_out: see ``extract_lora``.
        lenient: see ``extract_lora``.
        seed: see ``extract_lora``.
        device: see ``extract_lora``.
        progress: see ``extract_lora``.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, they don't fit together, ``out`` is something else than an
            adapter, or the disk refuses.
        WeightspaceError: as ``extract_lora``.
    """
    check_adapter_replaceable(out)
    found = extract_lora(
        load_checkpoint(base),
        load_checkpoint(model),
        rank=rank,
        fan_in_fan_out=fan_in_fan_out,
        lenient=lenient,
        seed=seed,
        device=device,
        progress=progress,
    )
    said = {"rank": rank, "seed": seed, "fan_in_fan_out": fan_in_fan_out, "lenient": lenient}
    metadata = provenance([Path(base), Path(model)], "extract-lora", said)
    write_adapter(found.state, {**found.config, "base_model_name_or_path": os.fspath(base)}, out, metadata=metadata)
    return found.report


class _Work:
    """The factors found so far."""

    def __init__(self, rank: int, fan_in_fan_out: bool, seed: int, device: str) -> None:
        self.rank = rank
        self.fan_in_fan_out = fan_in_fan_out
        self.seed = seed
        self.device = device
        self.state: StateDict = {}
        self.ranks: dict[str, int] = {}
        self.rests: dict[str, float] = {}
        self.wholes: dict[str, float] = {}
        self.left_out: list[str] = []

    def add(self, name: str, base: Tensor, model: Tensor) -> None:
        """Take a tensor that differs."""
        floats = is_inexact(base) and is_inexact(model) and not base.is_complex()
        if not floats or base.dim() not in (2, 4) or not name.endswith(".weight") or not base.numel():
            self.left_out.append(name)
            return
        dtype = wide_dtype(base.dtype, model.dtype)
        difference = model.to(self.device, dtype) - base.to(self.device, dtype)
        if not bool(difference.isfinite().all()):
            raise WeightspaceError(f"The difference of {name!r} holds NaN or infinity; expected finite checkpoints.")
        module = name.removesuffix(".weight")
        embedding = base.dim() == 2 and module.rpartition(".")[2] in _EMBEDDINGS
        turned = embedding or (self.fan_in_fan_out and base.dim() == 2)
        matrix = difference.T if turned else difference.flatten(1)
        a, b = nearest_factors(matrix, self.rank, seed=self.seed)
        self.ranks[name] = len(a)
        self.rests[name] = float((matrix - b @ a).norm())
        self.wholes[name] = float(difference.norm())
        shape = tuple(matrix.shape) if turned else tuple(base.shape)
        factors = shaped(a.cpu(), b.cpu(), shape)
        self.state |= dict(zip(factor_names(module, embedding=embedding), factors, strict=True))

    def extraction(self, *, lenient: bool) -> Extraction:
        """Return what was found."""
        if self.left_out and not lenient:
            names = ", ".join(map(repr, self.left_out[:3])) + (", …" if len(self.left_out) > 3 else "")
            raise WeightspaceError(
                f"{len(self.left_out):,} tensors differ that are no matrices: {names}. An adapter cannot hold them; "
                "lenient (--lenient) leaves them as they are in the base."
            )
        if not self.ranks:
            raise WeightspaceError("No matrix of the model differs from the base: there is nothing to extract.")
        errors = {name: self.rests[name] / whole for name, whole in self.wholes.items()}
        total = math.hypot(*self.rests.values()) / math.hypot(*self.wholes.values())
        ranks = {name.removesuffix(".weight"): rank for name, rank in self.ranks.items()}
        config = lora_config(ranks, fan_in_fan_out=self.fan_in_fan_out)
        return Extraction(self.state, config, ExtractionReport(errors, self.ranks, total, tuple(self.left_out)))


def nearest_factors(matrix: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return balanced ``A`` of ``(r, n)`` and ``B`` of ``(m, r)`` whose product is nearest to a matrix.

    Args:
        matrix: ``(m, n)``, in the dtype to compute in.
        rank: ``r``, clamped to the smaller side.
        seed: of the subspace iteration, which finds the vectors of large matrices.
    """
    kept = min(rank, *matrix.shape)
    if min(matrix.shape) > _EXACT * rank:
        left, values, right = _leading(matrix, min(kept + _MORE, *matrix.shape), seed)
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:kept].sqrt()
    return roots[:, None] * right[:kept], left[:, :kept] * roots


def _leading(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return about the leading singular triples; ``torch.svd_lowrank`` without its global random numbers."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis = torch.linalg.qr(matrix @ probe).Q
    for _ in range(_PASSES):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same values, whatever their dtypes."""
    return torch.equal(one, other) if one.dtype == other.dtype else bool((one == other).all())
