"""A merge imports no part of torch that ``import torch`` leaves out, such as its compiler, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import torch

import weightspace as ws

CODE = """
import sys
import torch
before = set(sys.modules)
from weightspace.merging import merge_files
sources = [f"{name}.safetensors" for name in "ab"]
merge_files(sources, "linear.safetensors")
merge_files(sources, "task.safetensors", method="task_arithmetic", base="base.safetensors")
merge_files(sources[:1], "slerp.safetensors", method="slerp", base="base.safetensors", parameters={"t": 0.5})
added = sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in ("weightspace", "yaml"))
print([name for name in added if name.split(".")[0] in ("torch", "sympy", "scipy", "transformers", "safetensors")])
"""


def test_a_plain_merge_adds_nothing_to_what_torch_imports(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "base")):
        values = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
        ws.save_checkpoint({"w": values}, tmp_path / f"{name}.safetensors")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
