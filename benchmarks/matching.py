"""Weight matching of random MLPs: weightspace beside `rebasin` and a naive algorithm 1, one thread.

Every run is a process of its own that reads the same two networks and writes the permuted source. Seconds are
those of the matching alone, imports and tracing left out. The objective Σ⟨a, π(b)⟩ is computed here, in
float64, from what a run wrote.

    python benchmarks/matching.py [--peer-python PATH] [--widths 1024,2048] [--repeats 3,2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

INPUTS, OUTPUTS, HIDDEN = 784, 10, 4
METHODS = ("weightspace", "rebasin", "naive")
#: Width -> how many times faster than the peer weightspace is meant to be.
GATES = {1024: 9.0, 2048: 3.0}
#: A share of the objective within which two local optima count as equal.
EQUAL = 1e-3
PEER_PACKAGES = ("torch", "rebasin")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
#: Overrides of OpenBLAS's choice of kernel; no run gets them.
OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

State = dict[str, np.ndarray]


# --- The runs, one a process ---


class Clock:
    """Wall time and processor time of a block; with one thread on an idle machine they are the same."""

    def __enter__(self) -> Clock:
        self.before = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        after = time.perf_counter(), time.process_time()
        names = ("seconds", "processor_seconds")
        self.read = {name: b - a for name, a, b in zip(names, self.before, after, strict=True)}


def network(width: int) -> Any:
    """Return the MLP with torch's default initialisation."""
    from torch import nn

    sizes = [INPUTS, *[width] * HIDDEN, OUTPUTS]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def run_weightspace(target: State, source: State, seed: int) -> tuple[State, dict[str, Any]]:
    """Match with this library, and time its parts."""
    import torch
    from parts import Parts

    from weightspace import derive_spec, permute, weight_matching  # before the clock starts

    module = network(len(target["0.bias"]))
    spec = derive_spec(module, (torch.zeros(2, INPUTS),))
    a, b = ({name: torch.from_numpy(x) for name, x in one.items()} for one in (target, source))
    with Parts() as parts, Clock() as clock:
        matching = weight_matching(spec, a, b, seed=seed, threads=1)
    permuted = permute(spec, matching.permutation, b)
    result = {**clock.read, "sweeps": len(matching.objective) - 1, **parts.shares(clock.read["seconds"])}
    return {name: x.numpy() for name, x in permuted.items()}, result


def run_rebasin(target: State, source: State, seed: int) -> tuple[State, dict[str, Any]]:
    """Match with the peer, as its README shows."""
    import torch
    from rebasin import PermutationCoordinateDescent

    modules = [network(len(target["0.bias"])) for _ in range(2)]
    for module, state in zip(modules, (target, source), strict=True):
        module.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    descent = PermutationCoordinateDescent(modules[0], modules[1], torch.zeros(2, INPUTS))
    sweeps, one_sweep = [], descent._calculate_permutations_step
    descent._calculate_permutations_step = lambda loop: sweeps.append(one_sweep(loop)) or sweeps[-1]
    torch.manual_seed(seed)
    with Clock() as clock:
        descent.rebasin()
    permuted = {name: x.numpy() for name, x in modules[1].state_dict().items()}
    return permuted, {**clock.read, "sweeps": len(sweeps)}


def run_naive(target: State, source: State, seed: int) -> tuple[State, dict[str, Any]]:
    """Match by Git Re-Basin's algorithm 1 as written: every gain from scratch (float32), scipy's solver."""
    from scipy.optimize import linear_sum_assignment

    names = [name.removesuffix(".weight") for name in target if name.endswith(".weight")]
    permutations = [np.arange(len(target[f"{name}.bias"])) for name in names]
    generator = np.random.default_rng(seed)
    sweeps, moved = 0, True
    with Clock() as clock:
        while moved:
            sweeps, moved = sweeps + 1, False
            for layer in generator.permutation(len(names) - 1):
                here, above = names[layer], names[layer + 1]
                rows, after = source[f"{here}.weight"], permutations[layer + 1]
                gains = np.outer(target[f"{here}.bias"], source[f"{here}.bias"])
                gains += target[f"{here}.weight"] @ (rows[:, permutations[layer - 1]] if layer else rows).T
                gains += target[f"{above}.weight"].T @ source[f"{above}.weight"][after]
                everyone, best = linear_sum_assignment(gains, maximize=True)
                old, new = (gains[everyone, one].astype(np.float64) for one in (permutations[layer], best))
                if np.sum(new - old) > 1e-7 * np.sum(np.abs(new)):
                    permutations[layer], moved = best, True
    permuted, before = {}, np.arange(INPUTS)
    for name, after in zip(names, permutations, strict=True):
        permuted[f"{name}.weight"] = source[f"{name}.weight"][after][:, before]
        permuted[f"{name}.bias"] = source[f"{name}.bias"][after]
        before = after
    return permuted, {**clock.read, "sweeps": sweeps}


def child(method: str, folder: Path, seed: int) -> None:
    """Run one method on the networks in a folder; write its result there and print its numbers."""
    if method != "naive":
        import torch

        torch.set_num_threads(1)
    target, source = (dict(np.load(folder / f"{name}.npz")) for name in ("target", "source"))
    run = {"weightspace": run_weightspace, "rebasin": run_rebasin, "naive": run_naive}[method]
    permuted, numbers = run(target, source, seed)
    np.savez(folder / f"{method}.npz", **permuted)
    print(json.dumps(numbers | {"versions": _versions()}))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scipy", "rebasin"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# --- The driver ---


def spawn(python: Path, method: str, folder: Path, seed: int) -> dict[str, Any]:
    """Run a method in a process of its own and judge what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name not in OVERRIDES} | ONE_THREAD
    command = [str(python), str(Path(__file__).resolve()), "--child", method, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--seed", str(seed)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    numbers = json.loads(done.stdout.splitlines()[-1])
    target, source, permuted = (dict(np.load(folder / f"{name}.npz")) for name in ("target", "source", method))
    return {
        "order_seed": seed,
        **numbers,
        "objective": objective(target, permuted),
        "change": change(source, permuted),
    }


def objective(a: State, b: State) -> float:
    """Return Σ⟨a, b⟩ over all tensors, in float64."""
    return float(sum(np.vdot(a[name].astype(np.float64), b[name].astype(np.float64)) for name in a))


def change(a: State, b: State) -> float:
    """Return how far the outputs of two networks lie apart, relative to their size: 0 for a permuted copy."""
    x = np.random.default_rng(0).standard_normal((32, INPUTS))
    outputs = [_forward(state, x) for state in (a, b)]
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max())


def _forward(state: State, x: np.ndarray) -> np.ndarray:
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    for number, name in enumerate(names):
        x = x @ state[f"{name}.weight"].T.astype(np.float64) + state[f"{name}.bias"]
        x = x if number == len(names) - 1 else np.maximum(x, 0)
    return x


def measure(width: int, repeats: int, peer_python: Path, folder: Path) -> dict[str, Any]:
    """Run the methods in turn, as often as asked, on one pair of networks."""
    import torch

    for seed, name in enumerate(("target", "source")):
        torch.manual_seed(seed)
        np.savez(folder / f"{name}.npz", **{key: x.numpy() for key, x in network(width).state_dict().items()})
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(repeats):
        for method in METHODS:
            python = peer_python if method == "rebasin" else Path(sys.executable)
            runs[method].append(spawn(python, method, folder, seed))
            last = runs[method][-1]
            print(
                f"width {width}  order {seed}  {method:12}{last['seconds']:8.2f} s"
                f"{last['sweeps']:5d} sweeps  objective {last['objective']:.3f}",
                file=sys.stderr,
            )
    return {"runs": runs, "median": {method: _median(listed) for method, listed in runs.items()}}


def _median(runs: list[dict[str, Any]]) -> dict[str, float]:
    numeric = [name for name, value in runs[0].items() if isinstance(value, int | float) and name != "order_seed"]
    return {name: statistics.median(run[name] for run in runs) for name in numeric}


def verdict(width: int, median: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the ratios to the peer, and whether they pass the gate of that width.

    The gate looks at processor time, which a busy machine disturbs less than wall time.
    """
    ours, peer = median["weightspace"], median["rebasin"]
    faster, better = (
        peer["processor_seconds"] / ours["processor_seconds"],
        ours["objective"] / peer["objective"],
    )
    gate = GATES.get(width)
    passed = None if gate is None else faster >= gate and better >= 1 - EQUAL
    wall = peer["seconds"] / ours["seconds"]
    return {
        "times_faster": faster,
        "times_faster_wall": wall,
        "objective_ratio": better,
        "gate": gate,
        "passed": passed,
    }


def environment(widths: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the numbers depend on; the versions are those that the runs reported."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    runs = next(iter(widths.values()))["runs"]
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads": 1,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {method: listed[0]["versions"] for method, listed in runs.items()},
    }


def make_peer(folder: Path) -> Path:
    """Make an environment that holds the peer and nothing of ours, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def table(widths: dict[str, dict[str, Any]]) -> str:
    """Return the medians as a Markdown table."""
    heads = ("width", "method", "seconds", "of a processor", "sweeps", "objective", "times faster")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for width, measured in widths.items():
        base = measured["median"]["rebasin"]["processor_seconds"]
        for method, one in measured["median"].items():
            used = one["processor_seconds"]
            cells = (width, method, f"{one['seconds']:.2f}", f"{used:.2f}", f"{one['sweeps']:.0f}")
            lines.append("| " + " | ".join((*cells, f"{one['objective']:.2f}", f"{base / used:.1f}")) + " |")
    return "\n".join(lines)


def report(width: str, measured: dict[str, Any]) -> str:
    """Return the verdict of one width as a sentence, and where our time went."""
    facts, parts = measured["verdict"], measured["median"]["weightspace"]
    passed = {None: "no gate", True: "gate passed", False: "gate NOT passed"}[facts["passed"]]
    return (
        f"width {width}: {facts['times_faster']:.1f} times faster than rebasin (gate {facts['gate']}), "
        f"objective {facts['objective_ratio']:.4f} of its: {passed}. "
        f"Of our time {parts['assignment_share']:.0%} in {parts['assignments']:.0f} assignments, "
        f"{parts['products_share']:.0%} in products."
    )


def main() -> None:
    """Read the options; measure; print the table and the gates; write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment that holds rebasin")
    parser.add_argument("--widths", default="1024,2048")
    parser.add_argument("--repeats", default="3,2", help="runs of every method, one number a width")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "matching.json")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.folder, options.seed)

    widths, repeats = ([int(one) for one in text.split(",")] for text in (options.widths, options.repeats))
    with tempfile.TemporaryDirectory() as folder:
        peer_python = options.peer_python or make_peer(Path(folder) / "peer")
        measured = {
            str(width): measure(width, count, peer_python, Path(folder))
            for width, count in zip(widths, repeats, strict=True)
        }
    for width, one in measured.items():
        one["verdict"] = verdict(int(width), one["median"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "environment": environment(measured),
        "layers": [INPUTS, *["width"] * HIDDEN, OUTPUTS],
        "widths": measured,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(measured))
    for width, one in measured.items():
        print(report(width, one))


if __name__ == "__main__":
    main()
