"""Cost of merging two small files with each executor: whole commands, processor seconds, relative to threads."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from whole_process import run_whole

import weightspace as ws

RUNS = 3
EXECUTORS = ("threads", "auto", "processes")


def main() -> None:
    """Print the least processor seconds of every executor, and what they are of those of threads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, model in enumerate("ab"):
            generator = torch.Generator().manual_seed(seed)
            state = {f"layers.{layer}.weight": torch.randn(350, 350, generator=generator) for layer in range(4)}
            ws.save_checkpoint(state, folder / f"{model}.safetensors")
        merge = (
            sys.executable,
            "-m",
            "weightspace",
            "merge",
            "a.safetensors",
            "b.safetensors",
            "-o",
            "out.safetensors",
        )
        seconds: dict[str, list[float]] = {executor: [] for executor in EXECUTORS}
        for _ in range(RUNS):
            for executor in EXECUTORS:
                usage = run_whole((*merge, "--executor", executor), folder, os.environ)
                seconds[executor].append(usage.processor_seconds)
    for executor in EXECUTORS:
        least = min(seconds[executor])
        print(f"{executor:10} {least:.2f} s, {least / min(seconds['threads']):.2f} of threads")


if __name__ == "__main__":
    main()
