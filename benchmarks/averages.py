"""Average of the last checkpoints of a run beside the floor, reading them all and writing one, and beside two of them.

The checkpoints are bfloat16 safetensors files of one Llama-shaped model; every run is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from whole_process import Usage, run_whole

import weightspace as ws

WIDTH, INNER = 1_024, 4_096

#: Reads the files in pieces of 8 MB, and writes as many bytes as one of them has.
FLOOR = """
import pathlib, sys
import torch
piece = memoryview(bytearray(2**23))
paths = sorted(pathlib.Path("run").iterdir())
for number, path in enumerate(paths):
    with open(path, "rb", buffering=0) as file, open("floor.out" if not number else "/dev/null", "wb") as out:
        while count := file.readinto(piece):
            out.write(piece[:count])
"""


def main() -> None:
    """Print medians of time and memory, and the ratios to the floor of the same turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--layers", type=int, default=6, help="of 25 MB each [6]")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for step in range(options.checkpoints):
            write_checkpoint(folder / "run" / f"step_{step}.safetensors", step, options.layers)
        average = (sys.executable, "-m", "weightspace", "average", "run", "-o", "average.safetensors")
        commands = {
            "floor": (sys.executable, "-c", FLOOR),
            f"average of {options.checkpoints}, --no-hash --no-fsync": (*average, "--no-hash", "--no-fsync"),
            f"average of {options.checkpoints}": average,
            "average of 2": (*average, "--last", "2"),
        }
        runs: dict[str, list[Usage]] = {case: [] for case in commands}
        for _ in range(options.repeats):
            for case, command in commands.items():
                runs[case].append(run_whole(command, folder, os.environ))
    print("| command | s | / floor | MB |\n|---|---|---|---|")
    for case, usages in runs.items():
        ratios = [usage.seconds / floor.seconds for usage, floor in zip(usages, runs["floor"], strict=True)]
        cells = f"{statistics.median(usage.seconds for usage in usages):.2f} | {statistics.median(ratios):.2f}"
        print(f"| {case} | {cells} | {max(usage.private_mb for usage in usages):.0f} |")


def write_checkpoint(path: Path, seed: int, layers: int) -> None:
    """Write one checkpoint of the run."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"model.layers.{layer}.mlp.{part}_proj.weight": (INNER, WIDTH)
        for layer in range(layers)
        for part in ("gate", "up", "down")
    }
    state = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    ws.save_checkpoint(state, path)


if __name__ == "__main__":
    main()
