r"""Localize-and-Stitch with data: sparse masks of task vectors, learned for each task, and their union.

A mask is found by plain gradient descent on the logits :math:`S` of a soft mask, over a whole split at a time:

.. math:: \min_S\; L\bigl(b + \sigma(S) \odot (x - b)\bigr) + \mu\, \lVert \sigma(S) \rVert_1

They begin at ``bias`` for the largest differences of the model, and at its negative elsewhere; in the end, elements
with :math:`\sigma(S) > 1/2` belong to the mask. The merged network is :math:`b` plus the masked differences, averaged
where masks overlap.

This follows the paper's abstract and the authors' code (https://github.com/uiuctml/Localize-and-Stitch). Step size and
initial values are the code's. Its penalty moves all logits away from 0, in the mask and outside, unlike the paper's
objective, which is the one here. Without data, the merge method ``localize_and_stitch`` takes the largest differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.arguments import checked
from weightspace.arithmetic.integers import unaveraged
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.measure import is_inexact
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.soups.elected_models import check_plain, largest_of_model
from weightspace.soups.ingredients import Source, ingredients_of
from weightspace.soups.mixture import checked_states
from weightspace.soups.scoring import Scorer
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import SPLITS, Split, Task, threads_of
from weightspace.threads import torch_threads


@brief
@dataclass(frozen=True)
class Localized:
    """A network merged by Localize-and-Stitch.

    Attributes:
        state: the weights.
        masks: one per model: parameter -> its mask, bools of its shape.
        densities: fraction of the parameters in each mask.
        losses: one per model: mean loss of the soft mask in each epoch, in nats, without the penalty.
    """

    state: StateDict
    masks: tuple[StateDict, ...]
    densities: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LocalizationOptions:
    """Options of the masks; the defaults are those of the authors' code for CLIP, apart from the density.

    Attributes:
        density: fraction of the differences in the initial mask, from 0 to 1.
        bias: initial logit in the mask, and its negative outside.
        epochs: passes over the split, each followed by one step.
        learning_rate: step size for the sum of the batches' gradients.
        penalty: step size for the sum of the soft mask, the learning rate times ``μ``.
        split: split of the batches.

    Raises:
        WeightspaceError: the density isn't from 0 to 1, or the split is unknown.

    Example:
        >>> from weightspace.soups import LocalizationOptions
        >>> LocalizationOptions(epochs=3).bias
        5.0
    """

    density: float = 0.01
    bias: float = 5.0
    epochs: int = 10
    learning_rate: float = 1e7
    penalty: float = 1.0
    split: Split = "validation"

    def __post_init__(self) -> None:
        if not 0 <= self.density <= 1:
            raise WeightspaceError(f"density must be a number from 0 to 1; found {self.density!r}.")
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)


@checked
def localize_and_stitch(
    models: Sequence[Source],
    base: Source,
    tasks: Sequence[Task],
    *,
    options: LocalizationOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Localized:
    """Learn a sparse mask of every model on its task, and merge the masked task vectors.

    One mask is learned at a time, with the network, its gradient and the logits in memory.

    Args:
        models: fine-tunes, one or more: checkpoints or state dicts with the names and shapes of the base.
        base: the pretrained model.
        tasks: one task per model, in the same order.
        options: options of the masks.
        on_progress: called with each ``"epoch"`` of each model, and its loss in nats.

    Raises:
        CheckpointError: a model cannot be read, or differs from the base in names or shapes.
        WeightspaceError: there isn't one task per model, a loss isn't finite, weights are under weight norm or spectral
            norm, or buffers such as BatchNorm statistics differ, which have no gradient.

    Source:
        He et al. 2025, https://arxiv.org/abs/2408.13656; see the module for the sources used.

    Example:
        >>> import weightspace as ws
        >>> from weightspace.soups import LocalizationOptions, localize_and_stitch
        >>> task = ws.load_task("digits-mlp")
        >>> base, a, b = (ws.train(task, 0, epochs=epochs) for epochs in (0, 1, 2))
        >>> merged = localize_and_stitch([a, b], base, [task, task], options=LocalizationOptions(epochs=1))
        >>> len(merged.densities), list(merged.state) == list(base)
        (2, True)
    """
    chosen = LocalizationOptions() if options is None else options
    if isinstance(tasks, Task) or len(tasks) != len(models):
        count = 1 if isinstance(tasks, Task) else len(tasks)
        raise WeightspaceError(f"Expected a list of one task per model, {len(models)}; found {count}.")
    scorers = [Scorer(task, "none") for task in tasks]
    origin, *states = checked_states(models, base, scorers)
    check_plain(origin)
    masks, losses = [], []
    for number, (state, scorer) in enumerate(zip(states, scorers, strict=True), start=1):
        _check_buffers(scorer, origin, state, f"model {number}")
        found, own = _localized(scorer, origin, state, chosen, on_progress)
        masks.append(found)
        losses.append(tuple(own))
    sizes = [sum(mask.numel() for mask in own.values()) for own in masks]
    kept = [sum(int(mask.sum()) for mask in own.values()) for own in masks]
    densities = tuple(count / size for count, size in zip(kept, sizes, strict=True))
    state = stitched(states, origin, masks, scorers[0].aliases)
    state = ingredients_of([base], scorers[0].shapes)[0].as_stored(state)
    return Localized(state, tuple(masks), densities, tuple(losses))


def stitched(
    models: Sequence[StateDict], base: StateDict, masks: Sequence[Mapping[str, Tensor]], tied: Mapping[str, str]
) -> StateDict:
    """Return the base plus the masked differences of the models, averaged where masks overlap.

    Args:
        models: one or more models.
        base: their base, of the same names and shapes.
        masks: one per model: name -> bools; tensors of other names are the base's.
        tied: name of a tied tensor of the network -> its first name, which has the mask.
    """
    result = {name: tensor.detach().clone() for name, tensor in base.items()}
    for name in masks[0]:
        origin = base[name].detach().double()
        kept = torch.stack([mask[name] for mask in masks])
        moves = torch.stack([model[name].detach().double() - origin for model in models])
        merged = origin + (moves * kept).sum(dim=0) / kept.sum(dim=0).clamp_min(1)
        result[name] = torch.where(kept.any(dim=0), merged.to(base[name].dtype), result[name])
    for name in base:
        if not is_inexact(base[name]) and (whole := unaveraged(name, [model[name] for model in models])) is not None:
            result[name] = whole
    return {name: result[tied.get(name, name)] for name in base}


def _localized(
    scorer: Scorer,
    base: StateDict,
    model: StateDict,
    options: LocalizationOptions,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[StateDict, list[float]]:
    """Return the mask of a model, and the losses of the epochs."""
    network = scorer.put(base.items(), mixed=False)
    parameters = {name: one for name, one in network.named_parameters() if is_inexact(one)}
    initial = largest_of_model([model], base, options.density, tuple(parameters))[0]
    logits, losses = {}, []
    for name, parameter in parameters.items():
        parameter.requires_grad_()
        kept = initial[name].to(parameter.device)
        logits[name] = torch.where(kept, options.bias, -options.bias).to(parameter.dtype)
    moves = {name: (model[name] - base[name]).to(parameter) for name, parameter in parameters.items()}
    for epoch in range(1, options.epochs + 1):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(base[name].to(parameter) + logits[name].sigmoid() * moves[name])
                parameter.grad = None
        losses.append(_summed_gradients(scorer, options.split))
        with torch.no_grad():
            for name, parameter in parameters.items():
                soft = logits[name].sigmoid()
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                step = options.learning_rate * gradient * moves[name] + options.penalty
                logits[name] -= step * soft * (1 - soft)
        if on_progress is not None:
            on_progress(Progress("epoch", epoch, options.epochs, losses[-1]))
    return {name: (logit > 0).cpu() for name, logit in logits.items()}, losses


def _summed_gradients(scorer: Scorer, split: Split) -> float:
    """Add the gradients of all batches of a split, and return their mean loss.

    Raises:
        WeightspaceError: the loss isn't finite, or there are no batches.
    """
    total, count = 0.0, 0
    with torch_threads(threads_of(scorer.task)), torch.enable_grad():
        for batch in scorer.task.batches(split, 0):
            loss = scorer.task.loss(scorer.network, batch)
            loss.backward()
            total, count = total + float(loss.detach()), count + 1
    mean = total / count if count else float("nan")
    if not abs(mean) < float("inf"):
        raise WeightspaceError(
            f"The {split} loss of task {scorer.task.name!r} is {mean} over {count} batches; expected a finite number. "
            "Check that the split has batches."
        )
    return mean


def _check_buffers(scorer: Scorer, base: StateDict, model: StateDict, name: str) -> None:
    """Check that a model differs from the base in parameters only.

    Raises:
        WeightspaceError: a buffer of floats differs.
    """
    for key, _ in scorer.network.named_buffers():
        if key in base and is_inexact(base[key]) and not torch.equal(base[key].to(model[key]), model[key]):
            raise WeightspaceError(
                f"The buffer {key!r} of {name} differs from the base's; masks are learned for parameters only, and "
                "buffers such as BatchNorm statistics have no gradient. Merge such networks with the method "
                "localize_and_stitch, without data."
            )
