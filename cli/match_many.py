"""``weightspace match`` for several checkpoints: a permutation for each, and their mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cli.networks import name_of
from weightspace.cli.options import check_apart, check_writable
from weightspace.cli.printing import echo
from weightspace.cli.progress import Update, progress
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat

from weightspace import WeightspaceError
from weightspace.matching import registry

if TYPE_CHECKING:
    from weightspace.progress import Progress
    from weightspace.symmetry import PermutationSpec, SymmetrySpec
    from weightspace.tasks import Task


def match_many(
    method: str,
    spec: PermutationSpec | SymmetrySpec,
    paths: Sequence[str],
    task: Task | None,
    *,
    seed: int,
    given: Mapping[str, Any],
    output: str,
    merged: str | None,
    as_json: bool,
) -> None:
    """Match checkpoints, write their permutations as ``1-name.safetensors`` … to a folder, and print the result."""
    from weightspace import load_checkpoint, save_checkpoint
    from weightspace.checkpoints import provenance
    from weightspace.matching import ManyMatching

    folder = Path(output)
    if folder.suffix or folder.is_file():
        raise WeightspaceError(f"{method} writes one permutation per checkpoint: {output} must be a folder.")
    files = [folder / f"{number}-{Path(path).stem}.safetensors" for number, path in enumerate(paths, start=1)]
    for file in files:
        check_writable(file, "file")
        check_apart(file, *paths)
    states = [load_checkpoint(path) for path in paths]
    begin = time.perf_counter()
    with progress(method) as update:
        found = registry.match_many(spec, states, method, task=task, seed=seed, on_progress=shown(update), **given)
    seconds = time.perf_counter() - begin
    folder.mkdir(parents=True, exist_ok=True)
    for one, file in zip(found.permutations if isinstance(found, ManyMatching) else found.elements, files, strict=True):
        one.save(file)
    if merged is not None:
        metadata = provenance(paths, method, {"seed": seed, "spec": spec.digest})
        save_checkpoint(found.merged, merged, metadata=metadata, companions_from=paths[0])
        note_flat(merged, paths[0])
    written = [*map(str, files), *files_of(merged)]
    if as_json:
        report = {
            "permutations": [str(file) for file in files],
            "merged": merged,
            "method": method,
            "seed": seed,
            "objective": found.objective,
            "groups": len(spec.groups),
            "seconds": seconds,
        }
        echo_report(report, output=output, files=written, task=name_of(task))
        return
    echo(f"{registry.MANY_MATCHINGS[method].objective}: {found.objective[0]:.6g} → {found.objective[-1]:.6g}")
    echo_files(written)


def check_two(method: str, others: Sequence[str], merged: str | None) -> None:
    """Raise a WeightspaceError if a method for two checkpoints is given more, or ``--merged``."""
    several = ", ".join(registry.MANY_MATCHINGS)
    if others:
        raise WeightspaceError(f"{method} takes two checkpoints; found {2 + len(others)}. For more, use {several}.")
    if merged is not None:
        raise WeightspaceError(f"{method} doesn't merge; --merged works with {several}.")


def shown(update: Update) -> Callable[[Progress], None]:
    """Return a callback that shows the progress of a method."""

    def show(at: Progress) -> None:
        if at.stage == "trial":
            lowest = at.details["best"]
            update(at.index, at.total, f"step {at.index}/{at.total}, {at.value:.6g}, lowest {lowest:.6g}")
        else:
            update(0, 0, f"{at.stage} {at.index}, objective {at.value:.6g}")

    return show
