"""Soups of a text encoder on four domains of sentiment: within a domain, and across the domains.

*Within*: fine-tunes of one domain that differ in learning rate and seed, as in Wortsman et al. 2022
(https://arxiv.org/abs/2203.05482); the other three domains are the shift. *Across*: one fine-tune per domain, the best
on its own validation data; validation and test are of all domains, and the last measure is the worst domain. The two
upper layers of six and a head are trained on 500 sentences; 300 are for validation and 400 for the test.

    python analyses/soups_text.py --help      # sentiment.py says how to get the data
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from time import perf_counter

import click
import torch
from recipe import CACHE, description, summary
from report import HERE, save
from sentiment import DOMAINS, FOLDER, all_domains_task, encoder, sentiment_task
from soups import MEASURES, PAPER, Pot, as_data, cook, draw_scatter, fine_tune, print_table, run_all, verdicts

import weightspace as ws
from weightspace.tasks import ClassificationTask, variant

RATES, SEEDS = (3e-4, 1e-3), (0, 1)
ACROSS = "across domains"


def fine_tunes(domain: str, split: int, data: Path, cache: Path) -> tuple[ClassificationTask, dict[str, ws.StateDict]]:
    """Return the task of a domain and its fine-tunes, from the cache or made now."""
    task = sentiment_task(domain, split, data)
    states = {}
    for rate, seed in product(RATES, SEEDS):
        changed = variant(task, learning_rate=rate)
        assert isinstance(changed, ClassificationTask)
        states[f"{domain}, rate {rate:g}, seed {seed}"] = fine_tune(changed, seed, cache)
    return task, states


def within(domain: str, split: int, data: Path, cache: Path) -> Pot:
    """Return the fine-tunes of a domain, and their soups and ensemble."""
    task, states = fine_tunes(domain, split, data, cache)
    return cook(task, ws.train(task, 0, epochs=0), states)


def across(split: int, best: Mapping[str, str], data: Path, cache: Path) -> Pot:
    """Return the soups and the ensemble of one fine-tune per domain, those with these labels."""
    states = {label: fine_tunes(domain, split, data, cache)[1][label] for domain, label in best.items()}
    task = all_domains_task(split, data)
    return cook(task, ws.train(task, 0, epochs=0), states, min)


@click.command(help=f"\b\n{__doc__}")
@click.option("--splits", default=3, show_default=True, help="Ways to split the sentences.")
@click.option("--workers", default=2, show_default=True, help="Domains at a time.")
@click.option("--data", type=click.Path(path_type=Path), default=FOLDER, help="Folder of the two packages.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(splits: int, workers: int, data: Path, cache: Path, output: Path) -> None:
    """Print the tables; write results/soups_text.json and figures/soups_text.png."""
    torch.set_num_threads(1)
    begun = perf_counter()
    encoder(data)  # unpacked before workers ask for it
    task = sentiment_task("tweets", 0, data)
    print(f"{summary(task)}; rates {RATES}, seeds {SEEDS}; {', '.join(DOMAINS)}\n", flush=True)
    grid = list(product(DOMAINS, range(splits)))
    found = dict(zip(grid, run_all([(within, (*at, data, cache)) for at in grid], workers), strict=True))
    best = [{domain: found[domain, split].best for domain in DOMAINS} for split in range(splits)]
    mixed = run_all([(across, (split, best[split], data, cache)) for split in range(splits)], workers)
    groups = {d: {f"{d}, split {s}": found[d, s] for s in range(splits)} for d in DOMAINS}
    groups[ACROSS] = {f"{ACROSS}, split {split}": one for split, one in enumerate(mixed)}
    said = {}
    for name, pots in groups.items():
        print(f"{name}\n")
        measures = (*MEASURES[1:], *DOMAINS) if name == ACROSS else MEASURES
        print_table(pots, start="untrained head", measures=measures, paper=name != ACROSS)
        said[name] = verdicts(pots)
        print("\n".join(said[name]), end="\n\n", flush=True)
    seconds = perf_counter() - begun
    print(f"{seconds:.0f} s with {workers} workers")
    content = {name: as_data(pots) for name, pots in groups.items()}
    about = {"recipe": description(task), "paper": PAPER, "workers": workers, "seconds": round(seconds)}
    save("soups_text", {**about, "verdicts": said, "groups": content}, output)
    panels = {label: pot for pots in groups.values() for label, pot in pots.items() if label.endswith("split 0")}
    draw_scatter(panels, output / "figures" / "soups_text.png", start=None, y="other domains (across: the worst)")


if __name__ == "__main__":
    main()
