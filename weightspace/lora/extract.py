r"""Extraction of a LoRA adapter from the difference of two models.

.. math:: \Delta = W' - W \approx B A, \qquad B = U_r \sqrt{\Sigma_r}, \quad A = \sqrt{\Sigma_r}\, V_r^\top

the best approximation of that rank; convolution kernels are unfolded to ``(out, in · kernel)``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, check_compatible, load_checkpoint, provenance
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state_dict import tied_names
from weightspace.errors import WeightspaceError
from weightspace.lora.adapter import REPEATED
from weightspace.lora.layout import Kind, Layout
from weightspace.lora.low_rank import filled_up, nearest_factors, wide_dtype
from weightspace.lora.model_config import read_config
from weightspace.lora.module_names import is_renamed
from weightspace.lora.tied_weights import head_scale, is_head, is_token_embedding, tied_counterpart
from weightspace.lora.whole_tensors import whole_tensors
from weightspace.lora.write import check_adapter_output, factor_names, shaped, write_adapter
from weightspace.progress import Progress
from weightspace.reprs import brief


@brief
@dataclass(frozen=True)
class ExtractionReport:
    """The part of the difference that an adapter captures.

    Attributes:
        errors: tensor -> ``‖Δ − BA‖ / ‖Δ‖`` (Frobenius), between 0 and 1.
        ranks: tensor -> rank of its factors.
        error: the same ratio over all tensors with factors.
        left_out: differing tensors without factors, which the adapter doesn't change.
        saved: differing norms and biases, which the adapter keeps whole.
    """

    errors: dict[str, float]
    ranks: dict[str, int]
    error: float
    left_out: tuple[str, ...]
    saved: tuple[str, ...] = ()

    @property
    def energy(self) -> float:
        """The fraction of ``‖Δ‖²`` that the adapter captures."""
        return 1 - self.error**2


@brief
@dataclass(frozen=True)
class Extraction:
    """An extracted adapter.

    Attributes:
        state: PEFT's name -> factor.
        config: contents of ``adapter_config.json``.
        report: how well it approximates the difference.
        repeated: tensors of the model that are tied to another one, and repeat its factors.
    """

    state: StateDict
    config: dict[str, Any]
    report: ExtractionReport
    repeated: tuple[str, ...] = ()


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
    config: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Extraction:
    """Return the LoRA adapter of a given rank that best approximates a model's difference from its base.

    Norms that moved, and biases beside factors, are kept whole (``modules_to_save``, and ``bias`` set to ``all``). PEFT
    and ``MODEL+ADAPTER`` apply them exactly.

    Args:
        base: the pretrained model.
        model: a fine-tune of it, with the same names and shapes; one of the two may have a separate head that the other
            ties to its embedding.
        rank: rank of the factors; smaller for a matrix with fewer rows or columns. If transformers fuses experts, those
            of the experts, their router and layers with their names have one rank, padded with zeros.
        fan_in_fan_out: linear weights are stored as ``(in, out)``, if the configuration doesn't say.
        lenient: leave out all differing tensors that PEFT has no factors for, instead of keeping or refusing them.
        seed: seed of the subspace iteration.
        device: where the decompositions run.
        config: configuration of the base (``config.json``); it determines the names of transformers' modules, the
            layers stored as ``(in, out)``, and the tied weights. Without it, names are those of modules.
        on_progress: called after every ``"tensor"``.

    Returns:
        Factors in at least float32, balanced (``√σ`` on both sides) with a scale of 1. Tied weights repeat the same
        factors, because PEFT adapts every module separately.

    Raises:
        CheckpointError: names or shapes differ.
        WeightspaceError: the rank is below 1, no matrix differs, a tensor differs that can neither have factors nor
            be kept whole, or a difference contains NaN or infinity.

    Source:
        Eckart and Young 1936, https://doi.org/10.1007/BF02288367; if the smaller side exceeds 8 times the rank, Halko
        et al. 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1.
    """
    if rank < 1:
        raise WeightspaceError(f"The rank of an adapter is at least 1; found {rank}.")
    fields = dict(config or {})
    base, model = with_counterparts(base, model, fields), with_counterparts(model, base, fields)
    check_compatible(base, model, names=("the base", "the model"))
    layout = Layout({name: tuple(tensor.shape) for name, tensor in base.items()}, fields, fan_in_fan_out=fan_in_fan_out)
    work = _Work(rank, layout, seed, device)
    ties = shared_ties(base, model)
    for number, name in enumerate(base, start=1):
        if name not in ties and not _same(base[name], model[name]):
            work.add(name, base[name], model[name])
        if on_progress is not None:
            on_progress(Progress("tensor", number, len(base), name=name))
    for alias, owner in {**ties, **layout.ties}.items():
        work.repeat(alias, owner)
    return work.extraction(model, lenient=lenient)


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
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> ExtractionReport:
    """Write the LoRA adapter that best approximates a checkpoint's difference from its base, as a PEFT folder.

    Tensors are read one at a time from memory-mapped files. If the base is a folder with its configuration, the adapter
    uses the module names of transformers 5.

    Args:
        base: the pretrained checkpoint.
        model: a fine-tune of it.
        out: a new folder, or that of an adapter that this library made, which is replaced.
        rank: as in ``extract_lora``, like the other options.
        fan_in_fan_out: as in ``extract_lora``.
        lenient: as in ``extract_lora``; moreover, keep the files' names if the module names in transformers are
            unknown.
        seed: as in ``extract_lora``.
        device: as in ``extract_lora``.
        force: replace an adapter that this library did not make.
        on_progress: as in ``extract_lora``.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, the two don't fit together, ``out`` isn't an adapter or
            may be a trained one, or writing fails.
        WeightspaceError: as in ``extract_lora``; or transformers renames the modules of the model by unknown rules.
    """
    check_adapter_output(out, force=force)
    config = read_config(local_path(base))
    if is_renamed(config) and not lenient:
        raise WeightspaceError(
            f"{os.fspath(base)} is of a type ({config.get('model_type')}) whose modules transformers renames by rules "
            "unknown to this library. lenient (--lenient) keeps the names of the files, for MODEL+ADAPTER."
        )
    found = extract_lora(
        load_checkpoint(base),
        load_checkpoint(model),
        rank=rank,
        fan_in_fan_out=fan_in_fan_out,
        lenient=lenient,
        seed=seed,
        device=device,
        config=config,
        on_progress=on_progress,
    )
    said = {"rank": rank, "seed": seed, "fan_in_fan_out": fan_in_fan_out, "lenient": lenient}
    metadata = provenance([os.fspath(base), os.fspath(model)], "extract-lora", said)
    if found.repeated:
        metadata[REPEATED] = json.dumps(found.repeated)
    write_adapter(found.state, {**found.config, "base_model_name_or_path": os.fspath(base)}, out, metadata=metadata)
    return found.report


class _Work:
    """The factors found so far."""

    def __init__(self, rank: int, layout: Layout, seed: int, device: str) -> None:
        self.rank = rank
        self.layout = layout
        self.seed = seed
        self.device = device
        self.kinds: dict[str, Kind] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.rests: dict[str, float] = {}
        self.wholes: dict[str, float] = {}
        self.left_out: list[str] = []
        self.repeated: list[str] = []

    def add(self, name: str, base: Tensor, model: Tensor) -> None:
        """Process a tensor that differs."""
        floats = is_inexact(base) and is_inexact(model) and not base.is_complex()
        kind = self.layout.kind(name) if floats and base.numel() else None
        if kind is None:
            self.left_out.append(name)
            return
        dtype = wide_dtype(base.dtype, model.dtype)
        difference = model.to(self.device, dtype) - base.to(self.device, dtype)
        if not bool(difference.isfinite().all()):
            raise WeightspaceError(f"The difference of {name!r} contains NaN or infinity; expected finite checkpoints.")
        turned = kind in ("embedding", "in_out")
        matrix = difference.T if turned else difference.flatten(1)
        a, b = nearest_factors(matrix, self.rank, seed=self.seed)
        self.rests[name] = float((matrix - b @ a).norm())
        self.wholes[name] = float(difference.norm())
        self.kinds[name] = kind
        self.shapes[name] = tuple(matrix.shape) if turned else tuple(base.shape)
        self.factors[name] = a.cpu(), b.cpu()

    def repeat(self, alias: str, owner: str) -> None:
        """Repeat the factors of a tensor for one that is tied to it."""
        if owner not in self.factors:
            self.left_out += [alias] * (owner in self.left_out)
            return
        a, b = self.factors[owner]
        turned = (self.kinds[owner] == "embedding") == is_head(alias)
        self.kinds[alias] = "linear" if is_head(alias) else "embedding"
        self.shapes[alias] = self.shapes[owner][::-1] if turned else self.shapes[owner]
        self.factors[alias] = (b.T, a.T) if turned else (a, b)
        self.repeated.append(alias)

    def extraction(self, model: StateDict, *, lenient: bool) -> Extraction:
        """Return the extracted adapter."""
        adapted = {name for name in self.factors if not self.layout.is_fused(name)}
        whole = whole_tensors([] if lenient else self.left_out, model, adapted, self.layout.module)
        left_out = tuple(name for name in self.left_out if name not in whole.names)
        if left_out and not lenient:
            names = ", ".join(map(repr, left_out[:3])) + (", …" if len(left_out) > 3 else "")
            raise WeightspaceError(
                f"{len(left_out):,} tensors differ that PEFT has no factors for: {names}. An adapter keeps only norms "
                "and biases beside factors whole; lenient (--lenient) leaves out all of them, so that base and adapter "
                "differ from the model there."
            )
        if not self.factors:
            raise WeightspaceError("No matrix of the model differs from the base: there is nothing to extract.")
        self._fill_up()
        state: StateDict = dict(whole.state)
        for name, (a, b) in self.factors.items():
            names = factor_names(self.layout.module(name), embedding=self.kinds[name] == "embedding")
            state |= dict(zip(names, shaped(a, b, self.shapes[name]), strict=True))
        ranks = {name: len(a) for name, (a, _) in self.factors.items()}
        errors = {name: self.rests[name] / whole for name, whole in self.wholes.items()}
        total = math.hypot(*self.rests.values()) / math.hypot(*self.wholes.values())
        report = ExtractionReport(errors, ranks, total, left_out, tuple(whole.names))
        repeated = tuple(f"{self.layout.module(name)}.weight" for name in self.repeated)
        config = {**self.layout.configuration(ranks, self.kinds), **whole.configuration}
        return Extraction(state, config, report, repeated)

    def _fill_up(self) -> None:
        """Pad the factors of experts, and of the modules that PEFT fuses with them, to one rank."""
        fused = [name for name in self.factors if self.layout.is_fused(name)]
        rank = max((len(self.factors[name][0]) for name in fused), default=0)
        for name in fused:
            self.factors[name] = filled_up(*self.factors[name], rank)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values, whatever their dtypes."""
    return torch.equal(one, other) if one.dtype == other.dtype else bool((one == other).all())


def with_counterparts(state: StateDict, other: StateDict, config: dict[str, Any]) -> StateDict:
    """Return a model with tensors for all names of another one that it has under a tied name.

    Args:
        state: tensors of a model.
        other: tensors of another one, for example with a separate head.
        config: configuration of the models.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    scaled = head_scale(config, shapes) != 1
    completed = dict(state)
    for name in [name for name in other if name not in state]:
        found = tied_counterpart(shapes, name, tuple(other[name].shape))
        if found is not None and not (scaled and (is_head(name) or is_head(found))):
            completed[name] = state[found]
    return completed


def shared_ties(base: StateDict, model: StateDict) -> dict[str, str]:
    """Return names that share memory in both models -> their representative, an embedding if there is one."""
    others = tied_names(model)
    groups: dict[str, list[str]] = {}
    for name, owner in tied_names(base).items():
        if others.get(name) != owner:
            continue
        groups.setdefault(owner, [owner]).append(name)
    ties: dict[str, str] = {}
    for names in groups.values():
        owner = next(filter(is_token_embedding, names), names[0])
        ties |= {name: owner for name in names if name != owner}
    return {name: ties[name] for name in base if name in ties}
