"""Memory and time of deriving a spec and aligning by weights, for Llamas of up to a billion parameters.

The spec is derived from a Llama on the meta device. Two checkpoints with random weights are on disk in bfloat16. Each
step is a process of its own, and memory is its largest resident size, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from specs import SIZES, resident

import weightspace as ws
from weightspace.zoo.llama import Llama, rotations

#: Steps of a case, in order.
STEPS = ("derive", "write a", "write b", "align")


def network_of(millions: int) -> Llama:
    """Return a network on the meta device, with its tables of rotations."""
    options = SIZES[millions]
    with torch.device("meta"):
        network = Llama(length=16, **options)
    network.cos, network.sin = rotations(16, options["width"] // options["heads"])
    return network


def write(network: Llama, path: Path) -> None:
    """Write random weights."""
    generator = torch.Generator().manual_seed(int(path.stem == "b"))
    state = {}
    for name, tensor in network.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        state[name] = (1 + 0.1 * drawn if tensor.ndim == 1 else 0.02 * drawn).bfloat16()
    ws.save_checkpoint(state, path)


def measure(step: str, millions: int, folder: Path, *, sweeps: int) -> dict[str, Any]:
    """Take a step in this process."""
    network, figures = network_of(millions), dict[str, Any]()
    figures["millions"] = round(sum(one.numel() for one in network.parameters()) / 1e6, 1)

    def timed(label: str, work: Callable[[], Any]) -> Any:
        start, processor = time.perf_counter(), time.process_time()
        result = work()
        figures[f"{label}_s"] = round(time.perf_counter() - start, 1)
        figures[f"{label}_processor_s"] = round(time.process_time() - processor, 1)
        return result

    if step == "derive":
        tokens = torch.arange(8)[None]
        spec = timed("derive", lambda: ws.derive_spec(network, (tokens,), symmetry="full"))
        figures["error"] = spec.verification.error
        spec.save(folder / "spec.yaml")
    elif step.startswith("write"):
        write(network, folder / f"{step[-1]}.safetensors")
    else:
        spec = ws.SymmetrySpec.load(folder / "spec.yaml")
        a, b = (ws.load_checkpoint(folder / f"{name}.safetensors") for name in "ab")
        matching = timed("align", lambda: ws.align(spec, a, b, max_sweeps=sweeps))
        figures |= {"align_gb": gigabytes(), "sweeps": len(matching.objective) - 1}
        figures |= {"l2_reduction": matching.l2_reduction, "objective": matching.objective}
        timed("apply", lambda: matching.apply(a, b))
    return figures | {"step": step, "gb": gigabytes()}


def gigabytes() -> float:
    """Return the largest resident size of this process so far."""
    return round(resident("VmHWM") / 1e9, 2)


def main() -> None:
    """Take every step in a process of its own, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10,40,125", help="millions of parameters; 1000 takes an hour")
    parser.add_argument("--sweeps", type=int, default=0, help="after the first pass, outward from the embeddings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="of the files, on a disk (a RAM disk counts as memory)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.step, int(options.sizes), options.folder, sweeps=options.sweeps)), flush=True)
        return
    for millions in options.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            further = ["--sizes", millions, "--sweeps", str(options.sweeps), "--threads", str(options.threads)]
            for step in STEPS:
                subprocess.run([sys.executable, __file__, "--step", step, "--folder", folder, *further], check=True)


if __name__ == "__main__":
    main()
