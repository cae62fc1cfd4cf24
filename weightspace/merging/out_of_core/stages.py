"""Merge multi-document recipes: the results of earlier documents, in float32, are models of later documents.

If its methods allow it, a recipe is evaluated chunk by chunk (``graph.py``). Otherwise, intermediate results are
written to a hidden folder next to the output, ``.OUT.stages/``, or to a folder of the user's, where they are kept. Each
is a complete checkpoint, so that an interrupted merge resumes after the last complete result. All documents are planned
from headers before anything is written.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightspace.checkpoints.components import find_components, folder_metadata
from weightspace.checkpoints.safetensors_header import read_header
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._unrun import UnrunMethod
from weightspace.merging.out_of_core.graph import can_be_computed
from weightspace.merging.out_of_core.output_files import write_skeleton
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.run import Finish, MergeReport, OnBytes, check_runnable, report, run_plan
from weightspace.merging.out_of_core.stage_folders import StageFolders
from weightspace.merging.plan.listeners import Listeners
from weightspace.merging.plan.options import ExecutionOptions, Intermediate
from weightspace.merging.plan.plan import Plan
from weightspace.merging.recipe.several import used_documents
from weightspace.merging.recipe.types import Recipe


@dataclass(frozen=True)
class Step:
    """A document, its plan, and the path of its result."""

    recipe: Recipe
    plan: Plan
    out: Path


def merge_documents(
    recipe: Recipe,
    out: Path,
    options: PlanOptions,
    execution: ExecutionOptions,
    listeners: Listeners,
    *,
    dry_run: bool = False,
    finish: Finish | None = None,
    progress: OnBytes | None = None,
) -> MergeReport:
    """Merge the documents of a recipe in order.

    Args:
        recipe: the recipe of the output, with the other documents in an order in which they can be merged.
        out: path of the output.
        options: further options of the plans.
        execution: execution options.
        listeners: callbacks for warnings.
        dry_run: plan and check, but write nothing.
        finish: function to apply to the merged network of the output.
        progress: called with the bytes done and their total, over all documents.

    Raises:
        CheckpointError: as ``run_plan``, for any of the documents; or a result would replace something else.
        WeightspaceError: as ``run_plan``.
    """
    _check_not_quantised(recipe)
    folder = None if execution.intermediate_dir is None else Path(execution.intermediate_dir)
    documents = recipe.documents if folder is not None else used_documents(recipe)
    _report_unused(recipe, documents, listeners)
    _report_hidden(documents, folder, listeners)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="weightspace-") as drafts:
            plan = _graph(recipe, out, options, Path(drafts), listeners)
            if plan is not None:
                _report_unrun_methods([plan], listeners)
                check_runnable(plan, out, execution)
                planned = report(plan, out, execution)
                return planned if dry_run else run_plan(plan, out, execution, finish=finish, progress=progress)
    told = listeners if folder is not None else listeners.silenced()
    folders = StageFolders(out, folder)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as drafts:
        steps = _draft(recipe, documents, out, options, folders, Path(drafts), told)
        _report_unrun_methods([step.plan for step in steps], listeners)
        _check(steps, folders, execution)
        planned = _total([report(step.plan, step.out, execution) for step in steps])
    if dry_run:
        return planned
    with folders.open():
        return _run(steps, options, execution, listeners, folders, finish, progress)


def _check_not_quantised(recipe: Recipe) -> None:
    """Check that only the output is quantised.

    Raises:
        WeightspaceError: an intermediate result is.
    """
    for document in recipe.documents:
        if document.quantise is not None:
            raise WeightspaceError(
                f"{document.name!r} is an intermediate result, which is not quantised. Leave quantise out."
            )


def _report_unrun_methods(plans: Sequence[Plan], listeners: Listeners) -> None:
    """Report user-defined methods that a dry run does not load."""
    for plan in plans:
        if isinstance(plan.method, UnrunMethod) and listeners.notice is not None:
            listeners.notice(plan.method.note)


def _graph(recipe: Recipe, out: Path, options: PlanOptions, drafts: Path, listeners: Listeners) -> Plan | None:
    """Return the plan that computes intermediate results chunk by chunk; None if they must be written to disk."""
    done: dict[str, Intermediate] = {}
    for document in used_documents(recipe):
        name = str(document.name)
        place = drafts / StageFolders.name(name)
        plan, made = _plan_stage(recipe, document, place, options, done, listeners)
        done[name] = replace(made, plan=plan)
        write_skeleton(plan, place)
    plan = _plan_output(recipe, out, options, done, listeners)
    return plan if can_be_computed(plan) else None


def _draft(
    recipe: Recipe,
    documents: Sequence[Recipe],
    out: Path,
    options: PlanOptions,
    folders: StageFolders,
    drafts: Path,
    listeners: Listeners,
) -> list[Step]:
    """Return the steps, planned on draft files that have the right headers and sizes but no content."""
    steps: list[Step] = []
    done: dict[str, Intermediate] = {}
    for document in documents:
        name = str(document.name)
        plan, done[name] = _plan_stage(recipe, document, drafts / folders.name(name), options, done, listeners)
        write_skeleton(plan, done[name].folder)
        steps.append(Step(document, plan, folders.place(name)))
    plan = _plan_output(recipe, out, options, done, listeners)
    return [*steps, Step(recipe, plan, out)]


def _check(steps: Sequence[Step], folders: StageFolders, execution: ExecutionOptions) -> None:
    """Check paths, memory and disk space before anything is written.

    Raises:
        CheckpointError: a result would replace something else, or the disk is too small.
        WeightspaceError: a tensor needs more memory than the limit.
    """
    for step in steps[:-1]:
        folders.check(str(step.recipe.name))
    folders.check_room(sum(step.plan.written_bytes for step in steps))
    for step in steps:
        check_runnable(step.plan, step.out, execution)


def _run(
    steps: Sequence[Step],
    options: PlanOptions,
    execution: ExecutionOptions,
    listeners: Listeners,
    folders: StageFolders,
    finish: Finish | None,
    progress: OnBytes | None,
) -> MergeReport:
    """Compute all missing results and the output."""
    recipe, silent = steps[-1].recipe, listeners.silenced()
    done: dict[str, Intermediate] = {}
    reports: list[MergeReport] = []
    parts = _Parts([step.plan.tensor_bytes for step in steps], progress)
    for step in steps[:-1]:
        name = str(step.recipe.name)
        plan, done[name] = _plan_stage(recipe, step.recipe, step.out, options, done, silent)
        if folders.holds(name, plan.digest):
            reports.append(replace(report(plan, step.out, execution, seconds=0.0), resumed=len(plan.jobs)))
        else:
            reports.append(run_plan(plan, step.out, execution, progress=parts.progress))
            folders.note(name, plan.digest)
        parts.next()
    plan = _plan_output(recipe, steps[-1].out, options, done, silent)
    reports.append(run_plan(plan, steps[-1].out, execution, finish=finish, progress=parts.progress))
    return _total(reports)


def _plan_stage(
    recipe: Recipe,
    document: Recipe,
    out: Path,
    options: PlanOptions,
    done: Mapping[str, Intermediate],
    listeners: Listeners,
) -> tuple[Plan, Intermediate]:
    """Return the plan of an intermediate result in float32 (or float64 if it has such tensors), and its description.

    Later documents use the dtype that the document requests for promotion, not that of its file.
    """
    own = replace(document, documents=used_documents(replace(document, documents=recipe.documents)))
    plain = replace(options, output=replace(options.output, recorded=None), intermediate=True)
    options = _with_stages(plain, own, done)
    asked = make_plan(own, out, options, listeners)
    wide = "float64" if any(job.info.dtype == "F64" for job in asked.jobs) else "float32"
    widened = replace(own, out_dtype=wide, content={**own.content, "out_dtype": wide})
    dtypes = {job.name: job.info.dtype for job in asked.jobs}
    dtypes |= {name: dtypes[owner] for name, owner in asked.tied.items()}
    return make_plan(widened, out, options, listeners.silenced()), Intermediate(out, dtypes)


def _plan_output(
    recipe: Recipe, out: Path, options: PlanOptions, done: Mapping[str, Intermediate], listeners: Listeners
) -> Plan:
    return make_plan(recipe, out, _with_stages(options, recipe, done), listeners)


def _with_stages(options: PlanOptions, recipe: Recipe, done: Mapping[str, Intermediate]) -> PlanOptions:
    """Return the options with the results that a document may use, recording their inputs in the metadata."""
    used = {str(document.name): done[str(document.name)] for document in used_documents(recipe)}
    stored = {name: stage for name, stage in used.items() if stage.plan is None}
    made_from = {name: _made_from(_metadata(stage.folder)) for name, stage in stored.items()}
    recorded = {**(options.output.recorded or {}), **({"stages": made_from} if made_from else {})}
    return replace(
        options,
        output=replace(options.output, recorded=recorded),
        reading=replace(options.reading, intermediates=used),
    )


def _made_from(metadata: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the inputs of an intermediate result with their digests, including the code of its method."""
    code = json.loads(metadata["parameters"]).get("code")
    inputs: list[dict[str, str]] = json.loads(metadata["inputs"])
    return [*inputs, {"name": metadata["method"], "sha256": code}] if code else inputs


def _metadata(folder: Path) -> Mapping[str, str]:
    found = folder_metadata(folder)
    return read_header(find_components(folder)[0].weights.entrance).metadata if found is None else found


def _report_unused(recipe: Recipe, documents: Sequence[Recipe], listeners: Listeners) -> None:
    unused = [repr(document.name) for document in recipe.documents if document not in documents]
    if unused and listeners.notice is not None:
        names = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        listeners.notice(f"Not merged: {names}; the output does not use them. --intermediate-dir DIR merges all.")


def _report_hidden(documents: Sequence[Recipe], results: Path | None, listeners: Listeners) -> None:
    """Report documents with the name of a folder here, which would be read if the document had another name."""
    for name in (str(document.name) for document in documents):
        kept = results is not None and (results / name).absolute() == Path(name).absolute()
        if listeners.notice is not None and not kept and os.path.isdir(name):
            listeners.notice(
                f"The model {name!r} is the result of the document of that name, not the folder {name}. Write ./{name} "
                "for the folder, or give the document another name."
            )


class _Parts:
    """Progress of successive merges, reported as a single one."""

    def __init__(self, sizes: Sequence[int], progress: OnBytes | None) -> None:
        self.sizes = list(sizes)
        self.index = 0
        self.listener = progress
        self.progress = None if progress is None else self.report

    def next(self) -> None:
        """Move on to the next merge."""
        self.index += 1

    def report(self, done: int, total: int) -> None:
        """Report the progress of the current merge; its total exceeds the planned one if it downloads files."""
        self.sizes[self.index] = max(total, self.sizes[self.index])
        if self.listener is not None:
            self.listener(sum(self.sizes[: self.index]) + done, sum(self.sizes))


def _total(reports: Sequence[MergeReport]) -> MergeReport:
    """Return the report of the last merge with the total costs of all merges."""
    return replace(
        reports[-1],
        resumed=sum(each.resumed for each in reports),
        read_bytes=sum(each.read_bytes for each in reports),
        written_bytes=sum(each.written_bytes for each in reports),
        memory=max(each.memory for each in reports),
        seconds=sum(each.seconds for each in reports),
        fetched_bytes=sum(each.fetched_bytes for each in reports),
    )
