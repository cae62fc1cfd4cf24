"""The floor: a plain script that averages two folders of bf16 files and does nothing else.

Inputs are mapped and the output's space is reserved; two threads take chunks of 2^18 elements, in float32. It
takes the files to have equal headers, and checks, copies and records nothing.

    python benchmarks/chunked.py A B OUT [--weight 0.4]
"""

from __future__ import annotations

import argparse
import mmap
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

CHUNK, THREADS = 2**18, 2


class Buffers(threading.local):
    """The chunks that a thread works on."""

    def __init__(self) -> None:
        self.a, self.b = torch.empty(CHUNK), torch.empty(CHUNK)
        self.out = torch.empty(CHUNK, dtype=torch.bfloat16)


def map_file(path: Path) -> tuple[bytes, Tensor]:
    """Return the header of a safetensors file as it is, and all elements after it."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    end = 8 + struct.unpack("<Q", mapped[:8])[0]
    return mapped[:end], torch.frombuffer(mapped, dtype=torch.bfloat16, offset=end)


def average(first: Path, second: Path, out: Path, weight: float, pool: ThreadPoolExecutor, own: Buffers) -> None:
    """Write first + weight · (second − first) of one file."""
    (header, a), (_, b) = map_file(first), map_file(second)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.posix_fallocate(file, 0, len(header) + 2 * a.numel())
    os.pwrite(file, header, 0)

    def chunk(start: int) -> None:
        size = min(CHUNK, a.numel() - start)
        x = own.a[:size].copy_(a[start : start + size]).lerp_(own.b[:size].copy_(b[start : start + size]), weight)
        done = own.out[:size].copy_(x).view(torch.uint8).numpy()
        os.pwrite(file, done.data, len(header) + 2 * start)

    for _ in pool.map(chunk, range(0, a.numel(), CHUNK)):
        pass
    os.close(file)


def main() -> None:
    """Average every file of A with its namesake in B."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", type=Path, nargs=3, metavar=("A", "B", "OUT"))
    parser.add_argument("--weight", type=float, default=0.5, help="of B; A has the rest")
    options = parser.parse_args()
    a, b, out = options.folders
    torch.set_num_threads(1)
    out.mkdir(parents=True)
    own = Buffers()
    with ThreadPoolExecutor(THREADS) as pool:
        for file in sorted(a.glob("*.safetensors")):
            average(file, b / file.name, out / file.name, options.weight, pool, own)


if __name__ == "__main__":
    main()
