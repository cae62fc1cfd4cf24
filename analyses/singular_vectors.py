"""Singular vectors of transformers trained apart, before and after alignment by each method.

R of the vectors whose singular values are at least .3 of the largest. Its curve over that threshold, and the products
of the leading vectors in the layers of one block, are drawn for the first pair. Before alignment, the norms are folded
as they are after it, so that only the maps differ.

    python analyses/singular_vectors.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import click
import torch
from alignments import FIRST_SEED, SEEDS, Aligned, Method, aligned, kept_tasks, permuted, symmetries_of
from recipe import CACHE, BuiltInTask, description, label_of, summary, trained
from report import HERE, Row, medians, printed, save
from transformer_tasks import task_of

import weightspace as ws
from weightspace.plots.spectra import draw_alignment, draw_heat_maps
from weightspace.spectra import alignments, cross_products

#: Task -> what the names of the layers in the heat maps end with, all in the second block.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "vit-fashion": ("blocks.1.attention.query.weight", "blocks.1.attention.value.weight", "blocks.1.mlp.up.weight"),
    "llama-glosses": (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ),
}
GAMMA = 0.3
#: Singular vectors in each heat map.
LEADING = 16


def folded(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
    """Return the two in canonical form, not moved."""
    spec = symmetries_of(task.name)
    return Aligned(ws.canonicalise(spec, a), ws.canonicalise(spec, b))


#: Name in tables -> method.
METHODS: Mapping[str, Method] = {
    "none": folded,
    "activation matching": permuted("activation-matching"),
    "full, weights": aligned(method="weights"),
    "full, activations": aligned(),
    "full, learned": aligned(method="learned"),
}


def pairs_of(task: BuiltInTask, seeds: Sequence[int], cache: Path) -> Iterator[tuple[str, dict[str, Aligned]]]:
    """Yield for every pair of networks its label, and the pair as aligned by every method."""
    for pair in combinations(seeds, 2):
        a, b = (trained(task, seed, cache=cache) for seed in pair)
        yield label_of(pair), {name: method(task, a, b) for name, method in METHODS.items()}


def row(by_method: Mapping[str, Aligned]) -> Row:
    """Return R of every method."""
    return {name: ws.singular_alignment(one.target, one.source, GAMMA).total for name, one in by_method.items()}


def draw(task: str, label: str, by_method: Mapping[str, Aligned], folder: Path) -> None:
    """Draw R over the threshold for all methods, and the products of vectors for the first and the last one."""
    gammas = [step / 20 for step in range(21)]
    spectra = {name: (ws.spectrum(one.target), ws.spectrum(one.source)) for name, one in by_method.items()}
    draw_alignment(
        {name: alignments(*both, gammas) for name, both in spectra.items()},
        folder / f"singular_vectors_{task}.png",
        title=f"{task}, seeds {label}",
    )
    shown = {name: spectra[name] for name in ("none", "full, learned")}
    maps = {
        layer.removesuffix(".weight").rpartition(".")[2]: {
            name: cross_products(a.layers[layer], b.layers[layer]) for name, (a, b) in shown.items()
        }
        for layer in LAYERS[task]
    }
    title = f"{task}, seeds {label}: layers of the second block"
    draw_heat_maps(maps, folder / f"singular_vectors_{task}_products.png", leading=LEADING, title=title)


@click.command(help=f"\b\n{__doc__}")
@click.option("--tasks", default=",".join(LAYERS), show_default=True, help="Tasks, with commas between.")
@click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Networks have it and the next.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Number of networks of each task.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(tasks: str, first_seed: int, seeds: int, cache: Path, output: Path) -> None:
    """Print R of every pair per task; write results/singular_vectors.json and the figures."""
    torch.set_num_threads(1)
    results = kept_tasks(output / "results" / "singular_vectors.json")
    for name in tasks.split(","):
        task = task_of(name)
        print(f"\n{summary(task)}\n", flush=True)
        found: dict[str, Row] = {}
        for label, by_method in pairs_of(task, range(first_seed, first_seed + seeds), cache):
            if not found:
                draw(name, label, by_method, output / "figures")
            found[label] = row(by_method)
        printed(found.items())
        results[name] = {"recipe": description(task), "median": medians(found.values()), "rows": found}
        save("singular_vectors", {"gamma": GAMMA, "tasks": results}, output)


if __name__ == "__main__":
    main()
