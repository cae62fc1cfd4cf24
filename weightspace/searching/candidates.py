"""Candidates of a search: merges by recipes, in memory or in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weightspace.checkpoints import StateDict, load_checkpoint
from weightspace.checkpoints.companion_files import find_companions, is_tokenizer
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.name_maps.named_maps import read_name_maps, written_maps
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.yaml_file import parse_yaml
from weightspace.merging import ExecutionOptions, OutputOptions, ReadingOptions, merge_files
from weightspace.merging.out_of_core.merged_state import MergedTensors
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.plan.listeners import Listeners, discard
from weightspace.merging.plan.options import MEMORY
from weightspace.merging.plan.plan import Plan
from weightspace.merging.recipe.parse import recipe_in
from weightspace.merging.recipe.types import Recipe
from weightspace.soups.file_dependencies import digest_of
from weightspace.soups.scoring import Statistics, settled
from weightspace.tasks.protocol import Task
from weightspace.user_code import is_user_code


@dataclass(frozen=True)
class Candidate:
    """A merge that is scored.

    Attributes:
        text: the recipe as YAML.
        where: the recipe's name in errors.
        reading: options for reading the models.
        mixed: whether it is a mixture, whose activations BatchNorm hasn't seen.
        memory: memory limit in bytes where it is written.
    """

    text: str
    where: str
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    mixed: bool = True
    memory: int = MEMORY

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe; keys that mergekit ignores are accepted, misspelled ones are not."""
        return recipe_in(parse_yaml(self.text, self.where), self.where, None, discard)

    def plan(self) -> Plan:
        """Return the plan of the merge, in the dtype of the models or of the recipe, not quantised.

        Raises:
            CheckpointError: as ``merge_files``.
            WeightspaceError: as ``merge_files``.
        """
        options = PlanOptions(OutputOptions(hashes=False), self.reading, intermediate=True)
        return make_plan(self.recipe, Path("merged"), options, Listeners(None, discard, discard))

    def files(self) -> Mapping[str, str]:
        """Return path -> SHA-256 of all files that determine the written merge.

        These are weights, adapters and evidence, the configuration and tokenizer beside them, and the code of a user's
        method.

        Raises:
            CheckpointError: as ``merge_files``.
            WeightspaceError: as ``merge_files``.
        """
        if self.recipe.documents:
            paths = _files_of(self.recipe, self.reading)
        else:
            paths = list(self.plan().stamps)
        methods = [document.method for document in (*self.recipe.documents, self.recipe)]
        paths += [Path(method.rpartition(":")[0]) for method in methods if is_user_code(method)]
        return {str(path): digest_of(path) for path in dict.fromkeys(paths)}

    def read_as(self) -> list[Any]:
        """Return how the models are read, with the content of all name maps, as JSON-serialisable values.

        Raises:
            WeightspaceError: a name map is unknown or invalid.
        """
        reading, documents = self.reading, (*self.recipe.documents, self.recipe)
        maps = [written_maps(read_name_maps(names)) for names in (reading.names, *(one.names for one in documents))]
        return [reading.key, reading.strip_prefix, list(reading.components or ()), maps]

    def state(self) -> StateDict:
        """Return the merged network; its tensors must not be modified.

        Raises:
            CheckpointError: as ``merge_files``.
            WeightspaceError: as ``merge_files``.
        """
        if not self.recipe.documents:
            own = repr(self.read_as())
            if own not in _LATEST:
                _LATEST.clear()
            return _LATEST.setdefault(own, MergedTensors()).state(self.plan())
        with self.written(as_file=True) as path:
            return {name: tensor.clone() for name, tensor in load_checkpoint(path).items()}

    @contextmanager
    def written(self, *, as_file: bool = False) -> Iterator[Path]:
        """Write the merge to a temporary folder, and yield the path of the checkpoint.

        Args:
            as_file: write a single file; by default as the first model is stored.
        """
        recipe = self.recipe
        first = (recipe.documents or (recipe,))[0].donor
        with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
            is_folder = not as_file and not Path(first).is_file()
            path = Path(folder) / ("merged" if is_folder else "merged.safetensors")
            output, execution = OutputOptions(hashes=False), ExecutionOptions(self.memory, fsync=False)
            merge_files(recipe, path, reading=self.reading, output=output, execution=execution, warn=discard)
            yield path


#: How the models of this process's latest candidate were read -> its tensors.
_LATEST: dict[str, MergedTensors] = {}


def forget_tensors() -> None:
    """Release the tensors of this process's latest candidate."""
    _LATEST.clear()


def _files_of(recipe: Recipe, reading: ReadingOptions) -> list[Path]:
    """Return the files of the models, evidence and tokenizers of a recipe of several documents."""
    documents = (*recipe.documents, recipe)
    results = {document.name for document in documents}
    models = [model for document in documents for model in document.models if model not in results]
    plans = [Candidate(single_model(model), "a model", reading).plan() for model in dict.fromkeys(models)]
    sources = [source for document in documents for part in document.slices for source in part.sources]
    evidence = [file for one in sources if one.evidence for file in read_contents(local_path(one.evidence)).files]
    return [*(path for plan in plans for path in plan.stamps), *evidence, *_tokenizer_files(documents)]


def _tokenizer_files(documents: Iterable[Recipe]) -> list[Path]:
    """Return the tokenizer files of the folders that documents take tokenizers or the rows of tokens from."""
    found: list[Path] = []
    for document in documents:
        keys = document.tokenizer
        for model in dict.fromkeys([keys.source, *(source.model for source in keys.tokens.values())]):
            folder = None if model is None else Path(model)
            if folder is not None and folder.is_dir():
                found += [folder / name for name in find_companions(folder).copied if is_tokenizer(name)]
    return found


def single_model(model: str) -> str:
    """Return a recipe that is the model itself."""
    import yaml

    return yaml.safe_dump({"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1.0}}]})


def statistics_of(task: Task, statistics: Statistics) -> Callable[[StateDict], StateDict]:
    """Return a function that recomputes the BatchNorm statistics of a merge as they are when it is scored."""
    return lambda state: settled(task, state, statistics)
