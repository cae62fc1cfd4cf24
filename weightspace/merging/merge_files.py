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
from weightspace.merging.out_of_core.planner import SHARD_SIZE, OutputOptions, make_plan
from weightspace.merging.out_of_core.run import Finish, MergeReport, Progress, check_runnable, report, run_plan
from weightspace.merging.out_of_core.stages import Listeners, merge_documents
from weightspace.merging.plan.members import Reading
from weightspace.merging.plan.plan import MEMORY, ExecutionOptions
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
    key: str | None = None,
    strip_prefix: str | None = None,
    align: Alignment | None = None,
    finish: Finish | None = None,
    options: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
    shard_size: int = SHARD_SIZE,
    memory: int = MEMORY,
    threads: int | None = None,
    hashes: bool = True,
    fsync: bool = True,
    executor: str = "threads",
    workers: int | None = None,
    ray_address: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    intermediate_dir: str | os.PathLike[str] | None = None,
    lenient: bool = False,
    strict: bool = False,
    warn: Warn | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge checkpoints of one architecture, from files to files, without holding a model in memory.

    All mistakes that the headers show are errors before a byte is written. The output grows in a hidden folder beside
    ``out`` and gets its name at the end; a call that was interrupted, by ``kill -9`` too, goes on where it was when
    it is made again.

    Args:
        recipe_or_sources: a recipe (a path that ends in ``.yml`` or ``.yaml``, or a ``Recipe``), or the checkpoints:
            safetensors files, torch files, Hugging Face folders; ``MODEL+ADAPTER`` adds a LoRA adapter to a model.
            Each may be a URL (``hf://org/model``, ``s3://…``) as a string: a plan reads its header, and a merge brings
            the whole into ``$WEIGHTSPACE_CACHE`` (``~/.cache/weightspace/remote``), where it stays.
        out: ``OUT.safetensors`` is one file, ``OUT.pt`` a torch file, anything else a Hugging Face folder.
        method: a name in ``METHODS`` (default ``linear``), or a user's ``file.py:function``. This and what follows
            up to ``out_dtype`` belongs to sources; a recipe says it itself.
        base: the pretrained model, for methods that work on the difference from it.
        weights: one finite number a model; equal by default.
        parameters: options of the method by name; those that may differ by model take one value or a list.
        evidence: checkpoints of statistics of data, one per model, for methods that need them.
        dtype: of the output's float tensors, as ``bfloat16``; that of the inputs by default.
        out_dtype: the same; it has the last word, as in recipes.
        key: the entry of torch files that holds the state dict (``state_dict_ema``); see ``load_checkpoint``.
        strip_prefix: taken off every name that begins with it; ``""`` takes none off. By default a prefix that all
            names of a model have and those of the others lack (``module.``, ``_orig_mod.``) is taken off, and a
            warning says so; ``lenient`` takes names as they are.
        align: bring networks that were trained apart into one basin first.
        finish: takes the merged state dict and returns one of the same names and shapes (BatchNorm's statistics
            measured anew, say) whose tensors take its place.
        options: what to keep in the metadata of ``finish``: anything that JSON can hold.
        allow_nonfinite: merge NaN and infinity too.
        shard_size: bytes of tensors in a shard of a folder, at most.
        memory: private bytes that the merge may take beside the interpreter and its libraries.
        threads: tensors made at a time; the bytes don't depend on it. Default: one a core, at most 4.
        hashes: keep the SHA-256 of the inputs in the metadata.
        fsync: force everything to the disk, so that it survives a crash of the machine as well.
        executor: ``threads`` of this process; ``processes`` of this machine, nearly twice as fast on two cores (a
            script that asks for them needs ``if __name__ == "__main__":``); ``auto``, processes where there is enough
            to merge to make up for starting them; or ``ray``, over a file system that all workers see. The bytes don't
            depend on it.
        workers: how many processes (default: as ``threads``), or pieces of work at a time on Ray (default: 2).
        ray_address: of a Ray cluster that is running; by default ``$RAY_ADDRESS``, else one of this machine.
        dry_run: plan and check, but write nothing and run nobody's code: of a user's method the parameters are read
            from its source, and a warning says so.
        force: replace a file that is no checkpoint.
        intermediate_dir: where the results of a recipe's named documents are kept, in float32; by default they grow
            beside ``out`` and are removed at the end.
        lenient: what is refused otherwise (unknown keys of a recipe, tensors that a model lacks) becomes a warning.
        strict: what is a warning otherwise (what mergekit ignores in a recipe: parameters that the method has not,
            filters that match nothing) is refused.
        warn: takes the warnings as they come; they are in the report as well. Configurations, tokens and prefixes that
            differ, a network beside the one that was taken, and files that are not copied are warnings, too.
        progress: is told the bytes of the output written so far, and of how many; those fetched count too.

    Returns:
        What was done, or would be.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or a URL cannot be read; names, shapes or kinds of tensors
            do not fit together; an input changes meanwhile; the disk has no room or refuses; ``out`` is something else,
            is made from, or is being written by another merge.
        WeightspaceError: the recipe, the method, a parameter or the weights don't fit; the memory does not suffice;
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
    if is_url(out):
        raise CheckpointError(f"{out} is a URL; expected a local path to write to. Merge to a local path and copy it.")
    check_named(out)
    if executor not in (known := ("auto", "threads", *EXECUTORS)):
        raise unknown("executor", executor, known)
    warnings: list[str] = []

    def warned(line: str) -> None:
        warnings.append(line)
        if warn is not None:
            warn(line)

    paths = None if evidence is None else [os.fspath(one) for one in evidence]
    said = {"base": None if base is None else os.fspath(base), "weights": weights, "parameters": parameters}
    said |= {"evidence": paths, "dtype": dtype, "out_dtype": out_dtype}
    if lenient and strict:
        raise WeightspaceError("A merge is lenient or strict; expected one of the two at most.")
    refused, ignored = warned if lenient else None, None if strict else warned
    recorded = {**({} if align is None else align.described()), **(options or {})}
    prefix = "" if lenient and strip_prefix is None else strip_prefix
    making = OutputOptions(shard_size, not allow_nonfinite, hashes, recorded, lenient, Reading(key, prefix))
    listeners = Listeners(refused, warned, ignored)
    with running_no_code() if dry_run else nullcontext():
        recipe = _recipe(recipe_or_sources, method, said, refused, ignored)
        reads = _also_read(recipe_or_sources, recipe)
        running = ExecutionOptions(memory, threads, hashes, fsync, executor, workers, ray_address, force, reads)
        if recipe.documents:
            _check_unaligned(recipe, align)
            done = merge_documents(
                recipe,
                Path(out),
                making,
                running,
                listeners,
                folder=None if intermediate_dir is None else Path(intermediate_dir),
                dry_run=dry_run,
                finish=finish,
                progress=progress,
            )
            return replace(done, warnings=tuple(warnings))
        plan = make_plan(recipe, Path(out), making, warn=refused, notice=warned, ignored=ignored)
    if dry_run:
        if isinstance(plan.method, UnrunMethod):
            warned(plan.method.note)
        check_runnable(plan, Path(out), running)
        done = report(plan, Path(out), running)
    else:
        done = run_plan(plan, Path(out), running, align=align, finish=finish, progress=progress)
    return replace(done, warnings=tuple(warnings))


def _check_unaligned(recipe: Recipe, align: Alignment | None) -> None:
    """Refuse to align the models of several documents, which are made one after the other."""
    if align is not None:
        raise WeightspaceError(
            f"A recipe of {len(recipe.documents) + 1} documents cannot be aligned. Align and merge them one by one."
        )


def _recipe(
    given: str | os.PathLike[str] | Recipe | Sequence[str | os.PathLike[str]],
    method: str | None,
    said: Mapping[str, Any],
    warn: Warn | None,
    ignored: Warn | None,
) -> Recipe:
    """Return the recipe that is given, or that of the sources."""
    if isinstance(given, Recipe) or (isinstance(given, str | os.PathLike) and is_recipe(given)):
        for name, value in {"method": method, **said}.items():
            if value is not None:
                raise WeightspaceError(
                    f"A recipe says {name!r} itself, but {value!r} was given beside it. Edit the recipe."
                )
        return given if isinstance(given, Recipe) else read_recipe(Path(given), warn=warn, ignored=ignored)
    if isinstance(given, str | os.PathLike) or not given:
        raise WeightspaceError(f"Expected a recipe (.yml or .yaml) or a list of checkpoints, found {given!r}.")
    if wrong := [one for one in given if not isinstance(one, str | os.PathLike)]:
        raise WeightspaceError(
            f"merge_files takes paths of checkpoints; found a {type(wrong[0]).__name__}. Networks in memory: ws.merge."
        )
    return recipe_of([os.fspath(one) for one in given], method or "linear", warn=warn, **said)


def _also_read(given: object, recipe: Recipe) -> tuple[Path, ...]:
    """Return the files that are read beside the checkpoints: the recipe's own, and those of users' methods."""
    own = [Path(given)] if isinstance(given, str | os.PathLike) else []
    methods = dict.fromkeys(document.method for document in (*recipe.documents, recipe))
    return (*own, *(Path(method.rpartition(":")[0]) for method in methods if is_user_code(method)))


def is_recipe(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a recipe, by its name."""
    return Path(path).suffix.lower() in (".yml", ".yaml")
