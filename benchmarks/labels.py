"""Fréchet-mean prediction beside the dense product: one thread, batches of 256, ratios of the same run.

The dense baseline is what is published: probabilities (256, K) times squared distances (K, outputs) in float32, then
argmin. Where that matrix does not fit it is timed on ``--outputs`` columns, which are written once, and scaled up.

    python benchmarks/labels.py [--cases tree-10k,tree-300k,embeddings,wordnet] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import weightspace as ws

BATCH = 256
#: Case -> times faster than the dense product that are aimed at.
AIMS = {"tree-10k": 30, "tree-300k": 400, "embeddings": 40, "wordnet": 15}


def tree(labels: int) -> ws.LabelMetric:
    """Return a random recursive tree."""
    rng = np.random.default_rng(0)
    return ws.LabelMetric.from_tree([-1, *(int(rng.integers(0, i)) for i in range(1, labels))])


def embeddings() -> ws.LabelMetric:
    """Return 100,000 points of 512 dimensions."""
    return ws.LabelMetric.from_embeddings(np.random.default_rng(0).standard_normal((100_000, 512), dtype=np.float32))


CASES: Mapping[str, Callable[[], ws.LabelMetric]] = {
    "tree-10k": lambda: tree(10_000),
    "tree-300k": lambda: tree(300_000),
    "embeddings": embeddings,
    "wordnet": ws.LabelMetric.from_wordnet,
}


def probabilities(labels: int) -> Tensor:
    """Return peaked rows that sum to one, float32."""
    logits = 3 * np.random.default_rng(1).standard_normal((BATCH, labels), dtype=np.float32)
    return torch.softmax(torch.from_numpy(logits), -1)


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, repeats: int, outputs: int) -> dict[str, Any]:
    """Time ours, the dense product and plain argmax in turn, and check some predictions against exact costs."""
    metric = CASES[name]()
    labels = len(metric)
    p = probabilities(labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    decision = metric.decision(observed=metric.labels)
    rule = decision.rule
    making = time.perf_counter() - start
    rule.decide(p)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dense = torch.rand(min(outputs, labels), labels) * 100
    times: dict[str, list[float]] = {"decide": [], "predict": [], "argmax": [], "dense": []}
    for _ in range(repeats):
        times["decide"].append(seconds(lambda: rule.decide(p)))
        times["predict"].append(seconds(lambda: decision.predict(p)))
        times["argmax"].append(seconds(lambda: p.argmax(1)))
        times["dense"].append(seconds(lambda: (p @ dense.T).argmin(1)) * labels / len(dense))
    median = {key: statistics.median(values) for key, values in times.items()}
    ratio = [dense / ours for dense, ours in zip(times["dense"], times["decide"], strict=True)]
    longer = [ours / plain for ours, plain in zip(times["decide"], times["argmax"], strict=True)]
    return {
        "labels": labels,
        "seconds": median,
        "every run": times,
        "making the rule": making,
        "dense is scaled from outputs": len(dense) if len(dense) < labels else None,
        "times faster than dense": statistics.median(ratio),
        "aim": AIMS[name],
        "times as long as argmax": statistics.median(longer),
        "added peak memory MB": (peak - before) / 1024,
        "wrong of 8 rows": wrong(metric, decision, p),
    }


def wrong(metric: ws.LabelMetric, decision: Any, p: Tensor) -> int:
    """Return how many of 8 rows have a label of less cost, in float64 and beyond rounding."""
    found = decision.predict(p[:8])
    count = 0
    for row, label in enumerate(found):
        costs = decision.expected_cost(p[row : row + 1])[0]
        count += int(costs[label] > costs.min() * (1 + 1e-9))
    return count


def environment() -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Run each case in a process of its own, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--outputs", type=int, default=3000, help="columns of the dense baseline; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "labels.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps({"environment": environment(), **measure(options.one, options.repeats, options.outputs)}))
        return
    found: dict[str, Any] = {"environment": environment(), "batch": BATCH, "cases": {}}
    if options.out.exists():
        found["cases"] = json.loads(options.out.read_text())["cases"]
    print("| case | ours ms | dense ms | times faster | aim | argmax ms | × argmax | added MB | wrong of 8 |")
    print("|---" * 9 + "|")
    for name in options.cases.split(","):
        if name not in CASES:
            raise SystemExit(f"There is no case {name!r}, expected some of {', '.join(CASES)}.")
        words = (
            sys.executable,
            __file__,
            "--one",
            name,
            "--repeats",
            str(options.repeats),
            "--outputs",
            str(options.outputs),
        )
        done = subprocess.run(
            words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
        )
        one = found["cases"][name] = json.loads(done.stdout.splitlines()[-1])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        took = one["seconds"]
        cells = (
            *(
                f"{1000 * took['decide']:,.1f}",
                f"{1000 * took['dense']:,.0f}",
                f"{one['times faster than dense']:,.0f}",
            ),
            *(one["aim"], f"{1000 * took['argmax']:,.1f}", f"{one['times as long as argmax']:.1f}"),
            *(f"{one['added peak memory MB']:,.0f}", one["wrong of 8 rows"]),
        )
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
