"""Check that the folders of a soup share token ids and configurations, as those of a merge must.

A soup averages embeddings by index, and gets the configuration and tokenizer of its first folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from weightspace.checkpoints.components import listed_folders, tokenizer_folders
from weightspace.checkpoints.fetching import is_elsewhere, local_path
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.vocabulary import has_tokenizer
from weightspace.errors import warn_caller
from weightspace.merging.out_of_core.input_checks import compare_folders
from weightspace.merging.out_of_core.vocabularies import UseOfTokens, check_tokens
from weightspace.merging.plan.plan import Member

_AVERAGED = UseOfTokens(
    "A soup averages embeddings row by row: expected one id for each token. A recipe of `weightspace merge` with "
    "`tokenizer: {source: union}` merges them by token.",
    "a soup averages embedding rows by index",
)


def check_folders(sources: Iterable[object]) -> None:
    """Check that no token has different ids in the folders among some models, and warn of other differences.

    Args:
        sources: the models: folders, files, URLs and state dicts. Only folders with a configuration, a list of modules
            or a tokenizer are compared, each with the first one.

    Raises:
        CheckpointError: a folder, configuration or tokenizer is damaged.
        WeightspaceError: a token has different ids.

    Warns:
        WeightspaceWarning: configurations or modules differ, or vocabularies do.
    """
    paths = {os.fspath(source): source for source in sources if isinstance(source, str | os.PathLike)}
    folders = {name: Path(local_path(name) if is_elsewhere(name) else name) for name in paths}
    described = {name: path for name, path in folders.items() if path.is_dir() and _is_described(path)}
    if len(described) < 2:
        return
    members = [Member(name, name, read_contents(path)) for name, path in described.items()]
    donor = members[0].contents.path
    check_tokens(members, donor, warn_caller, use=_AVERAGED)
    compare_folders(members, donor, warn_caller, sliced=False, moved=False, copied=True, listed=False)


def _is_described(folder: Path) -> bool:
    """Return whether a folder says what network its weights are for, or which tokens its rows belong to."""
    known = (folder / "config.json").is_file() or bool(listed_folders(folder))
    return known or any(has_tokenizer(path) for path in tokenizer_folders(folder).values())
