"""Errors caused by user input: one line that says what was found, what was expected and what to do."""

import sys
import warnings
from types import FrameType

from weightspace.escaping import one_line


class WeightspaceError(Exception):
    """Any invalid input that the library detects; the command line prints it as one line.

    Whatever the input, the message is one line of fewer than 500 characters, without terminal control sequences.

    Example:
        >>> import weightspace as ws
        >>> try:
        ...     ws.load_task("digits-mpl")
        ... except ws.WeightspaceError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        Unknown task 'digits-mpl'...
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(value) if isinstance(value, str) else value for value in args))


class CheckpointError(WeightspaceError):
    """A checkpoint can't be read, written or used together with another one.

    Example:
        >>> import weightspace as ws
        >>> try:
        ...     ws.load_checkpoint("missing.safetensors")
        ... except ws.CheckpointError:
        ...     print("no such checkpoint")
        no such checkpoint
    """


class SpecError(WeightspaceError):
    """A permutation spec can't be derived, isn't verified, or doesn't fit a network or checkpoint.

    Example:
        >>> import weightspace as ws
        >>> from pathlib import Path
        >>> _ = Path("spec.yaml").write_text("groups: {}")
        >>> try:
        ...     ws.PermutationSpec.load("spec.yaml")
        ... except ws.SpecError:
        ...     print("not a permutation spec")
        not a permutation spec
    """


class WeightspaceWarning(UserWarning):
    """A decision of the library that a user may want to override; the command line prints it as one line.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", ws.WeightspaceWarning)  # turn decisions of the library into errors
        ...     state = ws.merge([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])
    """


def warn_caller(line: str) -> None:
    """Warn at the line outside the library that called it.

    Warns:
        WeightspaceWarning: the line.
    """
    warnings.warn(line, WeightspaceWarning, stacklevel=_frames_inside() + 1)


def _frames_inside() -> int:
    """Return the number of innermost frames of this library below the caller that a warning is meant for."""
    frame: FrameType | None = sys._getframe(1)
    count = 0
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "weightspace":
        frame, count = frame.f_back, count + 1
    return count
