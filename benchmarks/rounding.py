"""The oracle's table of rounding, and what rounding once costs.

    python benchmarks/rounding.py                          # how many elements are the exact value, rounded once
    python benchmarks/rounding.py cost --earlier CHECKOUT  # times beside those of an earlier version's checkout

The oracle computes with fractions, and angles with hundreds of bits (``tests/merging/exact_oracles.py``). Beside every
share stands that of the formula as one would write it in torch, in float32, cast to the dtype of the models.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "merging"))

import exact_oracles as exact  # noqa: E402
from exact_data import KINDS, tensors  # noqa: E402

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

#: Method -> number of models, whether there is a base, and the arguments of the merge.
CASES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "linear, 2 models": (2, False, {"method": "linear"}),
    "linear, .6 and .4": (2, False, {"method": "linear", "weights": [0.6, 0.4]}),
    "linear, 3 models": (3, False, {"method": "linear"}),
    "task_arithmetic, .7 and .3": (2, True, {"method": "task_arithmetic", "weights": [0.7, 0.3]}),
    "slerp, t = .3": (1, True, {"method": "slerp", "parameters": {"t": 0.3}}),
    "ties, density .5": (2, True, {"method": "ties", "weights": [0.6, 0.4], "parameters": {"density": 0.5}}),
}

#: What an element's exact value is, of the models and the base behind them.
ORACLES: dict[str, Callable[[list[exact.Exact]], exact.Exact]] = {
    "linear, 2 models": lambda t: exact.linear(t, [1, 1]),
    "linear, .6 and .4": lambda t: exact.linear(t, [0.6, 0.4]),
    "linear, 3 models": lambda t: exact.linear(t, [1, 1, 1]),
    "task_arithmetic, .7 and .3": lambda t: exact.task_arithmetic(t[:-1], t[-1], [0.7, 0.3]),
    "slerp, t = .3": lambda t: exact.slerp(t[1], t[0], 0.3),
    "ties, density .5": lambda t: exact.ties(t[:-1], t[-1], [0.6, 0.4], 0.5),
}


def plain_slerp(model: Tensor, base: Tensor, t: float) -> Tensor:
    """Return the arc as it is written mostly."""
    cosine = (model * base).sum() / (model.norm() * base.norm())
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * model
    theta = torch.acos(cosine)
    return (torch.sin((1 - t) * theta) * base + torch.sin(t * theta) * model) / torch.sin(theta)


def plain_ties(models: Sequence[Tensor], base: Tensor, weights: Sequence[float], density: float) -> Tensor:
    """Return TIES as it is written mostly."""
    deltas = torch.stack([model - base for model in models])
    for delta in deltas:
        delta[delta.abs().argsort(descending=True, stable=True)[int(density * delta.numel()) :]] = 0
    own = torch.tensor(weights)[:, None]
    terms = own * deltas
    agree = ((terms > 0) == (terms.sum(0) >= 0)) & (terms != 0)
    total, divisor = torch.where(agree, terms, 0.0).sum(0), (own * agree).sum(0)
    return base + torch.where(divisor != 0, total / divisor, 0.0)


PLAIN: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "linear, 2 models": lambda t: (t[0] + t[1]) / 2,
    "linear, .6 and .4": lambda t: (0.6 * t[0] + 0.4 * t[1]) / (0.6 + 0.4),
    "linear, 3 models": lambda t: (t[0] + t[1] + t[2]) / 3,
    "task_arithmetic, .7 and .3": lambda t: t[2] + 0.7 * (t[0] - t[2]) + 0.3 * (t[1] - t[2]),
    "slerp, t = .3": lambda t: plain_slerp(t[0], t[1], 0.3),
    "ties, density .5": lambda t: plain_ties(t[:-1], t[-1], [0.6, 0.4], 0.5),
}


def merged(case: str, given: Sequence[Tensor]) -> Tensor:
    """Return what the package makes of the models and the base behind them."""
    import weightspace as ws

    _, has_base, options = CASES[case]
    models = [{"w": one} for one in (given[:-1] if has_base else given)]
    return ws.merge(models, base={"w": given[-1]} if has_base else None, **options)["w"]


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Compare with the oracle, or measure the cost."""
    if context.invoked_subcommand is None:
        context.invoke(shares)


@main.command()
@click.option("--elements", default=20_000, show_default=True, help="Of every tensor.")
@click.option("--seed", default=1, show_default=True)
def shares(elements: int, seed: int) -> None:
    """Print the shares of elements that are the exact value, rounded once."""
    print(f"{elements:,} elements, seed {seed}: package (the same formula in float32), in %")
    print("| method | dtype | " + " | ".join(KINDS) + " |\n|---|---|" + "---|" * len(KINDS))
    for case, (count, has_base, _) in CASES.items():
        for label, dtype in DTYPES.items():
            cells = []
            for kind in KINDS:
                given = tensors(kind, count + has_base, dtype, elements, seed)
                right = ORACLES[case]([exact.fractions(one) for one in given])
                plain = PLAIN[case]([one.float() for one in given]).to(dtype)
                pair = (exact.share_right(one, right) for one in (merged(case, given), plain))
                cells.append("{:.2f} ({:.1f})".format(*(100 * share for share in pair)))
            print(f"| {case} | {label} | " + " | ".join(cells) + " |", flush=True)


@main.command()
@click.option("--earlier", type=click.Path(exists=True, file_okay=False), required=True, help="A checkout.")
@click.option("--elements", default=2**22, show_default=True, help="Of every tensor.")
@click.option("--repeats", default=5, show_default=True)
def cost(earlier: str, elements: int, repeats: int) -> None:
    """Print the seconds of merges in memory, on one thread, beside those of an earlier version."""
    runs: dict[str, list[dict[str, float]]] = {str(HERE.parent): [], earlier: []}
    for _ in range(repeats):
        for checkout, times in runs.items():
            command = [sys.executable, str(HERE / "rounding.py"), "run", str(elements)]
            environment = {**os.environ, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1"}
            times.append(json.loads(subprocess.check_output(command, env=environment)))
    print(f"{elements:,} elements, medians of {repeats} processes\n| method | dtype | ms | earlier ms | ratio |")
    print("|---|---|---|---|---|")
    for case in CASES:
        for label in DTYPES:
            now, before = (statistics.median(run[f"{case} {label}"] for run in times) for times in runs.values())
            print(f"| {case} | {label} | {1e3 * now:.1f} | {1e3 * before:.1f} | {now / before:.2f} |")


@main.command()
@click.argument("elements", type=int)
def run(elements: int) -> None:
    """Print the processor seconds of every merge of fine-tunes: the least of three."""
    torch.set_num_threads(1)
    seconds = {}
    for case, (count, has_base, _) in CASES.items():
        wide = tensors("fine_tunes", count + has_base, torch.float32, elements)
        for label, dtype in DTYPES.items():
            given, times = [one.to(dtype) for one in wide], []
            for _ in range(3):
                start = time.process_time()
                merged(case, given)
                times.append(time.process_time() - start)
            seconds[f"{case} {label}"] = min(times)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
