"""Merging of Llama-shaped bf16 folders: weightspace beside mergekit and the floors, whole processes.

Wall seconds and the most private memory of each process, the contenders in turn, inputs in the page cache. The
recipes are the same files for both tools; every output is checked to hold every tensor.

    python benchmarks/merging.py [--peer PATH/python] [--cases linear,ties] [--repeats 3] [--dir SCRATCH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from llama import LARGE, TINY, Llama, make_models
from merging_cases import CASES, CONTENDERS, SOURCES, WEIGHTS, Case
from safetensors import safe_open
from torch import Tensor
from whole_process import RunError, Usage, run_whole

MODELS: Mapping[str, Llama] = {"large": LARGE, "tiny": TINY}
#: Packages of either environment on which the figures depend.
PACKAGES = ("weightspace", "mergekit", "torch", "numpy", "safetensors", "transformers")
#: Settings of the caller's that no run gets: thread counts, and overrides of OpenBLAS's kernels.
UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
#: A tensor of the large models by which the outputs are compared.
WITNESS = "model.layers.5.mlp.up_proj.weight"
READ = """
import sys
buffer = bytearray(1 << 18)
for path in sys.argv[1:]:
    with open(path, "rb", 0) as file:
        while file.readinto(buffer):
            pass
"""


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and who takes part."""

    folder: Path
    python: Path
    peer: Path | None
    contenders: Sequence[str]
    repeats: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that every process gets."""
        return {name: value for name, value in os.environ.items() if name not in UNSET} | OFFLINE

    def run(self, command: Sequence[str | Path], models: str = "large") -> Usage:
        """Run a command beside the models, once all that was written before is on the disk."""
        os.sync()
        return run_whole([str(word) for word in command], self.folder / models, self.environment)

    def command(self, contender: str, recipe: Path, out: Path) -> list[str | Path]:
        """Return what merges by a recipe."""
        ours = [self.python.parent / "weightspace", "merge", recipe, "-o", out]
        if contender == "ours":
            return [*ours, "--no-hash", "--no-fsync"]
        if contender == "prototype":
            script = Path(__file__).resolve().parent / "chunked.py"
            return [self.python, script, *SOURCES, out, "--weight", str(WEIGHTS[1])]
        if contender == "peer":
            # Its card of the model asks the hub for every input.
            return [(self.peer or self.python).parent / "mergekit-yaml", recipe, out, "--no-write-model-card"]
        return ours

    def files(self, *models: str) -> list[str]:
        """Return the weight files of some of the large models."""
        return [str(path) for model in models for path in sorted((self.folder / "large" / model).glob("*.safetensors"))]

    def warm(self) -> None:
        """Bring inputs into the page cache."""
        self.run([sys.executable, "-c", READ, *self.files("base", *SOURCES)])


# --- Measuring ---


def measure_case(bench: Bench, name: str, case: Case) -> dict[str, Any]:
    """Run the contenders in turn, as often as asked, and check what each wrote; who fails drops out."""
    recipe = bench.folder / f"{name}.yml"
    recipe.write_text(yaml.safe_dump(dict(case.recipe), sort_keys=False))
    runs: dict[str, list[Usage]] = {one: [] for one in case.contenders if one in bench.contenders}
    failures: dict[str, str] = {}
    outs = {one: bench.folder / "out" / one for one in runs}
    bench.warm()
    for _ in range(bench.repeats):
        for contender, out in outs.items():
            if contender in failures:
                continue
            shutil.rmtree(out, ignore_errors=True)
            try:
                usage = bench.run(bench.command(contender, recipe, out), case.models)
                _check_complete(out, MODELS[case.models])
            except RunError as error:
                failures[contender] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
            else:
                runs[contender].append(usage)
                _tell(name, contender, usage)
    complete = {one: listed for one, listed in runs.items() if one not in failures}
    compared = [outs[one] for one in complete] if case.models == "large" else []
    measured = {"recipe": case.recipe, **_summary(complete), "failures": failures}
    measured["differences"] = _differences(compared, bench.folder / "large")
    shutil.rmtree(bench.folder / "out", ignore_errors=True)
    return measured | {"gates": [found for gate in case.gates if (found := gate.judge(measured["median"]))]}


def measure_floors(bench: Bench) -> dict[str, Any]:
    """Read both inputs and do nothing with them; start Python with torch and stop."""
    commands = {
        "raw_read": [bench.python, "-c", READ, *bench.files(*SOURCES)],
        "import_torch": [bench.python, "-c", "import torch"],
    }
    runs: dict[str, list[Usage]] = {name: [] for name in commands}
    bench.warm()
    for _ in range(bench.repeats):
        for name, command in commands.items():
            runs[name].append(bench.run(command))
            _tell("floors", name, runs[name][-1])
    return _summary(runs)


def _summary(runs: Mapping[str, list[Usage]]) -> dict[str, Any]:
    listed = {name: [asdict(usage) for usage in usages] for name, usages in runs.items()}
    median = {
        name: {figure: statistics.median(usage[figure] for usage in usages) for figure in usages[0]}
        for name, usages in listed.items()
    }
    return {"runs": listed, "median": median}


def _tell(case: str, contender: str, usage: Usage) -> None:
    figures = f"{usage.seconds:8.2f} s {usage.processor_seconds:8.2f} s of processors {usage.private_mb:6.0f} MB"
    print(f"{case:16}{contender:13}{figures}", file=sys.stderr)


def _check_complete(out: Path, llama: Llama) -> None:
    """Check that a folder holds every tensor in its shape and dtype, and none besides."""
    found: dict[str, tuple[int, ...]] = {}
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file isn't a mapping
                chunk = file.get_slice(name)
                found[name] = (*chunk.get_shape(), chunk.get_dtype())
    expected = {name: (*shape, "BF16") for name, shape in llama.shapes().items()}
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise RunError(f"{out}: {len(wrong)} tensors are missing, new or of another shape, the first {wrong[0]!r}.")


def _differences(outs: Sequence[Path], models: Path) -> dict[str, float]:
    """Return how far each output lies from the last one's, over that one's distance from the base, in one tensor.

    The last is the peer where it ran: it rounds to bf16 at every step, so several per cent are its own error. Two
    results of dare_ties have different masks.
    """
    if len(outs) < 2:
        return {}
    *others, last = outs
    result, base = _witness(last), _witness(models / "base")
    scale = (result - base).norm()
    return {f"{out.name} from {last.name}": float((_witness(out) - result).norm() / scale) for out in others}


def _witness(folder: Path) -> Tensor:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if WITNESS in file.keys():  # noqa: SIM118 - the file isn't a mapping
                return file.get_tensor(WITNESS).double()
    raise RunError(f"{folder} has no tensor {WITNESS!r}.")


# --- Reporting ---


def versions(python: Path) -> dict[str, str]:
    """Return the version of Python and of the packages that an environment has."""
    code = (
        "import json, platform, sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "found = {'python': platform.python_version()}\n"
        "for package in sys.argv[1:]:\n"
        "    try: found[package] = version(package)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([str(python), "-c", code, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def environment(bench: Bench) -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    pythons = {"weightspace": bench.python} | ({"peer": bench.peer} if bench.peer else {})
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.system(),
        "load_average": os.getloadavg()[0],
        "versions": {name: versions(python) for name, python in pythons.items()},
    }


def table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the medians as a Markdown table."""
    heads = ("case", "ours s", "as shipped s", "peer s", "ratio", "target", "ours MB", "as shipped MB", "peer MB")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, measured in cases.items():
        median = measured["median"]
        seconds, private = (
            [f"{median[one][figure]:{form}}" if one in median else "–" for one in ("ours", "shipped", "peer")]
            for figure, form in (("seconds", ".2f"), ("private_mb", ".0f"))
        )
        ratio = next((gate for gate in measured["gates"] if gate["contender"] == "peer"), None)
        cells = (f"{ratio['found']:.1f}", f"{ratio['at_least']:g}") if ratio else ("–", "–")
        lines.append("| " + " | ".join((name, *seconds, *cells, *private)) + " |")
    return "\n".join(lines)


def floors_table(floors: Mapping[str, Mapping[str, float]]) -> str:
    """Return the floors as a Markdown table."""
    lines = ["| floor | s | MB |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| {name} | {one['seconds']:.2f} | {one['private_mb']:.0f} |" for name, one in floors.items()]
    )


def verdicts(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line for every gate that was judged."""
    lines = []
    for name, measured in cases.items():
        for gate in measured["gates"]:
            subject = f"{gate['contender']} / {gate['over']}" if gate["over"] else gate["contender"]
            aim = f"≤ {gate['at_most']:g}" if gate["at_most"] is not None else f"≥ {gate['at_least']:g}"
            passed = "passed" if gate["passed"] else "NOT passed"
            lines.append(f"{name}: {gate['figure']} of {subject} {gate['found']:.2f} (aim {aim}): {passed}")
    return "\n".join(lines)


def _listed(text: str, known: Sequence[str], what: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"There is no {what} {unknown[0]!r}, expected some of {', '.join(known)}.")
    return names


def main() -> None:
    """Read the options; make the models; measure; print the tables and the gates; write the JSON."""
    everything = ("floors", *CASES)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", type=Path, help="interpreter of an environment that holds mergekit")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter of ours; default: this")
    parser.add_argument("--cases", default=",".join(everything), help="default: %(default)s")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="scratch folder, 7 GB; models in it are used again")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "merging.json")
    options = parser.parse_args()
    names = _listed(options.cases, everything, "case")
    contenders = _listed(options.contenders, CONTENDERS, "contender")
    if options.peer is None:
        contenders = [name for name in contenders if name != "peer"]

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.dir or Path(scratch)).absolute()
        peer = options.peer.absolute() if options.peer else None
        bench = Bench(folder, options.python.absolute(), peer, contenders, options.repeats)
        for models, llama in MODELS.items():
            make_models(folder / models, llama)
        result: dict[str, Any] = {"environment": environment(bench), "repeats": options.repeats, "cases": {}}
        for name in names:
            if name == "floors":
                result["floors"] = measure_floors(bench)
            elif set(CASES[name].contenders) & set(contenders):
                result["cases"][name] = measure_case(bench, name, CASES[name])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    floors = result.get("floors", {"median": {}})["median"]
    prototype = result["cases"].get("linear", {"median": {}})["median"].get("prototype")
    print(floors_table(floors | ({"prototype": prototype} if prototype else {})))
    print(table(result["cases"]))
    print(verdicts(result["cases"]))
    if failed := {name: list(case["failures"]) for name, case in result["cases"].items() if case["failures"]}:
        raise SystemExit(f"Failed, see {options.out}: {failed}")


if __name__ == "__main__":
    main()
