"""``merge_files``: exact, resumable, out-of-core merging of checkpoint files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from weightspace.arguments import checked
from weightspace.checkpoints.output_paths import check_named
from weightspace.checkpoints.remote import is_url
from weightspace.checkpoints.yaml_file import plain_data
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.methods._unrun import UnrunMethod
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.run import (
    Finish,
    MergeReport,
    OnBytes,
    bytes_reporter,
    check_runnable,
    report,
    run_plan,
)
from weightspace.merging.out_of_core.stages import merge_documents
from weightspace.merging.plan.listeners import Listeners, WarningLog, discard
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions, ReadingOptions
from weightspace.merging.plan.plan import Plan
from weightspace.merging.recipe.parse import Recipe, Warn, read_recipe, recipe_in, recipe_of
from weightspace.parallel import EXECUTORS
from weightspace.progress import Progress
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code, running_no_code

if TYPE_CHECKING:
    from weightspace.merging.out_of_core.aligning import Alignment


#: A recipe, its path or its content; or the paths of checkpoints.
_Inputs: TypeAlias = str | os.PathLike[str] | Recipe | Mapping[str, Any] | Sequence[str | os.PathLike[str]]


@checked
def merge_files(
    recipe_or_sources: str | os.PathLike[str] | Recipe | Mapping[str, Any] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str | None = None,
    base: str | os.PathLike[str] | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    evidence: Sequence[str | os.PathLike[str]] | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    quantise: str | Mapping[str, Any] | None = None,
    reading: ReadingOptions | None = None,
    output: OutputOptions | None = None,
    execution: ExecutionOptions | None = None,
    align: Alignment | None = None,
    finish: Finish | None = None,
    dry_run: bool = False,
    lenient: bool = False,
    strict: bool = False,
    warn: Warn | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> MergeReport:
    """Merge checkpoints of one architecture, from files to files, without holding a model in memory.

    Mistakes visible in the headers are errors before a byte is written; an interrupted call resumes when repeated.

    Args:
        recipe_or_sources: a recipe (``.yml``, its content, or a ``Recipe``), or checkpoints: files, folders, URLs,
            ``MODEL+LORA``.
        out: ``OUT.safetensors``, ``OUT.pt`` or ``OUT.gguf`` is one file, anything else a Hugging Face folder.
        method, base, weights, parameters, evidence: as in ``merge``, for sources; a recipe has its own.
        dtype, out_dtype: float dtype of the output, such as ``bfloat16``; the second overrides the first.
        quantise: write matrices with 8 bits: ``fp8-tensor``, ``fp8-channel`` or ``fp8-block`` (linear layers), ``q8_0``
            in GGUF, or a mapping of ``scheme`` and ``ignore`` (parts of names to exclude); by default the scheme that
            all models share, if no dtype is named.
        reading, output, execution: options for reading the inputs, for the output, and for running the merge.
        align: align independently trained networks first.
        finish: maps the merged state dict to one of the same names and shapes, which replaces it.
        dry_run: plan and check; write nothing and run no user code.
        lenient, strict: turn some errors into warnings (unknown keys, missing tensors), or the reverse (idle settings).
        warn: called with each warning; the report has them too.
        on_progress: called with the ``"bytes"`` written so far and their total; fetched bytes count too.

    Raises:
        CheckpointError: an input is missing, damaged, incompatible or changes; ``out`` cannot be written or replaced.
        WeightspaceError: the recipe or a parameter is invalid; memory is too small; a tensor or the result not finite.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> ws.save_checkpoint({"w": torch.ones(2)}, "model.safetensors")
        >>> ws.merge_files(["model.safetensors"] * 2, "merged.safetensors").tensors
        1
    """
    settings = {"method": method, "base": base, "weights": weights, "parameters": parameters}
    settings |= {"evidence": evidence, "dtype": dtype, "out_dtype": out_dtype, "quantise": quantise}
    groups = (reading or ReadingOptions(), output or OutputOptions(), execution or ExecutionOptions())
    steps = _Steps(align, finish, bytes_reporter(on_progress), dry_run)
    return _merge(recipe_or_sources, out, settings, *groups, steps, WarningLog(warn), lenient=lenient, strict=strict)


@dataclass(frozen=True)
class _Steps:
    """Steps besides merging, and the progress callback."""

    align: Alignment | None
    finish: Finish | None
    progress: OnBytes | None
    dry_run: bool


def _merge(
    inputs: _Inputs,
    out: str | os.PathLike[str],
    settings: Mapping[str, Any],
    reading: ReadingOptions,
    output: OutputOptions,
    execution: ExecutionOptions,
    steps: _Steps,
    warnings: WarningLog,
    *,
    lenient: bool,
    strict: bool,
) -> MergeReport:
    """Check the options, read the recipe, plan and merge."""
    _check_options(out, output, execution, lenient=lenient, strict=strict)
    listeners = Listeners(warnings if lenient else None, warnings, None if strict else warnings)
    with running_no_code() if steps.dry_run else nullcontext():
        recipe = _recipe(inputs, settings, listeners)
        options = _plan_options(output, reading, steps.align, lenient=lenient)
        execution = replace(execution, reads=_further_inputs(inputs, recipe))
        run = _merge_documents if recipe.documents else _merge_plan
        done = run(recipe, Path(out), options, execution, listeners, steps)
    return replace(done, warnings=tuple(warnings.lines))


def plan_merge(
    given: _Inputs,
    options: Mapping[str, Any],
    reading: ReadingOptions,
    output: OutputOptions,
    *,
    lenient: bool,
) -> Plan:
    """Return the plan of a merge into a folder, in silence and without running a user's code.

    Args:
        given: as for ``merge_files``.
        options: those of ``merge_files`` that say what is merged, by name.
        reading, output, lenient: as there.

    Raises:
        CheckpointError: as ``merge_files``.
        WeightspaceError: as ``merge_files``, or the recipe has several documents.
    """
    said = dict.fromkeys(("method", "base", "weights", "parameters", "evidence", "dtype", "out_dtype", "quantise"))
    for name in options:
        if name not in said:
            raise unknown("option", name, said)
    listeners = Listeners(discard if lenient else None, discard, discard)
    with running_no_code():
        recipe = _recipe(given, {**said, **options}, listeners)
        if recipe.documents:
            raise WeightspaceError(
                f"A recipe of {len(recipe.documents) + 1} documents merges what is not there yet. Compare "
                "the sources of its documents one by one."
            )
        planning = _plan_options(output, reading, None, lenient=lenient)
        return make_plan(recipe, Path("merged"), planning, listeners)


def _check_options(
    out: str | os.PathLike[str], output: OutputOptions, execution: ExecutionOptions, *, lenient: bool, strict: bool
) -> None:
    """Check the options that do not depend on the recipe."""
    if is_url(out):
        raise CheckpointError(f"{out} is a URL; expected a local path to write to. Merge to a local path and copy it.")
    check_named(out)
    if execution.executor not in (known := ("auto", "threads", *EXECUTORS)):
        raise unknown("executor", execution.executor, known)
    if output.device != "cpu":
        import torch  # only here: planning does without

        from weightspace.devices import check_device

        check_device(output.device, torch.float64)
    if lenient and strict:
        raise WeightspaceError("lenient and strict exclude each other; expected at most one of them.")


def _plan_options(
    output: OutputOptions, reading: ReadingOptions, align: Alignment | None, *, lenient: bool
) -> PlanOptions:
    """Return the options of the plan: the alignment is recorded, and a lenient merge strips prefixes only if asked."""
    recorded = {**({} if align is None else align.described()), **(output.recorded or {})}
    prefix = "" if lenient and reading.strip_prefix is None else reading.strip_prefix
    return PlanOptions(replace(output, recorded=recorded), replace(reading, strip_prefix=prefix), lenient)


def _merge_documents(
    recipe: Recipe,
    out: Path,
    options: PlanOptions,
    execution: ExecutionOptions,
    listeners: Listeners,
    steps: _Steps,
) -> MergeReport:
    """Merge a recipe of several documents."""
    if steps.align is not None:
        raise WeightspaceError(
            f"A recipe of {len(recipe.documents) + 1} documents cannot be aligned. Align and merge them one by one."
        )
    return merge_documents(
        recipe,
        out,
        options,
        execution,
        listeners,
        dry_run=steps.dry_run,
        finish=steps.finish,
        progress=steps.progress,
    )


def _merge_plan(
    recipe: Recipe,
    out: Path,
    options: PlanOptions,
    execution: ExecutionOptions,
    listeners: Listeners,
    steps: _Steps,
) -> MergeReport:
    """Plan a recipe of one document and run the plan."""
    plan = make_plan(recipe, out, options, listeners)
    if steps.align is not None and plan.vocabulary is not None:
        raise WeightspaceError(
            "Models whose rows are moved by token (tokenizer) cannot be aligned in one go. Merge each with itself "
            "under the common tokenizer first, and align the results."
        )
    if not steps.dry_run:
        return run_plan(plan, out, execution, align=steps.align, finish=steps.finish, progress=steps.progress)
    if isinstance(plan.method, UnrunMethod) and listeners.notice is not None:
        listeners.notice(plan.method.note)
    check_runnable(plan, out, execution)
    return report(plan, out, execution)


#: Option -> what to write in a recipe instead.
_IN_RECIPES = {
    "method": "set `merge_method: {0}`",
    "base": "set `base_model: {0}`",
    "weights": "give each model its `parameters: {{weight: …}}`",
    "parameters": "set them under `parameters`",
    "evidence": "give each model its `evidence`",
    "dtype": "set `dtype: {0}`",
    "out_dtype": "set `out_dtype: {0}`",
    "quantise": "set `quantise: {0}`",
}


def _recipe(
    inputs: _Inputs,
    settings: Mapping[str, Any],
    listeners: Listeners,
) -> Recipe:
    """Return the recipe among the inputs, or one made for the sources."""
    if isinstance(inputs, Recipe | Mapping) or (isinstance(inputs, str | os.PathLike) and is_recipe(inputs)):
        for name, value in settings.items():
            if value is not None:
                option = {"parameters": "the method's parameters"}.get(name, f"--{name.replace('_', '-')}")
                raise WeightspaceError(
                    f"{name!r} ({option}) cannot be combined with a recipe; found {value!r}. Expected it in the "
                    f"recipe: {_IN_RECIPES[name].format(value)}."
                )
        if isinstance(inputs, Recipe):
            return inputs
        if isinstance(inputs, Mapping):
            return _recipe_in(inputs, listeners)
        return read_recipe(Path(inputs), warn=listeners.warn, ignored=listeners.ignored)
    if isinstance(inputs, str | os.PathLike) or not inputs:
        raise WeightspaceError(f"Expected a recipe (.yml or .yaml) or a list of checkpoints, found {inputs!r}.")
    if wrong := [source for source in inputs if not isinstance(source, str | os.PathLike)]:
        raise WeightspaceError(
            f"merge_files takes checkpoint paths; found a {type(wrong[0]).__name__}. Networks in memory: ws.merge."
        )
    base, evidence = settings["base"], settings["evidence"]
    options = {
        **settings,
        "method": settings["method"] or "linear",
        "base": None if base is None else os.fspath(base),
        "evidence": None if evidence is None else [os.fspath(path) for path in evidence],
    }
    return recipe_of([os.fspath(path) for path in inputs], warn=listeners.warn, **options)


def _recipe_in(content: Mapping[str, Any], listeners: Listeners) -> Recipe:
    """Return the recipe with a content that was given in Python."""
    if "merge_method" not in content:
        raise WeightspaceError(
            "merge_files: the mapping has no merge_method, so it is no recipe; expected a recipe or a list of "
            "checkpoint paths. Networks in memory: ws.merge."
        )
    return recipe_in([plain_data(content, "the recipe")], "the recipe", listeners.warn, listeners.ignored)


def _further_inputs(inputs: object, recipe: Recipe) -> tuple[Path, ...]:
    """Return the files that are read besides the checkpoints: the recipe's own, and those of users' methods."""
    own = [Path(inputs)] if isinstance(inputs, str | os.PathLike) else []
    methods = dict.fromkeys(document.method for document in (*recipe.documents, recipe))
    return (*own, *(Path(method.rpartition(":")[0]) for method in methods if is_user_code(method)))


def is_recipe(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a recipe, by its suffix."""
    return Path(path).suffix.lower() in (".yml", ".yaml")
