"""A page for every matching method, read from the tables ``MATCHINGS`` and ``MANY_MATCHINGS``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import weightspace as ws
from generators.docstrings import as_markdown, sections
from weightspace.matching import MANY_MATCHINGS, MATCHINGS

#: Method -> the public function that implements it, or its last step, by its path in ``weightspace``.
_FUNCTIONS = {
    "weight-matching": "weight_matching",
    "activation-matching": "activation_matching",
    "activation-then-weights": "weight_matching",
    "straight-through": "straight_through",
    "straight-through-sinkhorn": "straight_through",
    "sinkhorn-midpoint": "sinkhorn_rebasin",
    "sinkhorn-random": "sinkhorn_rebasin",
    "sinkhorn-l2": "sinkhorn_rebasin",
    "full": "align",
    "full-activations": "align",
    "full-weights": "align",
    "merge-many": "merge_many",
    "cycle-consistent": "cycle_consistent",
    "full-many": "matching.align_many",
    "straight-through-many": "straight_through_many",
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of every page, the overview first."""
    yield "matching-methods/index.md", _overview()
    for row in MATCHINGS.values():
        yield f"matching-methods/{row.name}.md", _page(row, several=False)
    for row in MANY_MATCHINGS.values():
        yield f"matching-methods/{row.name}.md", _page(row, several=True)


def example(row: Any, *, several: bool) -> str:
    """Return a self-contained Python example on the digits."""
    task = ", task=task" if row.needs_task else ""
    steps = ", steps=2" if "steps" in row.options else ""
    symmetry = "" if row.symmetry == "permutations" else f', symmetry="{row.symmetry}"'
    names = "a, b, c" if several else "a, b"
    lines = [
        "import weightspace as ws",
        *(["from weightspace.matching import match_many"] if several else []),
        "",
        'task = ws.load_task("digits-cnn")',
        f"spec = ws.derive_spec(task.network(), task.example_args{symmetry})",
        f"{names} = (ws.train(task, seed, epochs=2) for seed in range({len(names.split())}))",
        "",
    ]
    if several:
        lines += [
            f'matching = match_many(spec, [a, b, c], "{row.name}"{task}, seed=0{steps})',
            "merged = matching.merged  # the mean of the three in one basin",
        ]
    else:
        lines += [
            f'matching = ws.match(spec, a, b, "{row.name}"{task}, seed=0{steps})',
            "target, aligned = matching.apply(a, b)  # canonical weights of a, and b moved to them"
            if symmetry
            else "aligned = ws.permute(spec, matching.permutation, b)",
        ]
    return "\n".join(lines)


def _page(row: Any, *, several: bool) -> str:
    name = _FUNCTIONS[row.name]
    function = attrgetter(name)(ws)
    is_full = row.symmetry == "full"
    described = sections(inspect.getdoc(function) or "")
    preset = ", ".join(f"`{name}={value!r}`" for name, value in row.preset.items())
    facts = {
        "Networks": "two or more" if several else f"two: a fixed target, and a source that is {_moved(row)}",
        "Symmetries": f'all, `derive_spec(…, symmetry="{row.symmetry}")`' if is_full else "permutations",
        "Needs data": "yes, a task" if row.needs_task else "no",
        "`objective`": row.objective,
        "Source": as_markdown(_linked(row.source)),
    }
    if is_full:
        facts["Tutorial"] = "[Merge two transformers trained apart](../tutorials/transformers.md)"
    facts["Function"] = f"[`ws.{name}`][weightspace.{name}]" + (f" with {preset}" if preset else "")
    networks = "a.safetensors b.safetensors" + (" c.safetensors" if several else "")
    output = ("elements" if is_full else "permutations") if several else "b_to_a.safetensors"
    task = "vit-fashion" if is_full else "digits-cnn"
    return "\n\n".join(
        [
            f"# `{row.name}`",
            f"{row.summary[0].upper()}{row.summary[1:]}.",
            "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
            described.text,
            "## Options",
            _options(row, function, described.arguments),
            "## From Python",
            f"```python\n{example(row, several=several)}\n```",
            "Two epochs of training"
            + (" and two steps of the search" if "steps" in row.options else "")
            + " keep the example short; leave out these arguments for real networks.",
            "## Command line",
            f"```text\nweightspace match {networks} --method {row.name} --task {task} -o {output}\n```",
        ]
    )


def _moved(row: Any) -> str:
    """Return the verb for what happens to a source."""
    return "permuted" if row.symmetry == "permutations" else "moved"


def _options(row: Any, function: Callable[..., Any], meanings: Mapping[str, str]) -> str:
    """Return the table of a method's options, including the seed."""
    lines = ["| name | meaning | default |", "|---|---|---|"]
    for option in ("seed", *row.options):
        default = inspect.signature(function).parameters[option].default
        lines.append(
            f"| `{option}` | {meanings[option]} | {'chosen by the method' if default is None else f'`{default}`'} |"
        )
    return "\n".join(lines)


def _linked(source: str) -> str:
    """Return a source with its URLs as links."""
    return " ".join(
        f"<{word.rstrip(',;')}>{word[len(word.rstrip(',;')) :]}" if word.startswith("http") else word
        for word in source.split()
    )


def _overview() -> str:
    def rows(table: Any) -> str:
        return "\n".join(
            f"| [`{row.name}`]({row.name}.md) | {row.summary} | {'yes' if row.needs_task else 'no'} |"
            for row in table.values()
        )

    return textwrap.dedent(
        """\
        # Matching methods

        A matching method searches the symmetries of a [spec](../formats/spec.md) for the map that brings a source
        network into the basin of a target. The moved network computes the same function as before. Most methods search
        permutations; `full` and its variants also turn residual streams and heads.

        ## Two networks

        | method | what it does | needs data |
        |---|---|---|
        {two}

        ## Two or more networks

        | method | what it does | needs data |
        |---|---|---|
        {many}

        Start with `weight-matching`: it needs no data and takes less than a second on small networks. Where the network
        has attention, matching permutations by weights alone can raise the barrier (two small ViTs from two seeds: 1.44
        nats at the midpoint unmatched, 1.48 by `weight-matching`, 0.47 by `activation-matching`), and `match` warns of
        it. Use `full` there, or `full-weights` without data:
        [Merge two transformers trained apart](../tutorials/transformers.md). How the methods compare on three tasks is
        measured under [Claims of the papers](../claims.md).
        """
    ).format(two=rows(MATCHINGS), many=rows(MANY_MATCHINGS))
