"""What every analysis leaves behind: rows of a table on the screen, and a JSON file with the environment."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy
import torch

import weightspace as ws

#: Folder of ``results/`` and ``figures/``, if nothing else is said.
HERE = Path(__file__).parent


def table_head(*titles: str) -> None:
    """Print the head of a Markdown table."""
    table_row(*titles)
    table_row(*("---" for _ in titles))


def table_row(*cells: object) -> None:
    """Print a row of a Markdown table: floats with three decimals, the rest as it is."""
    texts = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {' | '.join(texts)} |", flush=True)


def write_results(output: Path, name: str, **content: Any) -> None:
    """Write ``results/NAME.json`` below a folder: the environment, then the content."""
    path = output / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **content}, indent=1) + "\n")


def environment() -> dict[str, str]:
    """Return what figures may depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "weightspace": ws.__version__,
    }
