"""Hugging Face Hub names: ``ORG/MODEL`` and ``ORG/MODEL@REVISION``, unless a local path has that name.

The Hub's oldest models have names of one word, such as ``gpt2``. None of them has a dot, so ``modle.bni`` is a file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from weightspace.user_code import is_user_code

_NAME = re.compile(r"(?P<model>\w[\w.-]{0,95}/\w[\w.-]{0,95}|\w[\w-]{0,95})(@(?P<revision>[\w./-]{1,80}))?")
_WORD = re.compile(r"\w[\w.-]{0,95}(@[\w./-]{1,80})?")

#: Suffixes of file names; model names do not end with them.
_FILES = (
    *(".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th", ".tar", ".pkl", ".gguf", ".h5", ".npz", ".npy", ".onnx"),
    *(".yml", ".yaml", ".json", ".jsonl", ".txt", ".md", ".py", ".zip", ".gz"),
)


@dataclass(frozen=True)
class HubModel:
    """A model or adapter on the Hub.

    Attributes:
        name: ``ORG/MODEL``, or ``MODEL`` alone.
        revision: a branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None

    @property
    def url(self) -> str:
        """Its fsspec URL."""
        return f"hf://{self.name}" + ("" if self.revision is None else f"@{self.revision.replace('/', '%2F')}")

    @property
    def command(self) -> str:
        """The command that downloads it to the Hub's cache."""
        return f"hf download {self.name}" + ("" if self.revision is None else f" --revision {self.revision}")


def hub_model(source: str | os.PathLike[str]) -> HubModel | None:
    """Return the Hub model that a source names; None for existing paths, URLs and anything else.

    Args:
        source: the source as written by the user; a ``Path`` of one word is not a model.
    """
    text = os.fspath(source)
    match = _NAME.fullmatch(text)
    if match is not None and "/" not in match["model"] and not isinstance(source, str):
        return None
    if match is None or match["model"].lower().endswith(_FILES) or os.path.lexists(text):
        return None
    if match["revision"] and os.path.lexists(match["model"]):
        return None
    return HubModel(match["model"], match["revision"])


def missing_checkpoint(path: str) -> str:
    """Return the error message for a missing path.

    Args:
        path: the missing path, as the user wrote it; not a name on the Hub.
    """
    hint = ""
    if _WORD.fullmatch(path) and not _NAME.fullmatch(path) and not path.lower().endswith(_FILES):
        hint = " Models on the Hugging Face Hub are written as ORG/MODEL."
    if is_user_code(path):
        hint = f" Tasks and builders in a Python file are given with --task {path} or --network {path}."
    return f"{path} does not exist. Expected a checkpoint file or folder; is the path right?{hint}"
