"""Scores of checkpoints by a user's command, which prints a number."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weightspace.errors import WeightspaceError
from weightspace.soups.file_dependencies import digest_of

#: Placeholder for the checkpoint in a command.
MODEL = "{model}"

#: A number that is no part of a word, a version or a path, such as that of the model.
_NUMBER = re.compile(
    r"(?<![\w./\\-])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)(?![\w/\\-]|\.\w)", re.IGNORECASE
)


@dataclass(frozen=True)
class CommandScore:
    """A command that scores a checkpoint: the last number that it prints, except digits in words and paths.

    Attributes:
        command: words separated as in a shell, with ``{model}`` in place of the checkpoint; it isn't run by a shell.

    Raises:
        WeightspaceError: the command has no ``{model}``, or cannot be split into words.
    """

    command: str

    def __post_init__(self) -> None:
        if MODEL not in self.command:
            raise WeightspaceError(f"--score needs {MODEL} in place of the checkpoint; found {self.command!r}.")
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise WeightspaceError(f"--score: {self.command!r} cannot be split into words: {error}.") from None

    def __call__(self, path: Path) -> float:
        """Return the score of a checkpoint; it may be NaN or infinite.

        Raises:
            WeightspaceError: the command cannot be run, fails, or prints no number.
        """
        words = [word.replace(MODEL, str(path)) for word in shlex.split(self.command)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise WeightspaceError(f"--score: {words[0]} cannot be run: {error.strerror or error}.") from error
        if done.returncode:
            last = next(reversed(done.stderr.strip().splitlines()), "nothing on stderr")
            raise WeightspaceError(f"--score: the command ended with status {done.returncode}: {last[:200]}")
        numbers = _NUMBER.findall(done.stdout)
        if not numbers:
            raise WeightspaceError(f"--score: expected a number at the end of the output; found {done.stdout[-80:]!r}.")
        return float(numbers[-1])

    def files(self) -> Mapping[str, str]:
        """Return path -> SHA-256 of the files that the command names: its script, and those in ``--data=FILE``."""
        parts = [part for word in shlex.split(self.command) for part in (word, word.partition("=")[2])]
        words = [part for part in parts if part and MODEL not in part]
        return {word: digest_of(Path(word)) for word in words if Path(word).is_file()}
