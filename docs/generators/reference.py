"""The API reference: a page per name in ``weightspace.__all__``, and one per subpackage for its other names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import weightspace as ws

#: Section of the reference -> its names.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Checkpoints": ("StateDict", "load_checkpoint", "save_checkpoint"),
    "Networks and tasks": ("load_network", "Task", "load_task", "train"),
    "Symmetry": (
        *("derive_spec", "verify_spec", "load_spec", "permute", "canonicalise"),
        *("PermutationSpec", "Permutation", "SymmetrySpec", "Element", "Verification"),
    ),
    "Matching": (
        *("match", "weight_matching", "activation_matching", "straight_through", "sinkhorn_rebasin"),
        *("align", "merge_many", "cycle_consistent", "straight_through_many", "Matching"),
    ),
    "Merging": (
        *("merge", "merge_files", "interpolate", "reproduce", "collect_evidence"),
        *("METHODS", "Alignment", "MergeReport"),
    ),
    "Connectivity": ("loss_curve", "barrier", "barrier_matrix", "loss_plane", "repair", "taylor_barrier", "Curve"),
    "Soups": ("uniform_soup", "greedy_soup", "learned_soup", "wise_ft", "Soup"),
    "Search": ("search",),
    "Spectra": ("spectrum", "singular_alignment", "Spectrum", "SingularAlignment"),
    "Labels": ("LabelMetric", "FrechetClassifier"),
    "Errors": ("WeightspaceError", "CheckpointError", "SpecError", "WeightspaceWarning"),
}

#: Names that can't have a docstring, and the text of their pages.
DATA = {
    "METHODS": """
The table of merge methods: name in recipes and on the command line → formula, requirements and parameters. Reading it
doesn't import torch. [Merge methods](../merge-methods/index.md) has a page for each row.

```python
import weightspace as ws

ties = ws.METHODS["ties"]
print(ties.formula)
print([parameter.name for parameter in ties.parameters])
print([name for name, row in ws.METHODS.items() if row.evidence])
```
""",
    "StateDict": """
The type of a checkpoint in memory: `dict[str, torch.Tensor]`, tensors by name, in the order of the file. This is what
`module.state_dict()` returns and `module.load_state_dict()` takes.

```python
import torch
import weightspace as ws

state: ws.StateDict = torch.nn.Linear(4, 2).state_dict()
merged = ws.merge([state, state])
assert all(torch.equal(merged[name], state[name]) for name in state)
```
""",
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of every page, the overview first.

    Raises:
        RuntimeError: ``SECTIONS`` and ``weightspace.__all__`` differ.
    """
    listed = {name for names in SECTIONS.values() for name in names}
    if listed != set(ws.__all__):
        raise RuntimeError(f"docs/generators/reference.py and weightspace.__all__ differ: {listed ^ set(ws.__all__)}.")
    yield "reference/index.md", _overview()
    for names in SECTIONS.values():
        for name in names:
            heading = f"# `{name}` {{#weightspace.{name}}}\n"
            yield f"reference/{name}.md", f"{heading}{DATA[name]}" if name in DATA else _entry(f"weightspace.{name}")
    for package in packages():
        yield f"reference/packages/{package}.md", _package(package)


def packages() -> list[str]:
    """Return the subpackages with public names beyond those of ``weightspace`` itself."""
    found = (module.name for module in pkgutil.iter_modules(ws.__path__) if module.ispkg and module.name != "cli")
    return [name for name in sorted(found) if further_names(name)]


def further_names(package: str) -> list[str]:
    """Return the public names of a subpackage that have a docstring and are not names of ``weightspace``."""
    module = importlib.import_module(f"weightspace.{package}")
    names = (name for name in getattr(module, "__all__", ()) if name not in ws.__all__)
    return [name for name in names if _documented(getattr(module, name))]


def _documented(value: object) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and bool(value.__doc__)


def _entry(path: str, level: int = 1) -> str:
    """Return the Markdown that renders a public name, by the path under which it is imported.

    A function in a module of the same name is found where it is defined, as the public path is the module's, too.
    """
    package, _, name = path.rpartition(".")
    module = getattr(importlib.import_module(package), name).__module__
    anchor, source, heading = "", path, ""
    if module.rpartition(".")[2] == name:
        anchor, source, heading = f"[](){{#{path}}}\n\n", f"{module}.{name}", f"\n      heading: {path}"
    return f"{anchor}::: {source}\n    options:\n      heading_level: {level}{heading}\n"


def _package(package: str) -> str:
    module = importlib.import_module(f"weightspace.{package}")
    summary = (inspect.getdoc(module) or "").split("\n\n")[0]
    entries = "\n".join(_entry(f"weightspace.{package}.{name}", level=2) for name in further_names(package))
    return f"# `weightspace.{package}`\n\n{summary}\n\n{entries}\n"


def _overview() -> str:
    parts = [
        "# API reference\n",
        "Everything below is imported on first use: `import weightspace as ws` doesn't import torch. State dicts "
        "passed as arguments are never modified.\n",
    ]
    for section, names in SECTIONS.items():
        rows = "\n".join(f"| [`ws.{name}`]({name}.md) | {_summary(name)} |" for name in names)
        parts.append(f"## {section}\n\n| name | summary |\n|---|---|\n{rows}\n")
    rows = "\n".join(f"| [`weightspace.{name}`](packages/{name}.md) | {_summary(name)} |" for name in packages())
    parts.append(f"## Subpackages\n\nOther names, for less common needs.\n\n| package | summary |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _summary(name: str) -> str:
    if name in DATA:
        return DATA[name].strip().split(". ")[0].split(":")[0].replace("\n", " ") + "."
    value = getattr(ws, name, None) or importlib.import_module(f"weightspace.{name}")
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")
