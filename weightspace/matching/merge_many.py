"""MergeMany: each model in turn is matched to the mean of the others, until none moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.matching.multi_model import ManyMatching, ModelSet
from weightspace.matching.weight_matching import check_limits
from weightspace.progress import Progress
from weightspace.symmetry import PermutationSpec
from weightspace.tasks.protocol import Task


@checked
def merge_many(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    *,
    task: Task | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    on_progress: Callable[[Progress], None] | None = None,
) -> ManyMatching:
    """Bring several models into one basin by weight matching of each in turn to the mean of the others.

    A turn is accepted only if it raises Σ_{i<j} ⟨π_i θ_i, π_j θ_j⟩ over the parameters permuted by the spec, which
    therefore never decreases; for two models, this is the objective of weight matching.

    Args:
        spec: the architecture's spec.
        states: at least two models; not modified.
        task: unused, part of the signature of all matching methods; this one uses only weights.
        seed: determines the order of the models in each sweep, and of the groups in each matching. Reordering
            ``states`` acts like a different seed.
        max_sweeps: maximum number of sweeps, in which every model takes one turn.
        on_progress: called after every ``"sweep"``, with the objective and the number of models ``moved``.

    Returns:
        One permutation per model, their mean, and the objective initially and after every sweep.

    Raises:
        CheckpointError: a model doesn't fit the spec or has non-finite weights.
        WeightspaceError: there are fewer than two models, their integer tensors differ, or ``max_sweeps`` is below one.

    Source:
        Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836, algorithm 3.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec, a = ws.derive_spec(network, (torch.zeros(1, 4),)), network.state_dict()
        >>> b, c = (ws.permute(spec, ws.Permutation.random(spec, seed=seed), a) for seed in (1, 2))
        >>> matching = ws.merge_many(spec, [a, b, c])
        >>> torch.allclose(matching.merged["0.weight"], a["0.weight"])  # all three are permuted copies of one network
        True
    """
    check_limits(max_sweeps=(max_sweeps, 1))
    generator = torch.Generator().manual_seed(seed)
    basin = ModelSet(spec, states)
    return basin.result([basin.objective, *basin.settle(generator, max_sweeps, on_progress)])
