"""A page for every merge method, from ``weightspace.METHODS`` and the docstring of the method's module."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from generators.docstrings import as_markdown
from weightspace import METHODS

_BASE = {
    "required": "required",
    "optional": "optional",
    "end": "the endpoint at $t = 0$; without a base, the first of two models",
    "none": "not used",
}
_NUMBERS = {1: "one", 2: "two", 3: "three"}
#: Width of a code block on a page, in columns.
_WIDTH = 76
_GRANULARITY = {
    "elements": "any range of elements: a merge never holds a whole tensor",
    "slices": "whole slices along the first axis",
    "whole": "whole matrices: a merge needs a few copies of the largest",
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of every page, the overview first."""
    yield "merge-methods/index.md", _overview()
    for row in METHODS.values():
        yield f"merge-methods/{row.name}.md", _page(row)


def example(row: Any) -> str:
    """Return a self-contained Python example: random fine-tunes merged in memory."""
    names = ["finetuned"] if row.models[1] == 1 else ["math", "code"]
    base = row.base in ("required", "end")
    keywords = [
        *(["base=base"] if base else []),
        *(["weights=[0.6, 0.4]"] if row.weighted and len(names) == 2 else []),
        *([f"parameters={_given(row)!r}"] if _given(row) else []),
        *([f"evidence=[{', '.join(f'{name}_statistics' for name in names)}]"] if row.evidence else []),
    ]
    lines = ["import torch", "import weightspace as ws", "", "torch.manual_seed(0)"]
    lines += ['base = {"layer.weight": torch.randn(8, 16)}']
    lines += [f'{name} = {{"layer.weight": base["layer.weight"] + 0.01 * torch.randn(8, 16)}}' for name in names]
    if row.evidence:
        lines += [f"{name}_statistics = {_statistics(row)}" for name in names]
    call = f"merged = ws.merge([{', '.join(names)}], {', '.join([repr(row.name), *keywords])})"
    if len(call) > _WIDTH:
        options = ",\n    ".join([repr(row.name), *keywords])
        call = f"merged = ws.merge(\n    [{', '.join(names)}],\n    {options},\n)"
    lines += ["", call]
    return "\n".join(lines).replace("'", '"')


def _statistics(row: Any) -> str:
    """Return an expression for random statistics of the kind a method needs."""
    if row.evidence == "gram":
        return '{"layer.weight": torch.cov(torch.randn(16, 64)).double()}'
    return '{"layer.weight": torch.rand(8, 16)}'


def _given(row: Any) -> dict[str, Any]:
    """Return the parameters for an example: those without a default, and a density below 1."""
    shown = {parameter.name: 0.3 for parameter in row.parameters if parameter.required}
    if any(parameter.name == "density" for parameter in row.parameters):
        shown["density"] = 0.5
    return shown


def _page(row: Any) -> str:
    module = _modules()[row.name]
    summary, _, rest = as_markdown(inspect.getdoc(module) or "").partition("\n\n")
    family = [name for name, other in _modules().items() if other is module]
    others = [f"[`{name}`]({name}.md)" for name in family if name != row.name]
    return "\n\n".join(
        part
        for part in (
            f"# `{row.name}`",
            summary,
            rest,
            _facts(row),
            f"See also {', '.join(others)}." if others else "",
            "## Parameters",
            _parameters(row),
            "## From Python",
            f"```python\n{example(row)}\n```",
            "## Recipe",
            f"```yaml\n{recipe(row)}\n```",
            "## Command line",
            f"```text\n{_command(row)}\n```",
        )
        if part
    )


@cache
def _modules() -> dict[str, ModuleType]:
    """Return the module of every method, which defines a function of that name."""
    package = importlib.import_module("weightspace.merging.methods")
    names = [entry.name for entry in pkgutil.iter_modules(package.__path__)]
    found = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {name: next(module for module in found if _defines(module, name)) for name in METHODS}


def _defines(module: ModuleType, name: str) -> bool:
    return getattr(vars(module).get(name), "__module__", None) == module.__name__


def _facts(row: Any) -> str:
    least, most = row.models
    beside = " in addition to the base" if row.base != "none" else ""
    models = f"one{beside}" if most == 1 else f"{_NUMBERS[least]} or more"
    facts = {
        "Computes": _plain(row.formula),
        "Source": _link(row.source),
        "Base": _BASE[row.base],
        "Models": f"exactly {_NUMBERS[least]}" if least == most and most != 1 else models,
        "Weights": "`weight` in recipes, `weights=` from Python, `--weights`" if row.weighted else "none",
        "Processes": _GRANULARITY[row.granularity],
    }
    if row.evidence:
        facts["Statistics"] = f"`weightspace evidence --kind {row.evidence}`, one file per model"
    if not row.scale_free:
        facts["Scale"] = "depends on the scale of the weights by definition"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _plain(text: str) -> str:
    """Escape text for a table cell."""
    return text.replace("_", "\\_").replace("*", "\\*").replace("|", "&#124;")


def _link(source: str) -> str:
    name, _, address = source.rpartition(", ")
    return f"[{name}]({address})" if address.startswith("http") else source


def _parameters(row: Any) -> str:
    if not row.parameters:
        return "None besides the weights." if row.weighted else "None."
    lines = ["| name | meaning | default | values | per model |", "|---|---|---|---|---|"]
    for parameter in row.parameters:
        default = "must be given" if parameter.required else parameter.computed or f"`{_yaml(parameter.default)}`"
        per_model = "yes" if parameter.per_model else "no"
        lines.append(
            f"| `{parameter.name}` | {_plain(parameter.help)} | {default} | {_values(parameter)} | {per_model} |"
        )
    return "\n".join(lines)


def _values(parameter: Any) -> str:
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if isinstance(parameter.default, bool):
        return "`true`, `false`"
    low, high = parameter.low, parameter.high
    bounded = [text for text, bound in ((f"≥ {low:g}", low), (f"≤ {high:g}", high)) if abs(bound) < 1e18]
    kind = "integer" if isinstance(parameter.default, int) else "number"
    return " ".join([kind, ", ".join(bounded)]).strip()


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def recipe(row: Any) -> str:
    """Return a recipe of two models, or of one if the method takes one."""
    names = ["finetuned"] if row.models[1] == 1 else ["math", "code"]
    lines = [f"merge_method: {row.name}"]
    lines += ["base_model: base"] if row.base in ("required", "end") else []
    lines += ["models:"]
    for name, weight in zip(names, (0.6, 0.4), strict=False):
        lines.append(f"  - model: {name}")
        lines += [f"    parameters: {{weight: {weight}}}"] if row.weighted and len(names) == 2 else []
        lines += [f"    evidence: {name}-{row.evidence}.safetensors"] if row.evidence else []
    given = _given(row)
    lines += ["parameters:", *(f"  {name}: {_yaml(value)}" for name, value in given.items())] if given else []
    return "\n".join(lines)


def _command(row: Any) -> str:
    names = ["finetuned"] if row.models[1] == 1 else ["math", "code"]
    words = ["weightspace merge", *names, "-m", row.name]
    words += ["--base base"] if row.base in ("required", "end") else []
    words += ["--weights .6,.4"] if row.weighted and len(names) == 2 else []
    words += [f"--{name.replace('_', '-')} {_yaml(value)}" for name, value in _given(row).items()]
    if not row.evidence:
        return " ".join([*words, "-o merged"])
    files = ",".join(f"{name}-{row.evidence}.safetensors" for name in names)
    collected = [
        f"weightspace evidence {name} --task TASK --kind {row.evidence} -o {name}-{row.evidence}.safetensors"
        for name in names
    ]
    return "\n".join([*collected, " ".join([*words, f"--evidence {files} -o merged"])])


def _needs(row: Any) -> str:
    """Return the special needs of a method, and whether it depends on the scale of the weights."""
    needs = {
        "whole matrices": row.granularity == "whole",
        "statistics": bool(row.evidence),
        "not scale-free": not row.scale_free,
    }
    return ", ".join(name for name, needed in needs.items() if needed) or "–"


def _overview() -> str:
    rows = "\n".join(
        f"| [`{row.name}`]({row.name}.md) | {_plain(row.formula)} | {row.base} | {_needs(row)} | {_link(row.source)} |"
        for row in METHODS.values()
    )
    return textwrap.dedent(
        """\
        # Merge methods

        All {count} methods run from [`ws.merge`][weightspace.merge] on tensors in memory, and from
        [`ws.merge_files`][weightspace.merge_files] and [`weightspace merge`](../command-line/merge.md) on files, out of
        core and resumable. $x_i$ are the models, $w_i$ their weights, $b$ is the base model and $\\delta_i = x_i - b$
        the task vector of model $i$.

        - *base*: whether the method takes a `base_model`: `required`, `optional` or `none`; `end`: the base is the
          endpoint at $t = 0$, for which the first of two models stands if there is none.
        - *needs*: `whole matrices`: a merge holds a few copies of the largest matrix in memory; `statistics`: of data,
          one file for each model; `not scale-free`: multiplying all models by a number does not simply multiply the
          result by it.

        | method | computes | base | needs | source |
        |---|---|---|---|---|
        {rows}

        For methods that don't need whole matrices, [256 MB suffice](../how-to/large-models.md) for any model.
        [Statistics](../how-to/statistics.md) are collected by `weightspace evidence`.

        Your own method is a Python function: [Write a merge method](../how-to/merge-method.md).
        """
    ).format(count=len(METHODS), rows=rows)
