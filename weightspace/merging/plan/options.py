"""Options of merges from files, in groups: how inputs are read, what the output is, how the merge runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightspace.merging.plan.plan import Plan
from weightspace.reprs import brief

#: Private bytes that a merge may take beside the interpreter and its libraries.
MEMORY = 2**28

#: Bytes of tensors in a shard.
SHARD_SIZE = 5 * 10**9


@dataclass(frozen=True)
class Intermediate:
    """The result of another document of a recipe.

    Attributes:
        folder: its folder, in float32 at least.
        dtypes: tensor -> the dtype that its document asks for.
        plan: how its tensors are computed when they are read, where the folder has headers alone; None: it is whole.
    """

    folder: Path
    dtypes: Mapping[str, str]
    plan: Plan | None = None


@brief
@dataclass(frozen=True)
class ReadingOptions:
    """How the inputs of a merge are read.

    Attributes:
        key: the entry of torch files that holds the state dict (``state_dict_ema``); None: as ``load_checkpoint``.
        strip_prefix: taken off every name that begins with it; ``""`` takes nothing off. None: a prefix that all names
            of a model have and those of the others lack (``module.``, ``_orig_mod.``) is taken off with a warning;
            a lenient merge takes names as they are.
        intermediates: results of other documents of a recipe by their names, which come before paths.

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


@brief
@dataclass(frozen=True)
class OutputOptions:
    """What the output of a merge is, beside what the recipe says; all of it may change the bytes.

    Attributes:
        shard_size: the largest number of bytes of tensors in a shard of a folder.
        allow_nonfinite: merge NaN and infinity too.
        hashes: keep the SHA-256 of the inputs in the metadata.
        recorded: kept in the metadata (what ``finish`` does, say): anything that JSON can hold.

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


@brief
@dataclass(frozen=True)
class ExecutionOptions:
    """How a merge runs; none of it changes the bytes.

    Attributes:
        memory: private bytes that it may take beside the interpreter and its libraries.
        threads: tensors merged at a time; None: one per core, at most 4.
        fsync: force the output to the disk, so that it survives a crash of the machine.
        executor: ``threads`` of this process; ``processes`` of this machine (a script that asks for them needs
            ``if __name__ == "__main__":``); ``ray``, over a file system that all workers see; or ``auto``, processes
            if there is enough to merge to make up for starting them.
        workers: the number of processes, or of jobs at a time on Ray; None: as many processes as threads, two on Ray.
        ray_address: of a running Ray cluster; None: ``$RAY_ADDRESS``, else one of this machine.
        force: replace a file that is not a checkpoint.
        intermediate_dir: keep the results of a recipe's named documents there, in float32; None: they are computed
            chunk by chunk, or where a method does not allow that grow beside the output and are removed at the end.
        reads: further files that are read, and may not be written over: the recipe, a user's code.

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
        """Tensors merged at a time on one machine."""
        return self.threads or min(4, os.cpu_count() or 1)
