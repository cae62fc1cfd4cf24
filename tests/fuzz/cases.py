"""Every kind of file that the library reads, with what reads it, and a run of one damaged file of a kind."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import documents
import torch
from click.testing import CliRunner
from mutations import BLIND, JSON, TABLE, ZIP, Mutation, changed_json, changed_structure, changed_yaml, text_of

import weightspace as ws
from weightspace.adapters import read_adapter
from weightspace.checkpoints import load_metadata, summarise
from weightspace.checkpoints.contents import read_contents
from weightspace.checkpoints.fetching import fetch, local_path
from weightspace.checkpoints.recognition import KINDS, is_earlier_result
from weightspace.connectivity import Curve
from weightspace.errors import WeightspaceError
from weightspace.labels import LabelMetric
from weightspace.labels.inputs import read_array, read_names, read_pairs
from weightspace.merging import merge_files, reproduce
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.symmetry.permuting import check_fits
from weightspace.symmetry.spec import read_spec
from weightspace.tasks.idx import read_idx

#: Seconds of the processor that one file may take.
LIMIT = 10.0

#: What reads a file; every one of them is called.
Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes a good one, and what belongs to it, into an empty folder; returns the file that is damaged.
        readers: are given the file.
        mutations: damage it.
        share: how often it comes.
        writes: the folder in which something may be written, beside the file.
    """

    make: Callable[[Path], Path]
    readers: Sequence[Reader]
    mutations: Sequence[Mutation]
    share: int
    writes: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a damaged file: the seconds of the slowest reader, and what the first said that refused it."""

    result: Literal["read", "refused"]
    seconds: float
    message: str


class Failure(AssertionError):
    """A reader did something else than read or refuse."""


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
            raise Failure(f"exit {result.exit_code}: {result.exception!r}") from result.exception
        odd = [line for line in result.output.split("\n") if not line.isprintable()]
        if odd:
            raise Failure(f"printed {odd[0][:200]!r}")
        if result.exit_code == 2:
            raise WeightspaceError(result.output.strip())


def merged(sources: Sequence[str] | str, folder: Path, **options: Any) -> None:
    """Plan a merge, carry it out where the plan is fine, and take the result away; nothing else may be left."""
    out = folder / "out"
    options |= {"executor": "threads", "threads": 1, "fsync": False, "warn": lambda _: None}
    with inside(folder):
        try:
            merge_files(sources, out, dry_run=True, **options)
            try:
                merge_files(sources, out, **options)
            except WeightspaceError as error:
                if not any(part in str(error) for part in ("NaN", "infinit", "overflow", "differ", "--memory")):
                    raise Failure(f"the plan was fine, the merge said: {error}") from error
                raise
            finally:
                shutil.rmtree(out, ignore_errors=True)
        finally:
            shutil.rmtree(folder / ".out.merge", ignore_errors=True)


def in_place(path: Path) -> None:
    """Merge the folder of a file with another one of the kind."""
    merged([str(path.parent), "b"], path.parent.parent)


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


def changed_header(content: bytes, draw: random.Random) -> bytes:
    """Change what the header of a safetensors file says, its length right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = text_of(changed_structure(header, draw), draw).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def changed_metadata(content: bytes, draw: random.Random) -> bytes:
    """Change what JSON or YAML in the metadata of a safetensors file says."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    key = draw.choice([key for key in metadata if key != "format"])
    change = changed_json if metadata[key].startswith(("{", "[")) else draw.choice((*BLIND, changed_yaml))
    metadata[key] = change(metadata[key].encode(), draw).decode("utf-8", "replace")
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def changed_array(content: bytes, draw: random.Random) -> bytes:
    """Change what the header of an array says."""
    shape = draw.choice(
        ("(3, 2**40)", "(-1,)", "(9**99,)", "(3,)", "(" * 500, "(1e9,)", "([],)", "(0, 3)", "({},)", "()")
    )
    kind = draw.choice(
        ("|O", "<f8", "<f4", ">i2", "|S5", "<U3", "[('a','<f8')]", "<M8[s]", "|V99999999999", "x" * 3000)
    )
    text = f"{{'descr': {kind if kind[0] == '[' else repr(kind)}, 'fortran_order': {draw.choice((True, False, 3))}, "
    text = (text + f"'shape': {shape}, }}").encode()
    return content[:8] + struct.pack("<H", len(text)) + text + content[-72:]


HEADER: tuple[Mutation, ...] = (*BLIND, changed_header, changed_header, changed_header)
CHECKPOINT: tuple[Reader, ...] = (load, load_metadata, read_contents, summarise, earlier_results)


def beside(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Return what makes one file in a folder."""
    return lambda folder: make(folder / name)


def of_model(name: str) -> Callable[[Path], Path]:
    """Return what makes models ``a`` and ``b``, of which a file of ``a`` is damaged."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b")):
            documents.model_folder(folder / model, seed)
        return folder / "a" / name

    return make


def recipe_of(content: dict[str, Any]) -> Callable[[Path], Path]:
    """Return what makes a recipe and its models."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b", "base")):
            documents.model_folder(folder / model, seed)
        (folder / "recipe.yml").write_text(documents.recipe_text(content))
        return folder / "recipe.yml"

    return make


def index_file(folder: Path) -> Path:
    """Make two models, one in shards, of which the index is damaged."""
    documents.model_folder(folder / "b", 1)
    return documents.sharded_folder(folder / "a") / "model.safetensors.index.json"


def adapter_file(name: str) -> Callable[[Path], Path]:
    """Return what makes models and an adapter, of which a file is damaged."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b")):
            documents.model_folder(folder / model, seed)
        return documents.adapter_folder(folder / "adapter") / name

    return make


def merged_file(folder: Path) -> Path:
    """Make a merge that can be made again."""
    for seed, model in enumerate(("a", "b")):
        ws.save_checkpoint(documents.language_model(seed), folder / f"{model}.safetensors")
    with inside(folder):
        merge_files(["a.safetensors", "b.safetensors"], "c.safetensors", executor="threads", threads=1, fsync=False)
    return folder / "c.safetensors"


def text_file(name: str, text: str) -> Callable[[Path], Path]:
    """Return what makes a file of text."""

    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def mirror_record(folder: Path) -> Path:
    """Make a mirror of which the header is there."""
    from fsspec.implementations.memory import MemoryFileSystem

    documents.checkpoint(folder / "x.safetensors")
    system = MemoryFileSystem()
    system.put_file(str(folder / "x.safetensors"), "/x.safetensors")
    system.store["/x.safetensors"].created = datetime(2026, 1, 1, tzinfo=timezone.utc)  # the same in every run
    os.environ["WEIGHTSPACE_CACHE"] = str(folder / "cache")
    try:
        path = local_path("memory://x.safetensors")
    finally:
        del os.environ["WEIGHTSPACE_CACHE"]
    return path.parents[1] / "weightspace-mirror.json"


KINDS_OF_FILES: dict[str, Kind] = {
    "safetensors": Kind(beside("x.safetensors", documents.checkpoint), CHECKPOINT, HEADER, 10),
    "index": Kind(index_file, (lambda path: load(path.parent), in_place), JSON, 7),
    "torch": Kind(beside("x.pt", documents.checkpoint), CHECKPOINT, ZIP, 14),
    "old torch": Kind(beside("x.pt", documents.old_torch_file), CHECKPOINT, BLIND, 7),
    "recipe": Kind(recipe_of(documents.RECIPE), (recipe,), (*BLIND, changed_yaml, changed_yaml, changed_yaml), 9),
    "recipe as JSON": Kind(recipe_of(documents.RECIPE), (recipe,), (changed_json,), 6),
    "slices": Kind(recipe_of(documents.SLICES), (recipe,), (changed_json, changed_yaml), 4),
    "spec": Kind(beside("spec.yaml", documents.spec_file), (PermutationSpec.load, permuted), (*BLIND, changed_yaml), 6),
    "spec as JSON": Kind(
        beside("spec.yaml", documents.spec_file), (PermutationSpec.load, permuted), (changed_json,), 6
    ),
    "permutation": Kind(beside("p.safetensors", documents.permutation_file), (permutation,), HEADER, 4),
    "config": Kind(of_model("config.json"), (in_place,), JSON, 7),
    "tokenizer": Kind(of_model("tokenizer.json"), (in_place,), JSON, 5),
    "tokenizer config": Kind(of_model("tokenizer_config.json"), (in_place,), JSON, 3),
    "adapter config": Kind(
        adapter_file("adapter_config.json"), (lambda path: read_adapter(path.parent), with_adapter), JSON, 7
    ),
    "adapter": Kind(adapter_file("adapter_model.safetensors"), (with_adapter,), HEADER, 4),
    "inspected": Kind(beside("x.safetensors", documents.checkpoint), (inspect,), (changed_header,), 4),
    "arrays": Kind(beside("x.npz", documents.npz_file), (lambda path: read_array(path, "scores"),), ZIP, 7),
    "array": Kind(beside("x.npy", documents.npy_file), (read_array,), (*BLIND, changed_array), 5),
    "matrix": Kind(text_file("x.csv", "0,1,2\n1,0,1\n2,1,0\n"), (read_array,), TABLE, 3),
    "names": Kind(text_file("x.json", '["a", "b", 3]'), (read_names,), JSON, 2),
    "pairs": Kind(text_file("x.csv", "a,b\nb,c,1.5\n"), (read_pairs,), TABLE, 3),
    "metric": Kind(beside("m.safetensors", documents.metric_file), (LabelMetric.load,), HEADER, 5),
    "curve": Kind(beside("c.json", documents.curve_file), (Curve.load,), JSON, 3),
    "curve as table": Kind(beside("c.csv", documents.curve_file), (Curve.load,), TABLE, 3),
    "images": Kind(beside("x.gz", documents.idx_file), (read_idx,), BLIND, 2),
    "metadata": Kind(merged_file, (reproduced,), (changed_metadata,), 4),
    "mirror": Kind(mirror_record, (mirrored,), JSON, 4, writes="cache/"),
}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def contents_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the size and the beginning of every file below a folder."""
    found = {}
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root) / name
            with open(path, "rb") as file:
                found[str(path.relative_to(folder))] = (path.stat().st_size, file.read(100_000))
    return found


class Target:
    """A kind of file in a folder of its own, one file of which is damaged again and again."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.kind = KINDS_OF_FILES[name]
        self.folder = folder
        self.path = self.kind.make(folder)
        if name.endswith("as JSON") or name == "slices":
            import yaml

            self.path.write_text(json.dumps(yaml.safe_load(self.path.read_text())))
        self.content = self.path.read_bytes()

    def damaged(self, number: int, seed: int) -> bytes:
        """Return the file of a number, always the same."""
        draw = random.Random(f"{seed} {self.name} {number}")
        mutation = draw.choice(list(self.kind.mutations))
        try:
            return mutation(self.content, draw)
        except UnicodeError:
            return BLIND[0](self.content, draw)

    def run(self, content: bytes) -> Outcome:
        """Let every reader read a damaged file.

        Raises:
            Failure: one of them raised something else than an error of this library, one that is no short line, took
                too long, or changed a file.
        """
        self.path.write_bytes(content)
        before = contents_of(self.folder)
        outcome = Outcome("read", 0.0, "")
        for reader in self.kind.readers:
            start = time.process_time()
            try:
                reader(self.path)
                message = ""
            except WeightspaceError as error:
                message = str(error)
                if len(message) >= 500 or not message.isprintable() or len(message) < 10:
                    raise Failure(f"the message is {message[:600]!r}") from error
            except (Failure, KeyboardInterrupt):
                raise
            except BaseException as error:
                raise Failure(f"{type(error).__name__}: {str(error)[:300]}") from error
            seconds = time.process_time() - start
            if seconds > LIMIT:
                raise Failure(f"took {seconds:.1f} s")
            result = "refused" if message or outcome.result == "refused" else "read"
            outcome = Outcome(result, max(seconds, outcome.seconds), outcome.message or message)
        changed = {name for name, _ in contents_of(self.folder).items() ^ before.items()}
        if any(not self.kind.writes or not name.startswith(self.kind.writes) for name in changed):
            raise Failure(f"written or changed: {sorted(changed)[:3]}")
        return outcome

    def restore(self) -> None:
        """Write the good file again."""
        self.path.write_bytes(self.content)
