"""Merging, label decoding and weight matching on a GPU against the CPU of the same machine, in at most 8 minutes.

Run it where there is a GPU: ``python benchmarks/gpu.py OUT.json``. Every part writes its result before the next one
begins, with the card's name, and is skipped once the time is used up. With ``--small --device cpu`` it only checks that
it runs. The CPU works on a share of the matrices of a large merge; its time is scaled by the number of operations.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import weightspace as ws
from weightspace.labels import LabelMetric

#: Seconds after which no further part begins.
_SECONDS = 480

#: Sizes: matrices of a billion parameters (128 of 2,048 × 4,096), labels, width of WUDI; and small ones.
_FULL = {"matrices": 128, "shape": (2048, 4096), "on_cpu": 2, "labels": 300_000, "batch": 256, "wudi": (2048, 4096)}
_SMALL = {"matrices": 2, "shape": (160, 320), "on_cpu": 1, "labels": 300, "batch": 8, "wudi": (64, 128)}


def card(device: str) -> str:
    """Return the name of a device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"


def timed(device: str, function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the seconds of the fastest of some calls, to their end on the device, and the last result."""
    best = float("inf")
    result: Any = None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best, result


def models(count: int, shape: tuple[int, int], number: int) -> list[ws.StateDict]:
    """Return a base and models, with a number of matrices each, in bfloat16."""
    found = []
    for seed in range(count + 1):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{i}.weight": torch.randn(shape, generator=generator) for i in range(number)}
        found.append({name: (0.02 * tensor).bfloat16() for name, tensor in state.items()})
    return found


def difference(a: ws.StateDict, b: ws.StateDict) -> float:
    """Return the largest relative difference of two networks' tensors of the same names."""
    return max(float((a[name].double() - b[name].double()).norm() / b[name].double().norm()) for name in b)


def merge_part(method: str, device: str, shape: tuple[int, int], number: int, on_cpu: int) -> dict[str, Any]:
    """Merge a pair by a method on the device, and a share of it on the CPU."""
    base, *pair = models(2, shape, number)
    few = [{name: state[name] for name in list(state)[:on_cpu]} for state in (base, *pair)]
    ws.merge(few[1:], method, base=few[0], device=device)  # starts the device's libraries
    seconds, found = timed(device, lambda: ws.merge(pair, method, base=base, device=device))
    on_cpu_seconds, expected = timed("cpu", lambda: ws.merge(few[1:], method, base=few[0]))
    scaled = on_cpu_seconds * number / on_cpu
    return {
        "parameters": number * shape[0] * shape[1],
        "seconds": seconds,
        "cpu_seconds_scaled": scaled,
        "ratio": scaled / seconds,
        "relative_difference": difference(found, expected),
    }


def labels_part(device: str, labels: int, batch: int) -> dict[str, Any]:
    """Decode on a random tree of labels, on both devices."""
    generator = torch.Generator().manual_seed(0)
    parents = (torch.rand(labels - 1, generator=generator) * torch.arange(1, labels)).long().tolist()
    metric = LabelMetric.from_tree([-1, *parents])
    logits = torch.randn(batch, labels, generator=generator)
    heads = {place: metric.head(observed=metric.labels).to(place) for place in dict.fromkeys(("cpu", device))}
    inputs = {place: logits.to(place) for place in heads}
    for place in heads:
        heads[place](inputs[place])
    times = {place: timed(place, lambda place=place: heads[place](inputs[place]), repeats=5) for place in heads}
    argmax, _ = timed(device, lambda: inputs[device].argmax(-1).cpu(), repeats=5)
    return {
        "labels": labels,
        "batch": batch,
        "seconds": times[device][0],
        "cpu_seconds": times["cpu"][0],
        "ratio": times["cpu"][0] / times[device][0],
        "times_argmax": times[device][0] / argmax,
        "equal": bool((torch.as_tensor(times[device][1]).cpu() == torch.as_tensor(times["cpu"][1]).cpu()).all()),
    }


def matching_part(device: str, small: bool) -> dict[str, Any]:
    """Match two random ResNet-50 of torchvision, or two small networks, on both devices."""
    task = ws.load_task("digits-cnn")
    build: Callable[[], torch.nn.Module] = task.network
    example: Any = task.example_args
    if not small:
        from torchvision.models import resnet50

        build, example = resnet50, (torch.zeros(1, 3, 224, 224),)
    torch.manual_seed(0)
    network = build().eval()
    spec = ws.derive_spec(network, example)
    a, b = network.state_dict(), build().state_dict()
    seconds, found = timed(device, lambda: ws.weight_matching(spec, a, b, device=device))
    cpu_seconds, expected = timed("cpu", lambda: ws.weight_matching(spec, a, b))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": cpu_seconds / seconds,
        "objective": found.objective[-1],
        "cpu_objective": expected.objective[-1],
    }


def main() -> None:
    """Run the parts in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    sizes: dict[str, Any] = _SMALL if given.small else _FULL
    number, device = sizes["matrices"], given.device
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "labels": lambda: labels_part(device, sizes["labels"], sizes["batch"]),
        "wudi": lambda: merge_part("wudi", device, sizes["wudi"], min(4, number), 1),
        "tsv_m": lambda: merge_part("tsv_m", device, sizes["shape"], number, sizes["on_cpu"]),
        "weight_matching": lambda: matching_part(device, given.small),
    }
    begin = time.perf_counter()
    result: dict[str, Any] = {"device": card(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    for name, part in parts.items():
        late = time.perf_counter() - begin > _SECONDS
        try:
            result[name] = {"skipped": "out of time"} if late else part()
        except (RuntimeError, ws.WeightspaceError, ImportError) as error:
            result[name] = {"failed": str(error).splitlines()[0]}
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result[name]), flush=True)


if __name__ == "__main__":
    main()
