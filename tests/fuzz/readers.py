"""Readers of the library, one function per kind of file; all of them take its path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace.checkpoints.fetching import fetch
from weightspace.checkpoints.output_paths import KINDS, is_earlier_result
from weightspace.errors import WeightspaceError
from weightspace.labels.inputs import read_array
from weightspace.labels.wordnet import read_wordnet
from weightspace.lora import read_adapter
from weightspace.merging import ExecutionOptions, merge_files, reproduce
from weightspace.symmetry import Element, Permutation, PermutationSpec, SymmetrySpec, fold
from weightspace.symmetry.kinds.verified import read_spec
from weightspace.symmetry.permutation import check_fits

#: What a merge may say that was planned: its values, which a plan does not see, are to blame.
_OF_VALUES = ("NaN", "infinit", "overflow", "differ", "negative", "--memory")

#: What reads a file; every one of them is called.
Reader = Callable[[Path], Any]


class FuzzError(AssertionError):
    """A reader did something else than read or refuse."""


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def load(path: Path) -> None:
    """Read every byte of every tensor."""
    for tensor in ws.load_checkpoint(path).values():
        tensor.float().sum() if tensor.is_floating_point() else tensor.sum()


def inspect(path: Path) -> None:
    """Print a checkpoint as the command line does; nothing in it may drive the terminal."""
    from weightspace.cli import main

    for arguments in (["inspect", str(path)], ["inspect", "--json", str(path)]):
        result = CliRunner().invoke(main, arguments)
        if result.exit_code not in (0, 2) or not isinstance(result.exception, SystemExit | None):
            raise FuzzError(f"exit {result.exit_code}: {result.exception!r}") from result.exception
        odd = [line for line in result.output.split("\n") if not line.isprintable()]
        if odd:
            raise FuzzError(f"printed {odd[0][:200]!r}")
        if result.exit_code == 2:
            raise WeightspaceError(result.output.strip())


def merged(sources: Sequence[str] | str, folder: Path, **options: Any) -> None:
    """Plan a merge, carry it out where the plan is fine, and take the result away: only a merge writes anything."""
    options |= {"execution": ExecutionOptions(threads=1, fsync=False), "warn": lambda _: None}
    with inside(folder):
        merge_files(sources, folder / "out", dry_run=True, **options)
        try:
            merge_files(sources, folder / "out", **options)
        except WeightspaceError as error:
            if not any(word in str(error) for word in _OF_VALUES):
                raise FuzzError(f"the plan was fine, the merge said: {error}") from error
            raise
        shutil.rmtree(folder / "out")


def in_place(path: Path) -> None:
    """Merge the folder of a file with another one of the kind."""
    merged([str(path.parent), "b"], path.parent.parent)


def folder(path: Path) -> None:
    """Load the folder of a file."""
    load(path.parent)


def scores(path: Path) -> None:
    """Read an array of several."""
    read_array(path, "scores")


def adapter(path: Path) -> None:
    """Read the adapter that a file belongs to."""
    read_adapter(path.parent)


def fisher(path: Path) -> None:
    """Merge two models by evidence."""
    evidence = [f"of-{model}.safetensors" for model in "ab"]
    merged([f"{model}.safetensors" for model in "ab"], path.parent, method="fisher", evidence=evidence)


def wordnet(path: Path) -> None:
    """Read a database of nouns, not the one that was read before."""
    read_wordnet.__wrapped__(path.parent)


def recipe(path: Path) -> None:
    """Merge by a recipe."""
    merged(str(path), path.parent)


def with_adapter(path: Path) -> None:
    """Merge with an adapter on a model."""
    merged([f"a+{path.parent}", "b"], path.parent.parent)


def earlier_results(path: Path) -> None:
    """Ask of every kind whether the file is one."""
    for kind in KINDS:
        is_earlier_result(path, kind)


def permuted(path: Path) -> None:
    """Permute a checkpoint that fits the good spec by what a spec says."""
    spec, _ = read_spec(path)
    shapes = {"a.weight": (4, 3), "b.weight": (4, 4), "b.bias": (4,), "n.mean": (4,)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    check_fits(spec, state)  # as every use of a spec does first
    ws.permute(spec, Permutation.identity(spec), state)


def moved(path: Path) -> None:
    """Fold a checkpoint that fits the good symmetry spec, and move its units, by what a spec says."""
    spec, _ = read_spec(path)
    shapes = {"a.weight": (3, 4), "b.weight": (4, 4), "b.bias": (4,), "n.weight": (4,)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    check_fits(spec, state)
    if isinstance(spec, SymmetrySpec):
        Element.random(spec, seed=0).apply(fold(spec, state))


def element(path: Path) -> None:
    """Load an element for the spec beside it."""
    Element.load(path, SymmetrySpec.load(path.with_name("spec.yaml")))


def permutation(path: Path) -> None:
    """Load a permutation for the spec beside it."""
    Permutation.load(path, PermutationSpec.load(path.with_name("spec.yaml")))


def mirrored(path: Path) -> None:
    """Fetch what a mirror's record says is missing."""
    file = next((path.parent / "files").rglob("*.safetensors"))
    for marker in (path.parent / "whole").iterdir():
        marker.unlink()
    before = os.environ.get("WEIGHTSPACE_CACHE")
    os.environ["WEIGHTSPACE_CACHE"] = str(path.parent.parent)
    try:
        fetch([file])
    finally:
        os.environ.pop("WEIGHTSPACE_CACHE")
        if before is not None:
            os.environ["WEIGHTSPACE_CACHE"] = before


def reproduced(path: Path) -> None:
    """Make a merge again."""
    with inside(path.parent):
        reproduce(path.name)
