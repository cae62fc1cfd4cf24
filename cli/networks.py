"""The task, network and spec selected by a command's options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.networks import Network
    from weightspace.symmetry import PermutationSpec, SymmetrySpec
    from weightspace.tasks import Task


def load_placed(
    name: str,
    data: Path | None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    source: str | None = None,
    inputs: Sequence[str] = (),
) -> Task:
    """Load the task of the options, with its networks set by ``--device``, ``--dtype`` and ``--network``."""
    from weightspace.tasks import placed
    from weightspace.zoo import load_task

    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = False  # float32 scores must not be computed in TF32
    task = load_task(name, data=data)
    return placed(task, device=device, dtype=dtype, source=source, inputs=inputs)


def load_any_task(name: str | None, data: Path | None, **place: Any) -> Task | None:
    """Load the task of the options, or return None without one; see ``load_placed``."""
    return None if name is None else load_placed(name, data, **place)


def load_tasks(names: Sequence[str], data: Path | None, count: int) -> list[Task]:
    """Load one task for each of several networks, or repeat the one for all; equal names give the same object."""
    from weightspace.zoo import load_task

    found = {name: load_task(name, data=data) for name in names}
    return [found[name] for name in (names if len(names) > 1 else [*names] * count)]


def name_of(found: Task | None) -> str | None:
    """Return the name of a task, or None without one."""
    return None if found is None else found.name


def network_of(source: str | None, inputs: tuple[str, ...], found: Task | None) -> Network | None:
    """Return the network of the options: the task's (``--network`` overrides it), that of ``--network``, or None."""
    from weightspace.networks import Network, load_network

    if found is None:
        return None if source is None else load_network(source, inputs=inputs)
    from weightspace.tasks import at_home

    home = at_home(found)
    return Network(home.network(), home.example_args)


def spec_of(
    spec_file: str | None,
    source: str | None,
    inputs: tuple[str, ...],
    found: Task | None = None,
    *,
    method: str | None = None,
) -> PermutationSpec | SymmetrySpec:
    """Return a verified spec: read from a file, or derived from the network of the options.

    Args:
        spec_file: the file, or None.
        source: the network of ``--network``, or None.
        inputs: its example inputs.
        found: the task, or None.
        method: the matching method, which needs permutations or all symmetries; by default permutations.
    """
    from weightspace import derive_spec
    from weightspace.matching.registry import MANY_MATCHINGS, MATCHINGS
    from weightspace.symmetry.spec import check_permutations

    if inputs and source is None and found is None:
        raise WeightspaceError("--input needs --network or --task, which was not given. Leave it out.")
    built = network_of(source, inputs, found)
    row = {**MATCHINGS, **MANY_MATCHINGS}.get(method or "")
    symmetry = "permutations" if row is None else row.symmetry
    if spec_file is not None:
        if symmetry == "permutations":
            check_permutations(spec_file)
        return load_any_spec(spec_file, built if source is not None else None)
    if built is None:
        raise WeightspaceError("The network is unknown. Give --network, --task, or --spec with a spec file.")
    return derive_spec(built.module, built.example_args, symmetry=symmetry)


def load_any_spec(path: str, built: Network | None) -> PermutationSpec | SymmetrySpec:
    """Read a spec file; an edited one needs the network."""
    from weightspace import load_spec
    from weightspace.symmetry.kinds.verified import load_verified

    return load_verified(path) if built is None else load_spec(path, built.module, built.example_args)


def matched(
    method: str, spec: PermutationSpec | SymmetrySpec, states: Sequence[StateDict], seed: int, found: Task | None
) -> list[StateDict]:
    """Return the first state, and the others matched to it by a method of ``--matching``; no function changes."""
    from weightspace.matching import match

    target, *sources = states
    ends = [match(spec, target, one, method, task=found, seed=seed).apply(target, one) for one in sources]
    return [ends[0][0] if ends else target, *(moved for _, moved in ends)]
