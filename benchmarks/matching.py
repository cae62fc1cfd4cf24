"""Weight matching of random networks: weightspace beside `rebasin` and a naive algorithm 1, one thread.

Every run is a process of its own that reads the same two networks and writes the permuted source. Seconds are
those of the matching alone, imports and tracing left out. The objective Σ⟨a, π(b)⟩ is computed here, in
float64, from what a run wrote. A case is the width of an MLP 784-w-w-w-w-10, or ``resnet50``.

    python benchmarks/matching.py [--peer-python PATH] [--cases 1024,2048,resnet50] [--repeats 3,2,2]
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
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

#: ``first sweep`` is weightspace with ``max_sweeps=1``.
METHODS = ("weightspace", "first sweep", "rebasin", "naive")
OURS = METHODS[:2]
#: Seconds after which the peer and the naive algorithm begin no further sweep.
LIMIT = 900.0
#: A share of the objective within which two local optima count as equal.
EQUAL = 1e-3
PEER_PACKAGES = ("torch", "rebasin")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
#: Overrides of OpenBLAS's choice of kernel; no run gets them.
OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

State = dict[str, np.ndarray]


# --- The runs, each in its own process ---


class Clock:
    """Wall time and processor time of a block; with one thread on an idle machine they are the same."""

    def __enter__(self) -> Clock:
        self.before = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        after = time.perf_counter(), time.process_time()
        names = ("seconds", "processor_seconds")
        self.read = {name: b - a for name, a, b in zip(names, self.before, after, strict=True)}


class Sweeps:
    """Counts sweeps, and says when to stop before a method has converged."""

    def __init__(self) -> None:
        self.start, self.count, self.moved = time.perf_counter(), 0, True

    def end(self, moved: bool) -> bool:
        """Count a sweep; tell whether there is to be another."""
        self.count, self.moved = self.count + 1, moved
        return moved and time.perf_counter() - self.start < LIMIT

    def numbers(self) -> dict[str, Any]:
        """Return how many there were, and whether the last one moved nothing."""
        return {"sweeps": self.count, "converged": not self.moved}


def run_weightspace(
    name: str, target: State, source: State, seed: int, max_sweeps: int = 100
) -> tuple[State, dict[str, Any]]:
    """Match with this library, and time its parts."""
    import torch
    from networks import case
    from parts import Parts

    from weightspace import derive_spec, permute, weight_matching  # before the clock starts

    one = case(name)
    spec = derive_spec(one.build().eval(), (torch.zeros(one.example),))
    a, b = ({key: torch.from_numpy(x) for key, x in state.items()} for state in (target, source))
    with Parts() as parts, Clock() as clock:
        matching = weight_matching(spec, a, b, seed=seed, threads=1, max_sweeps=max_sweeps)
    permuted = permute(spec, matching.permutation, b)
    sweeps = {"sweeps": len(matching.objective) - 1, "converged": matching.converged}
    result = {**clock.read, **sweeps, **parts.shares(clock.read["seconds"])}
    return {key: x.numpy() for key, x in permuted.items()}, result


def run_rebasin(name: str, target: State, source: State, seed: int) -> tuple[State, dict[str, Any]]:
    """Match with the peer, as its README shows."""
    import torch
    from networks import case
    from rebasin import PermutationCoordinateDescent

    one = case(name)
    modules = [one.build().eval() for _ in range(2)]
    for module, state in zip(modules, (target, source), strict=True):
        module.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()})
    descent = PermutationCoordinateDescent(modules[0], modules[1], torch.zeros(one.example))
    sweep = descent._calculate_permutations_step
    torch.manual_seed(seed)
    with Clock() as clock:
        sweeps = Sweeps()
        descent._calculate_permutations_step = lambda loop: sweeps.end(sweep(loop))
        descent.rebasin()
    permuted = {key: x.numpy() for key, x in modules[1].state_dict().items()}
    return permuted, {**clock.read, **sweeps.numbers()}


def run_naive(name: str, target: State, source: State, seed: int) -> tuple[State, dict[str, Any]]:
    """Match by Git Re-Basin's algorithm 1 as written: every gain from scratch (float32), scipy's solver."""
    from networks import case
    from scipy.optimize import linear_sum_assignment

    axes = case(name).groups()
    sizes = {group: target[key].shape[place] for key, gs in axes.items() for place, group in enumerate(gs) if group}
    permutations = {group: np.arange(size) for group, size in sizes.items()}
    generator = np.random.default_rng(seed)
    with Clock() as clock:
        sweeps, again = Sweeps(), True
        while again:
            moved = False
            for group in generator.permutation(list(permutations)):
                gains = _gains(group, axes, permutations, target, source)
                everyone, best = linear_sum_assignment(gains, maximize=True)
                old, new = (gains[everyone, one].astype(np.float64) for one in (permutations[group], best))
                if np.sum(new - old) > 1e-7 * np.sum(np.abs(new)):
                    permutations[group], moved = best, True
            again = sweeps.end(moved)
    return {key: _permuted(key, axes, permutations, x) for key, x in source.items()}, clock.read | sweeps.numbers()


def _gains(group: str, axes: Any, permutations: Any, target: State, source: State) -> np.ndarray:
    """Return what every unit of the source gains at every place of the target, the other groups held."""
    size = len(permutations[group])
    gains = np.zeros((size, size), dtype=np.float32)
    held = {**permutations, group: np.arange(size)}
    for key, groups in axes.items():
        if group in groups:
            place = groups.index(group)
            a, b = target[key], _permuted(key, axes, held, source[key])
            gains += np.moveaxis(a, place, 0).reshape(size, -1) @ np.moveaxis(b, place, 0).reshape(size, -1).T
    return gains


def _permuted(key: str, axes: Any, permutations: Any, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor with its units moved; the statistics of a BatchNorm move with its bias."""
    groups = axes.get(key) or axes.get(f"{key.rpartition('.')[0]}.bias", ())
    for place, group in enumerate(groups[: tensor.ndim]):
        if group is not None:
            tensor = np.take(tensor, permutations[group], axis=place)
    return tensor


def child(method: str, name: str, folder: Path, seed: int) -> None:
    """Run one method on the networks in a folder; write its result there and print its numbers."""
    if method != "naive":
        import torch

        torch.set_num_threads(1)
    target, source = (dict(np.load(folder / f"{side}.npz")) for side in ("target", "source"))
    once = partial(run_weightspace, max_sweeps=1)
    run = {"weightspace": run_weightspace, "first sweep": once, "rebasin": run_rebasin, "naive": run_naive}[method]
    permuted, numbers = run(name, target, source, seed)
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


def spawn(python: Path, method: str, name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Run a method in a process of its own and judge what it wrote."""
    environment = {key: value for key, value in os.environ.items() if key not in OVERRIDES} | ONE_THREAD
    command = [str(python), str(Path(__file__).resolve()), "--child", method, "--cases", name]
    command += ["--folder", str(folder), "--seed", str(seed)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    numbers = json.loads(done.stdout.splitlines()[-1])
    target, source, permuted = (dict(np.load(folder / f"{side}.npz")) for side in ("target", "source", method))
    return {
        "order_seed": seed,
        **numbers,
        "objective": objective(target, permuted),
        "change": change(name, source, permuted),
    }


def objective(a: State, b: State) -> float:
    """Return Σ⟨a, b⟩ over the parameters, in float64; one whose entries are all equal is left out as a constant."""
    names = [name for name in a if name.endswith(("weight", "bias")) and np.ptp(a[name]) > 0]
    return float(sum(np.vdot(a[name].astype(np.float64), b[name].astype(np.float64)) for name in names))


def change(name: str, a: State, b: State) -> float:
    """Return how far the outputs of two networks lie apart, relative to their size, in float64: 0 for a copy."""
    import torch
    from networks import case

    one = case(name)
    x = torch.randn(one.example, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for state in (a, b):
        module = one.build().double().eval()
        module.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        with torch.no_grad():
            outputs.append(module(x))
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())


def measure(name: str, repeats: int, peer_python: Path, folder: Path) -> dict[str, Any]:
    """Run the methods in turn, as often as asked, on one pair of networks."""
    import torch
    from networks import case

    for seed, side in enumerate(("target", "source")):
        torch.manual_seed(seed)
        np.savez(folder / f"{side}.npz", **{key: x.numpy() for key, x in case(name).build().state_dict().items()})
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(repeats):
        for method in METHODS:
            python = peer_python if method == "rebasin" else Path(sys.executable)
            runs[method].append(spawn(python, method, name, folder, seed))
            last = runs[method][-1]
            print(
                f"{name}  order {seed}  {method:12}{last['seconds']:8.2f} s"
                f"{last['sweeps']:5d} sweeps  objective {last['objective']:.3f}",
                file=sys.stderr,
            )
    return {"runs": runs, "median": {method: _median(listed) for method, listed in runs.items()}}


def _median(runs: list[dict[str, Any]]) -> dict[str, float]:
    numeric = [name for name, value in runs[0].items() if isinstance(value, int | float) and name != "order_seed"]
    return {name: statistics.median(run[name] for run in runs) for name in numeric}


def verdict(name: str, median: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return what ours is beside the peer, and whether a whole matching passes the gate of that case.

    The gate looks at processor time, which a busy machine disturbs less than wall time, and asks for an objective
    that is no lower than the peer's. The first sweep alone is for information: no gate looks at it.
    """
    from networks import case

    peer, gate = median["rebasin"], case(name).gate
    facts: dict[str, Any] = {"gate": gate, "passed": None}
    for method in OURS:
        ours = median[method]
        faster = peer["processor_seconds"] / ours["processor_seconds"]
        better = ours["objective"] / peer["objective"]
        wall = peer["seconds"] / ours["seconds"]
        facts[method] = {"times_faster": faster, "times_faster_wall": wall, "objective_ratio": better}
    if gate is not None:
        whole = facts["weightspace"]
        facts["passed"] = whole["times_faster"] >= gate and whole["objective_ratio"] >= 1 - EQUAL
    return facts


def environment(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the numbers depend on; the versions are those that the runs reported."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    runs = next(iter(cases.values()))["runs"]
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


def table(cases: dict[str, dict[str, Any]]) -> str:
    """Return the medians as a Markdown table."""
    heads = ("case", "method", "seconds", "of a processor", "sweeps", "objective", "times faster")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, measured in cases.items():
        base = measured["median"]["rebasin"]["processor_seconds"]
        for method, one in measured["median"].items():
            used = one["processor_seconds"]
            cells = (name, method, f"{one['seconds']:.2f}", f"{used:.2f}", f"{one['sweeps']:.0f}")
            lines.append("| " + " | ".join((*cells, f"{one['objective']:.2f}", f"{base / used:.1f}")) + " |")
    return "\n".join(lines)


def report(name: str, measured: dict[str, Any]) -> str:
    """Return the verdict of one case as a sentence, and where our time went."""
    facts, parts = measured["verdict"], measured["median"]["weightspace"]
    passed = {None: "none", True: "passed", False: "NOT passed"}[facts["passed"]]
    whole, first = (
        f"{facts[method]['times_faster']:.1f} times faster at {facts[method]['objective_ratio']:.4f} of its objective"
        for method in OURS
    )
    return (
        f"{name}, beside rebasin: {whole} (gate {facts['gate']}: {passed}); the first sweep alone {first}. "
        f"Of our time {parts['assignment_share']:.0%} in {parts['assignments']:.0f} assignments, "
        f"{parts['products_share']:.0%} in products."
    )


def main() -> None:
    """Read the options; measure; print the table and the gates; write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment that holds rebasin")
    parser.add_argument("--cases", default="1024,2048,resnet50", help="widths of MLPs, and resnet50")
    parser.add_argument("--repeats", default="3,2,2", help="runs of every method, one number a case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "matching.json")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.cases, options.folder, options.seed)

    names, repeats = options.cases.split(","), [int(one) for one in options.repeats.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        peer_python = options.peer_python or make_peer(Path(folder) / "peer")
        measured = {
            name: measure(name, count, peer_python, Path(folder)) for name, count in zip(names, repeats, strict=True)
        }
    for name, one in measured.items():
        one["verdict"] = verdict(name, one["median"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"environment": environment(measured), "cases": measured}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(measured))
    for name, one in measured.items():
        print(report(name, one))


if __name__ == "__main__":
    main()
