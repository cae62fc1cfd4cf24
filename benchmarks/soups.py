"""Peak memory of soups of 4 and of 64 ingredients, from files: they should be equal.

    python benchmarks/soups.py

Every run is a process of its own; what is measured is the most private (anonymous) memory that it takes above what it
has before the soup, sampled every 2 ms, beside the bytes of one ingredient. Mapped files are the system's to drop.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

HERE = Path(__file__).parent
RECIPES = ("uniform", "greedy", "learned")


def network(width: int) -> nn.Module:
    """Return an MLP whose weights are nearly all in two layers of ``width × width``."""
    layers = (nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(width, 10))


def task(width: int) -> Any:
    """Return a task of random inputs, whose labels a small map gives."""
    from weightspace.tasks import ClassificationTask, Examples

    def load() -> Any:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(64, 32, generator=generator)
        labels = inputs[:, :10].argmax(1)
        return {split: Examples(inputs, labels) for split in ("train", "validation", "test")}

    return ClassificationTask("memory", lambda: network(width), load)


def write(folder: Path, count: int, width: int) -> list[str]:
    """Write ingredients: one network with noise of its own each."""
    from weightspace import save_checkpoint

    torch.manual_seed(0)
    base = network(width).state_dict()
    paths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        state = {name: one + 0.01 * torch.randn(one.shape, generator=generator) for name, one in base.items()}
        paths.append(str(folder / f"{number:03d}.safetensors"))
        save_checkpoint(state, paths[-1])
    return paths


def private_bytes() -> int:
    """Return the anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel tells no RssAnon")


def peak(work: Callable[[], object]) -> int:
    """Return how much more private memory there is at most while ``work`` runs."""
    before, most, stop = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            most[0] = max(most[0], private_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return most[0] - before


def run(recipe: str, width: int, paths: list[str]) -> dict[str, float]:
    """Make one soup in this process and return what it took."""
    import weightspace as ws

    torch.set_num_threads(1)
    found = task(width)
    found.score(found.network())  # what scoring itself takes is there before, and so are the modules
    small = task(8)
    states = [small.network().state_dict() for _ in range(2)]
    ws.greedy_soup(states, small, cache=False)
    ws.learned_soup(states, small, epochs=1)
    works: dict[str, Callable[[], object]] = {
        "uniform": lambda: ws.uniform_soup(paths),
        "greedy": lambda: ws.greedy_soup(paths, found, cache=False),
        "learned": lambda: ws.learned_soup(paths, found, "model", epochs=1),
    }
    begin = time.perf_counter()
    return {"peak_bytes": peak(works[recipe]), "seconds": time.perf_counter() - begin}


@click.command(help=f"\b\n{__doc__}")
@click.option("--width", default=2000, show_default=True, help="Of the two large layers.")
@click.option("--counts", default="4,64", show_default=True, help="Numbers of ingredients.")
@click.option("--one", hidden=True, nargs=2, help="Make one soup, of a recipe and the checkpoints of a folder.")
def main(width: int, counts: str, one: tuple[str, str] | None) -> None:
    """Measure every recipe with every number of ingredients."""
    if one is not None:
        print(json.dumps(run(one[0], width, sorted(map(str, Path(one[1]).iterdir())))))
        return
    rows = []
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            paths = write(Path(folder), count, width)
            size = Path(paths[0]).stat().st_size
            for recipe in RECIPES:
                command = [sys.executable, __file__, "--width", str(width), "--one", recipe, folder]
                found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                rows.append({"recipe": recipe, "ingredients": count, "ingredient_bytes": size, **found})
                print(
                    f"| {recipe} | {count} | {found['peak_bytes'] / 1e6:.0f} | {found['peak_bytes'] / size:.2f} | "
                    f"{found['seconds']:.1f} |",
                    flush=True,
                )
    (HERE / "results" / "soups.json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


def environment() -> dict[str, str]:
    """Return what the figures depend on."""
    import platform

    import weightspace as ws

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "weightspace": ws.__version__,
        "threads": "1",
    }


if __name__ == "__main__":
    main()
