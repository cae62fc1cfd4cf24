"""Option groups of merges from files: reading the inputs, the output, and execution."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightspace.checkpoints.name_maps.named_maps import Names
from weightspace.merging.plan.plan import Plan
from weightspace.reprs import brief

#: Default memory limit in bytes, in addition to the interpreter and its libraries.
MEMORY = 2**28

#: Default maximum number of tensor bytes per shard.
SHARD_SIZE = 5 * 10**9


@dataclass(frozen=True)
class Intermediate:
    """The result of another document of a recipe.

    Attributes:
        folder: the folder of the result, in float32 or float64.
        dtypes: tensor name -> dtype that the document requests.
        plan: plan to compute its tensors on reading, if the folder holds only headers; None: the folder is complete.
    """

    folder: Path
    dtypes: Mapping[str, str]
    plan: Plan | None = None


@brief
@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading the inputs of a merge.

    Attributes:
        key: entry of torch files that holds the state dict (such as ``state_dict_ema``); None: as ``load_checkpoint``.
        strip_prefix: prefix to remove from all names that start with it; ``""`` removes none. None: remove a prefix
            that all names of one model have and the other models lack (``module.``, ``_orig_mod.``), with a warning.
        intermediates: results of other documents of a recipe by name; names take precedence over paths.
        components: components of folders to merge, such as ``unet`` (diffusers) or ``2_Dense`` (sentence-transformers);
            the output has the base's or first model's files in place of the others. By default all.
        names: name maps that bring all models to the names and layout of the base, or else of the first model: built-in
            ones by name, or YAML files; ``MAP=SIDE`` brings them to that side.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.merging import ReadingOptions
        >>> torch.save({"state_dict_ema": {"w": torch.ones(2)}}, "a.pt")
        >>> reading = ReadingOptions(key="state_dict_ema")
        >>> report = ws.merge_files(["a.pt", "a.pt"], "merged.safetensors", reading=reading)
        >>> ws.load_checkpoint("merged.safetensors")
        {'w': tensor([1., 1.])}
    """

    key: str | None = None
    strip_prefix: str | None = None
    intermediates: Mapping[str, Intermediate] = field(default_factory=dict)
    components: Sequence[str] | None = None
    names: Names | None = None


@brief
@dataclass(frozen=True)
class OutputOptions:
    """Options of a merge's output, in addition to the recipe. All of them may change the output's bytes.

    Attributes:
        shard_size: maximum number of tensor bytes per shard of a folder.
        allow_nonfinite: accept NaN and infinity.
        hashes: record the SHA-256 of the inputs in the metadata.
        device: where matrices are decomposed and multiplied, such as ``cuda``, by the methods that do so, as tsv_m;
            everything else is computed on the CPU.
        recorded: JSON-serialisable values to record in the metadata, such as a description of ``finish``.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.merging import OutputOptions
        >>> ws.save_checkpoint({"a": torch.ones(4), "b": torch.ones(4)}, "a.safetensors")
        >>> output = OutputOptions(shard_size=16)
        >>> ws.merge_files(["a.safetensors", "a.safetensors"], "merged", output=output).files
        ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')
    """

    shard_size: int = SHARD_SIZE
    allow_nonfinite: bool = False
    hashes: bool = True
    recorded: Mapping[str, Any] | None = None
    device: str = "cpu"


@brief
@dataclass(frozen=True)
class ExecutionOptions:
    """Options for running a merge. None of them changes the output's bytes.

    Attributes:
        memory: memory limit in bytes, in addition to the interpreter and its libraries.
        threads: number of tensors merged in parallel; None: one per core, at most 4.
        fsync: flush the output to disk, so that it survives a crash of the machine.
        executor: ``threads`` in this process; ``processes`` on this machine (scripts that use them need
            ``if __name__ == "__main__":``); ``ray``, with a file system that all workers share; or ``auto``, processes
            if the merge is large enough to make up for starting them.
        workers: number of processes, or of concurrent jobs on Ray; None: as many processes as threads, two on Ray.
        ray_address: address of a running Ray cluster; None: ``$RAY_ADDRESS``, else a cluster on this machine.
        force: replace a file that is not a checkpoint.
        intermediate_dir: folder in which to keep the results of a recipe's named documents, in float32. None: compute
            them chunk by chunk, or, if a method does not allow that, in a temporary folder next to the output.
        reads: further files that are read and must not be overwritten: the recipe, a user's code.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.merging import ExecutionOptions
        >>> ws.save_checkpoint({"w": torch.ones(4)}, "a.safetensors")
        >>> execution = ExecutionOptions(threads=1, memory=2**27)
        >>> ws.merge_files(["a.safetensors", "a.safetensors"], "merged.safetensors", execution=execution).tensors
        1
    """

    memory: int = MEMORY
    threads: int | None = None
    fsync: bool = True
    executor: str = "threads"
    workers: int | None = None
    ray_address: str | None = None
    force: bool = False
    intermediate_dir: str | os.PathLike[str] | None = None
    reads: tuple[Path, ...] = ()

    @property
    def concurrency(self) -> int:
        """Number of tensors merged in parallel on one machine."""
        return self.threads or min(4, os.cpu_count() or 1)
