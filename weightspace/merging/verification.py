"""Verification of a merged folder: transformers loads it, every weight has its place, and the network runs."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from weightspace.arguments import checked
from weightspace.checkpoints.detection import weight_files
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.config.differences import read_config
from weightspace.merging.out_of_core.chat_templates import read_template
from weightspace.merging.out_of_core.template_syntax import check_syntax
from weightspace.pretrained import load_on_meta, run_once
from weightspace.reprs import brief

#: Memory that a forward pass takes, as a multiple of the weights.
_ROOM = 1.5

#: Names that an error lists.
_SHOWN = 3


@brief
@dataclass(frozen=True)
class LoadVerification:
    """The result of loading a folder with transformers.

    Attributes:
        network: its class in transformers.
        parameters: number of its weight tensors.
        forward: whether the network was run, with finite outputs.
        note: why it was not run, else "".

    Example:
        >>> from weightspace.merging.verification import LoadVerification
        >>> LoadVerification("LlamaForCausalLM", 21, forward=True).forward
        True
    """

    network: str
    parameters: int
    forward: bool
    note: str = ""


@checked
def verify_loading(folder: str | os.PathLike[str]) -> LoadVerification:
    """Check that transformers loads a folder: names and shapes on ``meta``, then one forward pass where memory allows.

    The syntax of its chat template is checked, too.

    Args:
        folder: a Hugging Face folder.

    Raises:
        CheckpointError: the folder has no configuration; a weight is missing, has no place or another shape; or the
            outputs are not finite.
        WeightspaceError: transformers isn't installed, or does not know the network; or the chat template is no valid
            Jinja.

    Example:
        >>> from weightspace.merging import verify_loading
        >>> verify_loading("nowhere")
        Traceback (most recent call last):
        ...
        weightspace.errors.CheckpointError: nowhere has no config.json: transformers loads folders that have one.
    """
    path = Path(folder)
    if not path.is_dir() or read_config(path) is None:
        raise CheckpointError(f"{path} has no config.json: transformers loads folders that have one.")
    if (template := read_template(path)) is not None:
        check_syntax(template, f"The chat template of {path}")
    loaded = load_on_meta(path)
    for names, said in (
        (loaded.missing, "lacks weights of the network"),
        (loaded.unexpected, "has weights that the network has no place for"),
        (loaded.mismatched, "has weights of other shapes than the network"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            raise CheckpointError(
                f"{path} {said}, {loaded.network} of transformers: {', '.join(sorted(names)[:_SHOWN])}{more}."
            )
    needed, free = int(_ROOM * sum(os.path.getsize(file) for file in weight_files(path))), _free_memory()
    if free is not None and needed > free:
        note = f"not run: it needs about {needed / 1e9:,.1f} GB of memory; {free / 1e9:,.1f} GB are free"
        return LoadVerification(loaded.network, loaded.parameters, forward=False, note=note)
    finite, note = run_once(path, loaded.network)
    if finite is False:
        raise WeightspaceError(f"{path} was loaded and run as {loaded.network}, and its outputs are not finite.")
    return LoadVerification(loaded.network, loaded.parameters, finite is True, note)


def _free_memory() -> int | None:
    """Return the available memory in bytes, or None if the system does not report it."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
