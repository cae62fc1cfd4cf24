"""Memory and time of deriving specs, for Llamas of growing size: ``python benchmarks/specs.py``.

Each derivation is a process of its own. Memory is the largest resident size above that of the process with the
network built and the library used once, divided by the size of the float32 weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import weightspace as ws
from weightspace.zoo.llama import Llama

#: Millions of parameters -> options of the network.
SIZES = {
    1: {"vocabulary": 1_000, "width": 128, "depth": 4, "heads": 4, "groups": 2, "hidden": 352},
    10: {"vocabulary": 8_000, "width": 256, "depth": 8, "heads": 4, "groups": 2, "hidden": 704},
    40: {"vocabulary": 16_000, "width": 512, "depth": 8, "heads": 8, "groups": 4, "hidden": 1_376},
    125: {"vocabulary": 32_000, "width": 768, "depth": 12, "heads": 12, "groups": 4, "hidden": 2_048},
    1_000: {"vocabulary": 32_000, "width": 2_048, "depth": 20, "heads": 32, "groups": 8, "hidden": 5_632},
}
SYMMETRIES = ("permutations", "signed", "full")


def resident(field: str) -> int:
    """Return a size from Linux's /proc/self/status, in bytes: VmRSS is that of now, VmHWM the largest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(millions: int, symmetry: str, *, verify: bool) -> dict[str, object]:
    """Derive the spec of one network in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = (torch.arange(8)[None],)
    ws.derive_spec(Llama(length=16, **SIZES[1]), inputs, symmetry=symmetry)  # type: ignore[call-overload]
    network = Llama(length=16, **SIZES[millions])
    weights = sum(one.numel() * one.element_size() for one in network.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, start = resident("VmRSS"), time.perf_counter()
    spec = ws.derive_spec(network, inputs, symmetry=symmetry, verify=verify)  # type: ignore[call-overload]
    return {
        "parameters": weights // 4,
        "symmetry": symmetry,
        "verify": verify,
        "memory_over_weights": round((resident("VmHWM") - before) / weights, 2),
        "seconds": round(time.perf_counter() - start, 1),
        "digest": spec.digest,
    }


def main() -> None:
    """Measure every case in a process of its own, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10,40,125", help="millions of parameters")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        millions, symmetry, verify = options.case.split(",")
        print(json.dumps(measure(int(millions), symmetry, verify=verify == "True")))
        return
    for millions in options.sizes.split(","):
        for symmetry in SYMMETRIES:
            for verify in (False, True):
                case = f"{millions},{symmetry},{verify}"
                subprocess.run([sys.executable, __file__, "--case", case], check=True)


if __name__ == "__main__":
    main()
