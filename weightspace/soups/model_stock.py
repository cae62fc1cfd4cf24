"""Model Stock as a soup: an angle-dependent point on the line from the pretrained model to the mean."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging.in_memory import merge_states
from weightspace.merging.methods import METHODS
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.scoring import Statistics, settled
from weightspace.tasks.building import blank_network, shapes_of
from weightspace.tasks.protocol import Task


def model_stock_soup(
    states_or_paths: Sequence[Source], base: Source, task: Task | None = None, *, statistics: Statistics = "auto"
) -> StateDict:
    r"""Return ``t x̄ + (1 − t) b`` for each tensor, with ``t = N cos θ / (1 + (N − 1) cos θ)``.

    ``cos θ`` is the mean cosine similarity of the task vectors ``x_i − b``. With only two fine-tunes, the result
    approximates the mean of many. All are open at once, memory-mapped from their files.

    Args:
        states_or_paths: fine-tunes, two or more, with the same names and shapes.
        base: the pretrained model ``b``.
        task: task on which BatchNorm statistics are re-estimated; see ``uniform_soup``.
        statistics: BatchNorm statistics; see ``uniform_soup``.

    Raises:
        CheckpointError: a checkpoint cannot be read, differs from the first in names or shapes, or holds NaN or
            infinity.
        WeightspaceError: there are fewer than two fine-tunes, or integer tensors differ.

    Source:
        Jang et al. 2024, https://arxiv.org/abs/2403.19522, equation 7.

    Example:
        >>> import torch
        >>> base, a, b = ({"w": torch.tensor(w)} for w in ([0.0, 0.0], [2.0, 0.0], [0.0, 2.0]))
        >>> model_stock_soup([a, b], base)["w"]  # orthogonal task vectors give the base
        tensor([0., 0.])
    """
    shapes = None if task is None else shapes_of(blank_network(task))
    (origin,) = ingredients_of([base], shapes)
    ingredients = ingredients_of(states_or_paths, shapes, base=base)
    if len(ingredients) < 2:
        raise WeightspaceError(
            f"Model Stock needs at least two fine-tunes, besides their base; found {len(ingredients)}."
        )
    start, *states = (one.mapped() for one in (origin, *ingredients))
    checked = IngredientCheck()
    for one, state in zip((origin, *ingredients), (start, *states), strict=True):
        checked.add(state, one.name)
    state = settled(task, merge_states(states, METHODS["model_stock"], start), statistics)
    return ingredients[0].as_stored(state)
