"""Recipes of several documents: the results of the earlier ones, in float32, are models of the later ones.

A recipe is a graph, evaluated chunk by chunk where its methods allow it (``graph.py``). Where they don't, the results
in between grow in a hidden folder beside the output, ``.OUT.stages/``; where the user says so they are kept, in a
folder of the user's. Each is a checkpoint of its own: an interrupted merge takes those that are whole and goes on with
the next. All are planned before a byte is written beside the output, from headers of what will be there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightspace.checkpoints.hf_folder import find_weights, index_metadata
from weightspace.checkpoints.safetensors_header import read_header
from weightspace.merging.methods._unrun import UnrunMethod
from weightspace.merging.out_of_core.graph import can_be_computed
from weightspace.merging.out_of_core.output_files import write_skeleton
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.run import Finish, MergeReport, OnBytes, check_runnable, report, run_plan
from weightspace.merging.out_of_core.stage_folders import StageFolders
from weightspace.merging.plan.options import ExecutionOptions, Intermediate
from weightspace.merging.plan.plan import Plan
from weightspace.merging.recipe.several import used_documents
from weightspace.merging.recipe.types import Recipe, Warn


@dataclass(frozen=True)
class Listeners:
    """Who takes the lines of planning; see ``make_plan``."""

    warn: Warn | None = None
    notice: Warn | None = None
    ignored: Warn | None = None


@dataclass(frozen=True)
class Step:
    """A document with its plan and the place of its result."""

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
    """Merge the documents of a recipe, one after the other.

    Args:
        recipe: that of the output, with the other documents in an order in which they can be merged.
        out: where the output goes.
        options: what else the plans depend on.
        execution: how it is done.
        listeners: take the warnings.
        dry_run: plan and check, but write nothing beside the output.
        finish: what to do to the merged network of the output.
        progress: is told how far all of it is.

    Raises:
        CheckpointError: as ``run_plan``, for any of the documents; something else stands where a result is to go.
        WeightspaceError: as ``run_plan``.
    """
    folder = None if execution.intermediate_dir is None else Path(execution.intermediate_dir)
    documents = recipe.documents if folder is not None else used_documents(recipe)
    _tell_of_unused(recipe, documents, listeners)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="weightspace-") as drafts:
            plan = _graph(recipe, out, options, Path(drafts), listeners)
            if plan is not None:
                _tell_of_unrun([plan], listeners)
                check_runnable(plan, out, execution)
                planned = report(plan, out, execution)
                return planned if dry_run else run_plan(plan, out, execution, finish=finish, progress=progress)
    told = listeners if folder is not None else _silenced(listeners)
    folders = StageFolders(out, folder)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as drafts:
        steps = _draft(recipe, documents, out, options, folders, Path(drafts), told)
        _tell_of_unrun([step.plan for step in steps], listeners)
        _check(steps, folders, execution)
        planned = _total([report(step.plan, step.out, execution) for step in steps])
    if dry_run:
        return planned
    with folders.open():
        return _run(steps, options, execution, listeners, folders, finish, progress)


def _tell_of_unrun(plans: Sequence[Plan], listeners: Listeners) -> None:
    """Tell of methods in files of the user's that a dry run does not load."""
    for plan in plans:
        if isinstance(plan.method, UnrunMethod) and listeners.notice is not None:
            listeners.notice(plan.method.note)


def _graph(recipe: Recipe, out: Path, options: PlanOptions, drafts: Path, listeners: Listeners) -> Plan | None:
    """Return the plan that computes the results in between chunk by chunk; None where they must be on the disk."""
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
    """Return the steps, planned on files of the right headers and sizes that have no content."""
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
    """Check what can be checked before a byte is written.

    Raises:
        CheckpointError: a result would take the place of something else, or the disk has no room for all.
        WeightspaceError: a tensor needs more memory than there may be used.
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
    """Make all results that are not there yet, and the output."""
    recipe, silent = steps[-1].recipe, _silenced(listeners)
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
    """Return the plan of a result in float32 (float64 where the document has it), and what it is to later documents.

    Later documents promote the dtype that it asks for, not that of its file.
    """
    own = replace(document, documents=used_documents(replace(document, documents=recipe.documents)))
    plain = replace(options, output=replace(options.output, recorded=None))
    options = _with_stages(plain, own, done)
    asked = _plan(own, out, options, listeners)
    wide = "float64" if any(job.info.dtype == "F64" for job in asked.jobs) else "float32"
    widened = replace(own, out_dtype=wide, content={**own.content, "out_dtype": wide})
    dtypes = {job.name: job.info.dtype for job in asked.jobs}
    dtypes |= {name: dtypes[owner] for name, owner in asked.tied.items()}
    return _plan(widened, out, options, _silenced(listeners)), Intermediate(out, dtypes)


def _plan_output(
    recipe: Recipe, out: Path, options: PlanOptions, done: Mapping[str, Intermediate], listeners: Listeners
) -> Plan:
    return _plan(recipe, out, _with_stages(options, recipe, done), listeners)


def _plan(recipe: Recipe, out: Path, options: PlanOptions, listeners: Listeners) -> Plan:
    return make_plan(recipe, out, options, warn=listeners.warn, notice=listeners.notice, ignored=listeners.ignored)


def _with_stages(options: PlanOptions, recipe: Recipe, done: Mapping[str, Intermediate]) -> PlanOptions:
    """Return the options with the results that a document may use; the metadata says what these are made from."""
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
    """Return the inputs of an intermediate result, the code of its method among them, with their digests."""
    code = json.loads(metadata["parameters"]).get("code")
    inputs: list[dict[str, str]] = json.loads(metadata["inputs"])
    return [*inputs, {"name": metadata["method"], "sha256": code}] if code else inputs


def _metadata(folder: Path) -> Mapping[str, str]:
    weights = find_weights(folder)
    return read_header(weights.entrance).metadata if weights.index is None else index_metadata(weights.entrance)


def _silenced(listeners: Listeners) -> Listeners:
    """Return listeners who allow the same and hear nothing: everything was told once."""
    return Listeners(*(None if listener is None else _drop for listener in (listeners.warn, _drop, listeners.ignored)))


def _drop(line: str) -> None:
    """Take a line that was told before."""


def _tell_of_unused(recipe: Recipe, documents: Sequence[Recipe], listeners: Listeners) -> None:
    unused = [repr(document.name) for document in recipe.documents if document not in documents]
    if unused and listeners.notice is not None:
        names = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        listeners.notice(f"Not merged: {names}; the output is not made from them. --intermediate-dir DIR merges all.")


class _Parts:
    """Tells the progress of merges one after the other as that of a whole."""

    def __init__(self, sizes: Sequence[int], progress: OnBytes | None) -> None:
        self.sizes = list(sizes)
        self.index = 0
        self.told = progress
        self.progress = None if progress is None else self.tell

    def next(self) -> None:
        """Begin the next merge."""
        self.index += 1

    def tell(self, done: int, total: int) -> None:
        """Tell how far the current merge is; it can have more to do than was planned, where it fetches."""
        self.sizes[self.index] = max(total, self.sizes[self.index])
        if self.told is not None:
            self.told(sum(self.sizes[: self.index]) + done, sum(self.sizes))


def _total(reports: Sequence[MergeReport]) -> MergeReport:
    """Return the report of all merges as that of the last one."""
    return replace(
        reports[-1],
        resumed=sum(one.resumed for one in reports),
        read_bytes=sum(one.read_bytes for one in reports),
        written_bytes=sum(one.written_bytes for one in reports),
        memory=max(one.memory for one in reports),
        seconds=sum(one.seconds for one in reports),
        fetched_bytes=sum(one.fetched_bytes for one in reports),
    )
