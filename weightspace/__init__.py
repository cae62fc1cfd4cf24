"""Trained networks as points in weight space: merge, align, measure the path between them, decode with a label metric.

Public names are imported on first use, so ``import weightspace`` doesn't import torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from weightspace.errors import CheckpointError, SpecError, WeightspaceError, WeightspaceWarning
from weightspace.lazy import resolver
from weightspace.version import __version__ as __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until somebody listens

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict, load_checkpoint, save_checkpoint
    from weightspace.connectivity import Curve, barrier, barrier_matrix, loss_curve, loss_plane, repair, taylor_barrier
    from weightspace.evidence import collect_evidence
    from weightspace.labels import FrechetClassifier, LabelMetric
    from weightspace.matching import (
        Matching,
        activation_matching,
        align,
        cycle_consistent,
        match,
        merge_many,
        sinkhorn_rebasin,
        straight_through,
        straight_through_many,
        weight_matching,
    )
    from weightspace.merging import (
        METHODS,
        Alignment,
        MergeReport,
        interpolate,
        merge,
        merge_files,
        reproduce,
    )
    from weightspace.networks import load_network
    from weightspace.searching import search
    from weightspace.soups import Soup, greedy_soup, learned_soup, uniform_soup, wise_ft
    from weightspace.spectra import SingularAlignment, Spectrum, singular_alignment, spectrum
    from weightspace.symmetry import (
        Element,
        Permutation,
        PermutationSpec,
        SymmetrySpec,
        Verification,
        canonicalise,
        derive_spec,
        load_spec,
        permute,
        verify_spec,
    )
    from weightspace.tasks import Task, train
    from weightspace.zoo import load_task

#: Public name -> the subpackage that defines it, in the order of the data flow through the library.
_HOMES = {
    "StateDict": "checkpoints",
    "load_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "load_network": "networks",
    "PermutationSpec": "symmetry",
    "Permutation": "symmetry",
    "SymmetrySpec": "symmetry",
    "Element": "symmetry",
    "Verification": "symmetry",
    "derive_spec": "symmetry",
    "verify_spec": "symmetry",
    "load_spec": "symmetry",
    "permute": "symmetry",
    "canonicalise": "symmetry",
    "Matching": "matching",
    "match": "matching",
    "align": "matching",
    "weight_matching": "matching",
    "merge_many": "matching",
    "cycle_consistent": "matching",
    "straight_through_many": "matching",
    "activation_matching": "matching",
    "straight_through": "matching",
    "sinkhorn_rebasin": "matching",
    "SingularAlignment": "spectra",
    "Spectrum": "spectra",
    "singular_alignment": "spectra",
    "spectrum": "spectra",
    "METHODS": "merging",
    "merge": "merging",
    "merge_files": "merging",
    "reproduce": "merging",
    "Alignment": "merging",
    "MergeReport": "merging",
    "interpolate": "merging",
    "Task": "tasks",
    "load_task": "zoo",
    "train": "tasks",
    "collect_evidence": "evidence",
    "Curve": "connectivity",
    "loss_curve": "connectivity",
    "barrier": "connectivity",
    "barrier_matrix": "connectivity",
    "taylor_barrier": "connectivity",
    "repair": "connectivity",
    "loss_plane": "connectivity",
    "Soup": "soups",
    "uniform_soup": "soups",
    "greedy_soup": "soups",
    "learned_soup": "soups",
    "wise_ft": "soups",
    "search": "searching",
    "FrechetClassifier": "labels",
    "LabelMetric": "labels",
}

__all__ = [
    "METHODS",
    "Alignment",
    "CheckpointError",
    "Curve",
    "Element",
    "FrechetClassifier",
    "LabelMetric",
    "Matching",
    "MergeReport",
    "Permutation",
    "PermutationSpec",
    "SingularAlignment",
    "Soup",
    "SpecError",
    "Spectrum",
    "StateDict",
    "SymmetrySpec",
    "Task",
    "Verification",
    "WeightspaceError",
    "WeightspaceWarning",
    "activation_matching",
    "align",
    "barrier",
    "barrier_matrix",
    "canonicalise",
    "collect_evidence",
    "cycle_consistent",
    "derive_spec",
    "greedy_soup",
    "interpolate",
    "learned_soup",
    "load_checkpoint",
    "load_network",
    "load_spec",
    "load_task",
    "loss_curve",
    "loss_plane",
    "match",
    "merge",
    "merge_files",
    "merge_many",
    "permute",
    "repair",
    "reproduce",
    "save_checkpoint",
    "search",
    "singular_alignment",
    "sinkhorn_rebasin",
    "spectrum",
    "straight_through",
    "straight_through_many",
    "taylor_barrier",
    "train",
    "uniform_soup",
    "verify_spec",
    "weight_matching",
    "wise_ft",
]


__getattr__ = resolver(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
