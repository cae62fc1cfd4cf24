"""The task, the network and the spec that the options of a command name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.networks import Network
    from weightspace.symmetry import PermutationSpec
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
    """Return the task that the options name, with its networks where ``--device``, ``--dtype``, ``--network`` say."""
    from weightspace.tasks import placed
    from weightspace.zoo import load_task

    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = False  # scores in float32 are scores in float32
    task = load_task(name, data=data)
    return placed(task, device=device, dtype=dtype, source=source, inputs=inputs)


def load_any_task(name: str | None, data: Path | None, **place: Any) -> Task | None:
    """Return the task that the options name, or None; see ``load_placed``."""
    return None if name is None else load_placed(name, data, **place)


def name_of(found: Task | None) -> str | None:
    """Return the name of a task, None without one."""
    return None if found is None else found.name


def network_of(source: str | None, inputs: tuple[str, ...], found: Task | None) -> Network | None:
    """Return the network that the options name: that of the task, which is that of ``--network`` if given, or None."""
    from weightspace.networks import Network, load_network

    if found is None:
        return None if source is None else load_network(source, inputs=inputs)
    from weightspace.tasks import at_home

    home = at_home(found)
    return Network(home.network(), home.example_args)


def spec_of(
    spec_file: str | None, source: str | None, inputs: tuple[str, ...], found: Task | None = None
) -> PermutationSpec:
    """Return a verified spec: read from a file, or derived from the network of the options."""
    from weightspace import derive_spec

    if inputs and source is None and found is None:
        raise WeightspaceError("--input is for --network or --task, which was not given. Leave it out.")
    built = network_of(source, inputs, found)
    if spec_file is not None:
        return load_any_spec(spec_file, built if source is not None else None)
    if built is None:
        raise WeightspaceError("Which network is it? Give --network, --task, or --spec with a spec file.")
    return derive_spec(built.module, built.example_args)


def load_any_spec(path: str, built: Network | None) -> PermutationSpec:
    """Read a spec file; one that was edited needs the network."""
    from weightspace import PermutationSpec, load_spec

    return PermutationSpec.load(path) if built is None else load_spec(path, built.module, built.example_args)


def matched(
    method: str, spec: PermutationSpec, states: Sequence[StateDict], seed: int, found: Task | None
) -> list[StateDict]:
    """Return the first of the states as it is, and the others matched to it by a method of ``--matching``."""
    from weightspace import permute
    from weightspace.matching import match

    target, *sources = states
    matchings = (match(spec, target, one, method, task=found, seed=seed) for one in sources)
    return [target, *(permute(spec, one.permutation, state) for one, state in zip(matchings, sources, strict=True))]
