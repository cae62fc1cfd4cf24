"""Merges of FP8 models, into bfloat16 and into FP8, against the same merge of models in bfloat16.

    python benchmarks/quantised.py [--matrices 16] [--repeats 3] [--json FILE]

The merges alternate in one thread of this process, without flushing to disk or hashing; the best run of each counts.
The processor's time is measured, so that other programs matter less. The aim is at most twice that of bfloat16.
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

#: Shape of the matrices of a model.
SHAPE = (4096, 2048)
AIM = 2.0
SCHEMES = ("fp8-block", "fp8-channel", "fp8-tensor")


def write_models(folder: Path, matrices: int) -> None:
    """Write two models in bfloat16, and in each scheme."""
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(matrices)]
        state = {name: torch.randn(SHAPE, generator=generator).bfloat16() for name in names}
        ws.save_checkpoint(state, folder / f"bfloat16-{seed}.safetensors")
        for scheme in SCHEMES:
            out = folder / f"{scheme}-{seed}.safetensors"
            merge_files([folder / f"bfloat16-{seed}.safetensors"], out, method="passthrough", quantise=scheme)


def seconds(folder: Path, kind: str, quantise: str | None = None) -> float:
    """Return the processor's seconds of a merge of two models."""
    sources = [folder / f"{kind}-{seed}.safetensors" for seed in (0, 1)]
    start = time.process_time()
    merge_files(
        sources,
        folder / "out.safetensors",
        dtype="bfloat16",
        quantise=quantise,
        execution=ExecutionOptions(threads=1, fsync=False),
        output=OutputOptions(hashes=False),
    )
    return time.process_time() - start


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="File to write the results to.")
    parser.add_argument("--matrices", type=int, default=16, help="Of 8.4 million elements each.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cases: dict[str, tuple[str, str | None]] = {"bfloat16": ("bfloat16", None)}
    for scheme in SCHEMES:
        cases |= {f"{scheme} into bfloat16": (scheme, None), f"{scheme} into {scheme}": (scheme, scheme)}
    results = dict.fromkeys(cases, float("inf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, options.matrices)
        for _ in range(options.repeats):
            for case, (kind, quantise) in cases.items():
                results[case] = min(results[case], seconds(folder, kind, quantise))
    plain = results["bfloat16"]
    for case, found in results.items():
        print(f"{case:26} {found:6.2f} s  {found / plain:5.2f}  {'' if found <= AIM * plain else f'above {AIM:g}'}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
