"""Differences between the sources of a merge, tensor by tensor and layer by layer, before anything is merged.

Differences are taken from the base; where the merge has none, from the first model. An element counts as changed where
its difference is larger than ``threshold`` times the root mean square of the reference's tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from weightspace.arguments import checked
from weightspace.checkpoints.fetching import fetch
from weightspace.errors import WeightspaceError
from weightspace.merging.merge_files import plan_merge
from weightspace.merging.plan.options import OutputOptions, ReadingOptions
from weightspace.merging.plan.plan import Job, Plan
from weightspace.merging.recipe.types import Recipe
from weightspace.merging.slices.layer_index import Layers
from weightspace.progress import Progress
from weightspace.reprs import brief

if TYPE_CHECKING:
    from weightspace.merging.out_of_core.sources import Sources

#: Name of the group of tensors outside the layers.
OUTSIDE = "outside"

#: Share of a tensor's root mean square that a difference must exceed to count.
THRESHOLD = 0.01


@brief
@dataclass(frozen=True)
class Differences:
    """Differences of the models' weights from the reference, in a tensor or a layer.

    Attributes:
        name: of the tensor or layer.
        elements: their number.
        norms: ``‖x_i − r‖`` of every model; None where a model has no part in it.
        relative: the same over ``‖r‖``.
        above: share of the elements that are changed, per model.
        cosines: cosine of the differences of every two models, ``(N, N)``; None where one of them has none.
        conflicts: share of the elements that one model raised and another lowered, both above the threshold.

    Example:
        >>> from weightspace.merging.source_differences import Differences
        >>> Differences("w", 4, (1.0, 2.0), (0.1, 0.2), (0.5, 1.0), ((1.0, 0.5), (0.5, 1.0)), 0.25).mean_cosine
        0.5
    """

    name: str
    elements: int
    norms: tuple[float | None, ...]
    relative: tuple[float | None, ...]
    above: tuple[float | None, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    conflicts: float | None

    @property
    def mean_cosine(self) -> float | None:
        """The mean over all pairs of models, None where there is no pair."""
        pairs = [cosine for index, row in enumerate(self.cosines) for cosine in row[index + 1 :] if cosine is not None]
        return sum(pairs) / len(pairs) if pairs else None

    def others(self, model: int) -> float | None:
        """Return the mean cosine of one model with the others."""
        row = [one for index, one in enumerate(self.cosines[model]) if index != model and one is not None]
        return sum(row) / len(row) if row else None


@brief
@dataclass(frozen=True)
class SourceDifferences:
    """Differences between the sources of a merge.

    Attributes:
        models: the models, by label.
        reference: the model that they are compared with.
        threshold: share of a tensor's root mean square above which a difference counts.
        layers: of every layer, and of the tensors outside of them.
        tensors: of every tensor that is merged.
        total: of all of them.
    """

    models: tuple[str, ...]
    reference: str
    threshold: float
    layers: tuple[Differences, ...]
    tensors: tuple[Differences, ...]
    total: Differences


@checked
def source_differences(
    recipe_or_sources: str | os.PathLike[str] | Recipe | Mapping[str, Any] | Sequence[str | os.PathLike[str]],
    *,
    threshold: float = THRESHOLD,
    reading: ReadingOptions | None = None,
    allow_nonfinite: bool = False,
    lenient: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> SourceDifferences:
    """Measure how the sources of a merge differ; nothing is written, and no model is held in memory.

    Args:
        recipe_or_sources: as for ``merge_files``.
        threshold: share of a tensor's root mean square above which a difference counts.
        reading, allow_nonfinite, lenient: as for ``merge_files``.
        on_progress: told of the ``"tensors"`` that are measured.
        options: ``method``, ``base`` and the others of ``merge_files`` that say what is merged.

    Raises:
        CheckpointError: as ``merge_files``, where the merge cannot be planned.
        WeightspaceError: as ``merge_files``; every tensor comes from one model alone, or the recipe has several
            documents.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.merging import source_differences
        >>> for name, state in {"base": [1.0, 1.0], "a": [2.0, 1.0], "b": [0.0, 1.0]}.items():
        ...     ws.save_checkpoint({"w": torch.tensor(state)}, f"{name}.safetensors")
        >>> models = ["a.safetensors", "b.safetensors"]
        >>> found = source_differences(models, method="ties", base="base.safetensors")
        >>> found.total.norms, found.total.conflicts, found.total.mean_cosine
        ((1.0, 1.0), 0.5, -1.0)
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise WeightspaceError(f"threshold must be a finite number of at least 0, found {threshold!r}.")
    output = OutputOptions(allow_nonfinite=allow_nonfinite, hashes=False)
    plan = plan_merge(recipe_or_sources, options, reading or ReadingOptions(), output, lenient=lenient)
    return _Measuring(plan, threshold).measured(on_progress)


class _Measuring:
    """Measures the differences of a plan's sources."""

    def __init__(self, plan: Plan, threshold: float) -> None:
        self.plan = plan
        self.threshold = threshold
        self.jobs = [job for job in plan.jobs if job.kind in ("merge", "direction") and len(job.models) > 1]
        if not self.jobs:
            raise WeightspaceError("Every tensor of this merge comes from one model: there is nothing to compare.")
        compared = {index for job in self.jobs for index, _ in _compared(job)}
        self.models = sorted(compared)

    def measured(self, on_progress: Callable[[Progress], None] | None) -> SourceDifferences:
        """Return what was found."""
        from weightspace.merging.out_of_core.sources import Sources

        fetch(self.plan.input_files)
        sources = Sources(self.plan)
        layers = _groups(job.name for job in self.jobs)
        tensors: list[Differences] = []
        sums: dict[str, Mapping[str, Any]] = {}
        for number, job in enumerate(self.jobs):
            found = self._sums(job, sources)
            tensors.append(self._differences(job.name, found))
            layer = layers[job.name]
            sums[layer] = found if layer not in sums else _added(sums[layer], found)
            if on_progress is not None:
                on_progress(Progress("tensors", number + 1, len(self.jobs)))
        ordered = sorted(sums, key=lambda layer: layer == OUTSIDE)
        return SourceDifferences(
            tuple(self.plan.members[index].label for index in self.models),
            self._reference(),
            self.threshold,
            tuple(self._differences(layer, sums[layer]) for layer in ordered),
            tuple(tensors),
            self._differences("all", reduce(_added, sums.values())),
        )

    def _reference(self) -> str:
        """Return what the models are compared with."""
        indices = {(job.base or job.inputs[0])[0] for job in self.jobs}
        return ", ".join(self.plan.members[index].label for index in sorted(indices))

    def _sums(self, job: Job, sources: Sources) -> Mapping[str, Any]:
        """Return the sums of a tensor, in the order of all models."""
        from weightspace.merging.out_of_core.difference_sums import difference_sums

        columns = [self.models.index(index) for index, _ in _compared(job)]
        return difference_sums(sources.stack(job), columns, len(self.models), self.threshold)

    def _differences(self, name: str, sums: Mapping[str, Any]) -> Differences:
        products, present = sums["products"], sums["present"]
        norms = [math.sqrt(products[index][index]) for index in range(len(present))]
        reference, elements = math.sqrt(sums["reference"]), sums["elements"]
        models = range(len(norms))
        cosines = [[_cosine(products[i][j], norms[i], norms[j], same=i == j) for j in models] for i in models]
        return Differences(
            name,
            elements,
            tuple(norm if has else None for norm, has in zip(norms, present, strict=True)),
            tuple(_ratio(norm, reference) if has else None for norm, has in zip(norms, present, strict=True)),
            tuple(count / elements if has else None for count, has in zip(sums["above"], present, strict=True)),
            tuple(map(tuple, cosines)),
            sums["conflicts"] / elements if sum(present) > 1 else None,
        )


def _compared(job: Job) -> tuple[tuple[int, str], ...]:
    """Return the sources that are compared with the reference: the base's, else the first one."""
    return job.inputs if job.base is not None else job.inputs[1:]


def _groups(names: Iterable[str]) -> dict[str, str]:
    """Return the layer of every tensor, by the name of its stack and its number."""
    groups = dict.fromkeys(names, OUTSIDE)
    layers = Layers(groups)
    for stack in layers.stacks:
        if layers.is_counted(stack):
            groups |= {name: f"{stack}.{number}" for name, number in layers.numbers(stack).items()}
    return groups


def _added(first: Mapping[str, Any], second: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the sums of two tensors together."""
    return {
        "elements": first["elements"] + second["elements"],
        "reference": first["reference"] + second["reference"],
        "conflicts": first["conflicts"] + second["conflicts"],
        "above": [a + b for a, b in zip(first["above"], second["above"], strict=True)],
        "present": [a or b for a, b in zip(first["present"], second["present"], strict=True)],
        "products": [
            [a + b for a, b in zip(*rows, strict=True)]
            for rows in zip(first["products"], second["products"], strict=True)
        ],
    }


def _cosine(product: float, first: float, second: float, *, same: bool) -> float | None:
    """Return a cosine, None where a difference is zero; models that have no part have differences of zero."""
    if not (first and second):
        return None
    return 1.0 if same else max(-1.0, min(1.0, product / (first * second)))


def _ratio(norm: float, reference: float) -> float | None:
    return norm / reference if reference else None
