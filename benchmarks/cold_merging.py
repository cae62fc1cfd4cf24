"""Merges of models of 4.7 GB in bfloat16, none of which is in the page cache, beside reading them and writing one.

    python benchmarks/cold_merging.py --dir SCRATCH [--cases ties,linear] [--repeats 2] [--json FILE]

Whole processes, in turn: the floor reads the inputs of the merge once, in turn, and writes as many bytes as one has.
Aims: 1.6 times the floor for methods with a threshold, 1.1 for the others, within 400 MB of private memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from llama import Llama, make_models
from merging_cases import CASES, DENSITY, MEMORY_GATE, WEIGHTS
from whole_process import Usage, run_whole

#: 2.35 billion parameters.
MODEL = Llama(4096, 11008, 12, 32, 4, 32768, shards=5)
THRESHOLD, OTHER = 1.6, 1.1
#: Method -> its aim.
AIMS: Mapping[str, float] = {
    **dict.fromkeys(("linear", "slerp", "task_arithmetic", "model_stock"), OTHER),
    **dict.fromkeys(("ties", "dare_ties", "sce", "breadcrumbs"), THRESHOLD),
}
#: Reads files side by side and writes as many bytes as the first group has; arguments: output, number of groups, files.
FLOOR = """
import sys
out, groups, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
each = len(files) // groups
buffer = bytearray(1 << 22)
with open(out, "wb", 0) as written:
    for index in range(each):
        opened = [open(files[group * each + index], "rb", 0) for group in range(groups)]
        while count := opened[0].readinto(buffer):
            written.write(memoryview(buffer)[:count])
            for other in opened[1:]:
                other.readinto(buffer)
"""


def recipe_of(method: str) -> dict[str, Any]:
    """Return the recipe of a method, which is that of the benchmark of merging where there is one."""
    if method in CASES:
        return dict(CASES[method].recipe)
    recipe = {**CASES["ties"].recipe, "merge_method": method}
    models = [
        {"model": name, "parameters": {"weight": weight, "density": density}}
        for name, weight, density in zip(("a", "b"), WEIGHTS, DENSITY, strict=True)
    ]
    return {**recipe, "models": models}


def files_of(folder: Path, recipe: Mapping[str, Any]) -> tuple[list[Path], int]:
    """Return the weight files that a recipe reads, model by model, and the number of models."""
    names = sorted({model["model"] for model in recipe["models"]} | {recipe.get("base_model") or "a"})
    return [file for name in names for file in sorted((folder / name).glob("*.safetensors"))], len(names)


def forget(files: Sequence[Path]) -> None:
    """Let the system drop files from its page cache."""
    os.sync()
    for file in files:
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, method: str, repeats: int) -> dict[str, list[Usage]]:
    """Run the floor and the merge in turn, both without flushing to the disk or hashing."""
    recipe, out = folder / f"{method}.yml", folder / "out"
    recipe.write_text(yaml.safe_dump(recipe_of(method)))
    files, models = files_of(folder, recipe_of(method))
    command = Path(sys.executable).parent / "weightspace"
    commands = {
        "floor": [sys.executable, "-c", FLOOR, f"{out}.bin", models, *files],
        "merge": [command, "merge", recipe, "-o", out, "--no-hash", "--no-fsync"],
    }
    runs: dict[str, list[Usage]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, words in commands.items():
            forget(files)
            runs[name].append(run_whole([str(word) for word in words], folder, dict(os.environ)))
            print(f"{method:16}{name:8}{runs[name][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(out, ignore_errors=True)
            Path(f"{out}.bin").unlink(missing_ok=True)
    return runs


def main() -> None:
    """Make the models, measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dir", type=Path, required=True, help="scratch folder, 20 GB; models in it are used again")
    parser.add_argument("--cases", default=",".join(AIMS), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.dir.absolute()
    make_models(folder, MODEL)
    results: dict[str, Any] = {}
    print("| method | s | floor s | / floor | aim | processor s | MB |\n|---|---|---|---|---|---|---|")
    for method in options.cases.split(","):
        runs = measure(folder, method, options.repeats)
        seconds, floor = (statistics.median(run.seconds for run in runs[name]) for name in ("merge", "floor"))
        busy = statistics.median(run.processor_seconds for run in runs["merge"])
        memory = max(run.private_mb for run in runs["merge"])
        print(
            f"| {method} | {seconds:.1f} | {floor:.1f} | {seconds / floor:.2f} | {AIMS[method]:g} | {busy:.1f} | "
            f"{memory:.0f}{'' if memory <= MEMORY_GATE else ' (above the aim)'} |",
            flush=True,
        )
        results[method] = {name: [asdict(run) for run in listed] for name, listed in runs.items()}
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
