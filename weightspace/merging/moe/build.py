"""``build_moe``: build a mixture of experts from dense models, from files to files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weightspace.arguments import checked
from weightspace.checkpoints.atomic_write import final_target, one_line_errors, temporary_folder
from weightspace.checkpoints.fetching import fetch
from weightspace.checkpoints.hashing import sha256_of
from weightspace.checkpoints.output_paths import check_named
from weightspace.checkpoints.remote import is_url
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.moe.planner import ROUTERS, MixtureParts, mixture_parts, mixture_plan, write_router_skeleton
from weightspace.merging.moe.recipe import MixtureRecipe, read_mixture_recipe
from weightspace.merging.out_of_core.run import MergeReport, bytes_reporter, check_runnable, report, run_plan
from weightspace.merging.out_of_core.staging import is_file_name
from weightspace.merging.plan.listeners import WarningLog
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions
from weightspace.merging.plan.plan import Plan
from weightspace.merging.recipe.types import Warn
from weightspace.progress import Progress


@checked
def build_moe(
    recipe: str | os.PathLike[str] | MixtureRecipe,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    output: OutputOptions | None = None,
    execution: ExecutionOptions | None = None,
    dry_run: bool = False,
    lenient: bool = False,
    strict: bool = False,
    warn: Warn | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> MergeReport:
    """Build a mixture of experts from dense models, as mergekit-moe does, without loading whole models into memory.

    All tensors except the experts come from the base; the MLPs of each expert's model become one expert per layer.

    Args:
        recipe: a mergekit-moe recipe (``.yml``).
        out: the Hugging Face folder to write.
        seed: seed for random routers and noise.
        output, execution: options of the output and of the run.
        dry_run: plan and check, but write nothing.
        lenient, strict: warn about unknown keys and tokens of several ids, instead of refusing; refuse idle keys.
        warn: called with each warning; the report lists them, too.
        on_progress: called with ``"bytes"`` events: bytes of the output written so far, and their total.

    Raises:
        CheckpointError: a model is missing, damaged or incompatible, or ``out`` cannot be written or replaced.
        WeightspaceError: the recipe is invalid, or transformers, which runs the prompts, is not installed.

    Source:
        Komatsuzaki et al. 2022 (upcycling), https://arxiv.org/abs/2212.05055; mergekit's ``mergekit-moe``.

    Example:
        >>> from weightspace.merging import build_moe
        >>> build_moe("experts.yml", "mixture", dry_run=True)
        Traceback (most recent call last):
        ...
        weightspace.errors.CheckpointError: experts.yml cannot be read: No such file or directory.
    """
    if lenient and strict:
        raise WeightspaceError("lenient and strict exclude each other; expected at most one of them.")
    warnings = WarningLog(warn)
    path, output, execution = Path(out), output or OutputOptions(), execution or ExecutionOptions()
    _check_output(out, path)
    if not isinstance(recipe, MixtureRecipe):
        execution = replace(execution, reads=(*execution.reads, Path(recipe)))
        listeners = (warnings if lenient else None, None if strict else warnings)
        recipe = read_mixture_recipe(Path(recipe), warn=listeners[0], ignored=listeners[1])
    parts = mixture_parts(recipe, seed, warnings, lenient=lenient)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as drafts:
        routers = Path(drafts, ROUTERS)
        write_router_skeleton(parts, routers)
        plan = mixture_plan(parts, routers, "", path, output)
        check_runnable(plan, path, execution)
        done = report(plan, path, execution)
        if not dry_run:
            done = _build(parts, plan, path, output, execution, warnings, on_progress)
    return replace(done, warnings=tuple(warnings.lines))


def _check_output(out: str | os.PathLike[str], path: Path) -> None:
    if is_url(out):
        raise CheckpointError(f"{out} is a URL; expected a local path to write to.")
    check_named(out)
    if is_file_name(path):
        raise CheckpointError(f"{path} is a file name; expected a folder, which gets a config.json and weights.")


def _build(
    parts: MixtureParts,
    draft: Plan,
    out: Path,
    output: OutputOptions,
    execution: ExecutionOptions,
    warn: Warn,
    on_progress: Callable[[Progress], None] | None,
) -> MergeReport:
    """Compute the routers in a temporary folder next to the output, and write the mixture."""
    from weightspace.checkpoints import save_checkpoint
    from weightspace.merging.moe.routers import router_state
    from weightspace.merging.out_of_core.sources import Sources

    fetch(parts.base.files)
    sources = Sources(draft)
    state, router_warnings = router_state(parts, lambda name: sources.flat((0, name)))
    for line in router_warnings:
        warn(line)
    with one_line_errors(out, "written"):
        target = final_target(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as folder:
            routers = folder / ROUTERS
            save_checkpoint(state, routers)
            plan = mixture_plan(parts, routers, sha256_of(routers), out, output, router_warnings)
            return run_plan(plan, out, execution, progress=bytes_reporter(on_progress))
