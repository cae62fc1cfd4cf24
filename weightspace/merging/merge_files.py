"""``merge_files``: checkpoints in, a checkpoint out, out of core, exact, resumable."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.arguments import checked
from weightspace.checkpoints.output_paths import check_named
from weightspace.checkpoints.remote import is_url
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.methods._unrun import UnrunMethod
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.run import Finish, MergeReport, Progress, check_runnable, report, run_plan
from weightspace.merging.out_of_core.stages import Listeners, merge_documents
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions, ReadingOptions
from weightspace.merging.recipe.parse import Recipe, Warn, read_recipe, recipe_of
from weightspace.parallel import EXECUTORS
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code, running_no_code

if TYPE_CHECKING:
    from weightspace.merging.out_of_core.aligning import Alignment


@checked
def merge_files(
    recipe_or_sources: str | os.PathLike[str] | Recipe | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str | None = None,
    base: str | os.PathLike[str] | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    evidence: Sequence[str | os.PathLike[str]] | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    reading: ReadingOptions | None = None,
    output: OutputOptions | None = None,
    execution: ExecutionOptions | None = None,
    align: Alignment | None = None,
    finish: Finish | None = None,
    dry_run: bool = False,
    lenient: bool = False,
    strict: bool = False,
    warn: Warn | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge checkpoints of one architecture, from files to files, without holding a model in memory.

    Every mistake that the headers show is an error before a byte is written. The output grows in a hidden folder beside
    ``out`` and gets its name at the end; an interrupted call, by ``kill -9`` too, resumes when it is repeated.

    Args:
        recipe_or_sources: a recipe (a path ending in ``.yml`` or ``.yaml``, or a ``Recipe``), or checkpoints:
            safetensors files, torch files, Hugging Face folders, URLs (``hf://org/model``, ``s3://…``), which are
            fetched into ``$WEIGHTSPACE_CACHE``; ``MODEL+ADAPTER`` adds a LoRA adapter to a model.
        out: ``OUT.safetensors`` is one file, ``OUT.pt`` a torch file, anything else a Hugging Face folder.
        method: a name in ``METHODS`` (default ``linear``), or a user's ``file.py:function``. Method to ``out_dtype``
            belong to sources; a recipe has its own.
        base, weights, parameters: as in ``merge``; the base is a checkpoint.
        evidence: checkpoints of statistics of data, one per model, for methods that need them.
        dtype, out_dtype: of the output's float tensors, as ``bfloat16``; the second has the last word, as in recipes.
        reading, output, execution: how the inputs are read, what the output is, how the merge runs.
        align: bring networks trained apart into one basin first.
        finish: maps the merged state dict to one of the same names and shapes, which replaces it.
        dry_run: plan and check; write nothing, and run no user code.
        lenient: warn of what is refused otherwise (unknown keys of a recipe, tensors that a model lacks).
        strict: refuse what is a warning otherwise (settings without effect, which mergekit ignores).
        warn: called with each warning; the report has them too.
        progress: called with the bytes of the output written so far, and their total; fetched bytes count too.

    Raises:
        CheckpointError: a checkpoint is missing, damaged or does not fit; an input changes meanwhile; the disk has no
            room; ``out`` is something else than a checkpoint, an input, or being written by another merge.
        WeightspaceError: the recipe, the method, a parameter or the weights do not fit; the memory does not suffice;
            integer tensors differ; a tensor or the result holds NaN or infinity.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> for name, value in {"base": 0.0, "math": 1.0, "code": 3.0}.items():
        ...     ws.save_checkpoint({"w": torch.full((2,), value)}, f"{name}.safetensors")
        >>> models = ["math.safetensors", "code.safetensors"]
        >>> report = ws.merge_files(models, "merged.safetensors", method="task_arithmetic", base="base.safetensors")
        >>> ws.load_checkpoint("merged.safetensors")
        {'w': tensor([4., 4.])}
    """
    execution = execution or ExecutionOptions()
    _check_options(out, execution, lenient=lenient, strict=strict)
    warnings = _Warnings(warn)
    listeners = Listeners(warnings if lenient else None, warnings, None if strict else warnings)
    said = {
        "base": None if base is None else os.fspath(base),
        "weights": weights,
        "parameters": parameters,
        "evidence": None if evidence is None else [os.fspath(path) for path in evidence],
        "dtype": dtype,
        "out_dtype": out_dtype,
    }
    with running_no_code() if dry_run else nullcontext():
        recipe = _recipe(recipe_or_sources, method, said, listeners)
        options = _plan_options(output or OutputOptions(), reading or ReadingOptions(), align, lenient=lenient)
        execution = replace(execution, reads=_also_read(recipe_or_sources, recipe))
        run = _merge_documents if recipe.documents else _merge_plan
        done = run(recipe, Path(out), options, execution, listeners, align, finish, progress, dry_run=dry_run)
    return replace(done, warnings=tuple(warnings.lines))


class _Warnings:
    """Warnings as they come: kept, and passed on."""

    def __init__(self, warn: Warn | None) -> None:
        self.lines: list[str] = []
        self.warn = warn

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self.warn is not None:
            self.warn(line)


def _check_options(out: str | os.PathLike[str], execution: ExecutionOptions, *, lenient: bool, strict: bool) -> None:
    """Check the options that need no recipe."""
    if is_url(out):
        raise CheckpointError(f"{out} is a URL; expected a local path to write to. Merge to a local path and copy it.")
    check_named(out)
    if execution.executor not in (known := ("auto", "threads", *EXECUTORS)):
        raise unknown("executor", execution.executor, known)
    if lenient and strict:
        raise WeightspaceError("A merge is lenient or strict; expected one of the two at most.")


def _plan_options(
    output: OutputOptions, reading: ReadingOptions, align: Alignment | None, *, lenient: bool
) -> PlanOptions:
    """Return the options of the plan: the alignment is recorded, and a lenient merge strips no prefix unasked."""
    recorded = {**({} if align is None else align.described()), **(output.recorded or {})}
    prefix = "" if lenient and reading.strip_prefix is None else reading.strip_prefix
    return PlanOptions(replace(output, recorded=recorded), replace(reading, strip_prefix=prefix), lenient)


def _merge_documents(
    recipe: Recipe,
    out: Path,
    options: PlanOptions,
    execution: ExecutionOptions,
    listeners: Listeners,
    align: Alignment | None,
    finish: Finish | None,
    progress: Progress | None,
    *,
    dry_run: bool,
) -> MergeReport:
    """Merge a recipe of several documents."""
    if align is not None:
        raise WeightspaceError(
            f"A recipe of {len(recipe.documents) + 1} documents cannot be aligned. Align and merge them one by one."
        )
    return merge_documents(
        recipe, out, options, execution, listeners, dry_run=dry_run, finish=finish, progress=progress
    )


def _merge_plan(
    recipe: Recipe,
    out: Path,
    options: PlanOptions,
    execution: ExecutionOptions,
    listeners: Listeners,
    align: Alignment | None,
    finish: Finish | None,
    progress: Progress | None,
    *,
    dry_run: bool,
) -> MergeReport:
    """Plan a recipe of one document and carry it out."""
    plan = make_plan(recipe, out, options, warn=listeners.warn, notice=listeners.notice, ignored=listeners.ignored)
    if not dry_run:
        return run_plan(plan, out, execution, align=align, finish=finish, progress=progress)
    if isinstance(plan.method, UnrunMethod) and listeners.notice is not None:
        listeners.notice(plan.method.note)
    check_runnable(plan, out, execution)
    return report(plan, out, execution)


def _recipe(
    given: str | os.PathLike[str] | Recipe | Sequence[str | os.PathLike[str]],
    method: str | None,
    said: Mapping[str, Any],
    listeners: Listeners,
) -> Recipe:
    """Return the recipe that is given, or that of the sources."""
    if isinstance(given, Recipe) or (isinstance(given, str | os.PathLike) and is_recipe(given)):
        for name, value in {"method": method, **said}.items():
            if value is not None:
                raise WeightspaceError(
                    f"A recipe says {name!r} itself, but {value!r} was given beside it. Edit the recipe."
                )
        return (
            given
            if isinstance(given, Recipe)
            else read_recipe(Path(given), warn=listeners.warn, ignored=listeners.ignored)
        )
    if isinstance(given, str | os.PathLike) or not given:
        raise WeightspaceError(f"Expected a recipe (.yml or .yaml) or a list of checkpoints, found {given!r}.")
    if wrong := [one for one in given if not isinstance(one, str | os.PathLike)]:
        raise WeightspaceError(
            f"merge_files takes paths of checkpoints; found a {type(wrong[0]).__name__}. Networks in memory: ws.merge."
        )
    return recipe_of([os.fspath(one) for one in given], method or "linear", warn=listeners.warn, **said)


def _also_read(given: object, recipe: Recipe) -> tuple[Path, ...]:
    """Return the files that are read beside the checkpoints: the recipe's own, and those of users' methods."""
    own = [Path(given)] if isinstance(given, str | os.PathLike) else []
    methods = dict.fromkeys(document.method for document in (*recipe.documents, recipe))
    return (*own, *(Path(method.rpartition(":")[0]) for method in methods if is_user_code(method)))


def is_recipe(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a recipe, by its name."""
    return Path(path).suffix.lower() in (".yml", ".yaml")
