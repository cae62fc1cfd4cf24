"""Merges of FP8 models, into bfloat16 and into FP8, against the same merge of models in bfloat16.

    python benchmarks/quantised.py [--json FILE]

Each merge runs three times in one thread of this process, without flushing to disk or hashing; the best counts. The
processor's time is measured, so that other programs matter less. The aim is at most twice that of bfloat16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

import weightspace as ws
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files

#: Matrices of a model, and their shape.
MATRICES, SHAPE = 16, (4096, 2048)
AIM, REPEATS = 2.0, 3
SCHEMES = ("fp8-block", "fp8-channel", "fp8-tensor")


def write_models(folder: Path) -> None:
    """Write two models in bfloat16, and in each scheme."""
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(MATRICES)]
        state = {name: torch.randn(SHAPE, generator=generator).bfloat16() for name in names}
        ws.save_checkpoint(state, folder / f"bfloat16-{seed}.safetensors")
        for scheme in SCHEMES:
            out = folder / f"{scheme}-{seed}.safetensors"
            merge_files([folder / f"bfloat16-{seed}.safetensors"], out, method="passthrough", quantise=scheme)


def seconds(folder: Path, kind: str, quantise: str | None = None) -> float:
    """Return the processor's seconds of a merge of two models."""
    sources = [folder / f"{kind}-{seed}.safetensors" for seed in (0, 1)]
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        merge_files(
            sources,
            folder / "out.safetensors",
            dtype="bfloat16",
            quantise=quantise,
            execution=ExecutionOptions(threads=1, fsync=False),
            output=OutputOptions(hashes=False),
        )
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="File to write the results to.")
    to = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        plain = seconds(folder, "bfloat16")
        results: dict[str, float] = {"bfloat16": plain}
        for scheme in SCHEMES:
            results[f"{scheme} into bfloat16"] = seconds(folder, scheme)
            results[f"{scheme} into {scheme}"] = seconds(folder, scheme, scheme)
    for case, found in results.items():
        print(f"{case:26} {found:6.2f} s  {found / plain:5.2f}  {'' if found <= AIM * plain else f'above {AIM:g}'}")
    if to is not None:
        to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
