"""A named pipe in the place of any file is refused, and nobody waits for somebody to write into it."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import weightspace as ws
from weightspace import cli

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""
NETWORK = "--network model.py:build --input 2,6"


class Pipe:
    """A pipe that notices who waits for it, and lets them go."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self.waited, self.stop = path, False, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stop.wait(0.02):
            try:
                os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody reads
                continue
            self.waited = True


@pytest.fixture
def pipe() -> Iterator[type[Pipe]]:
    made: list[Pipe] = []

    class Made(Pipe):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            made.append(self)

    yield Made
    for one in made:
        one.stop.set()
        one.thread.join()


def run(command: str) -> Result:
    return CliRunner().invoke(cli.main, command.split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with everything that commands read, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    Path("model.py").write_text(MODEL)
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()
        ws.save_checkpoint(state, name)
        ws.save_checkpoint(state, f"{name}.pt")
        for file in ("config.json", "tokenizer.json", "added_tokens.json"):
            Path(name, file).write_text("{}")
        Path(name, "vocab.txt").write_text("x\ny\n")
    Path("lora").mkdir()
    factors = {"lora_A": torch.randn(2, 6), "lora_B": torch.randn(8, 2)}
    named = {f"base_model.model.0.{side}.weight": tensor for side, tensor in factors.items()}
    ws.save_checkpoint(named, "lora/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]}
    Path("lora/adapter_config.json").write_text(json.dumps(config))
    Path("r.yml").write_text("merge_method: linear\nmodels:\n- {model: a}\n- {model: b}\n")
    Path("names.txt").write_text("x\ny\nz\n")
    Path("edges.csv").write_text("x,y\ny,z\n")
    np.save("scores.npy", np.eye(3))
    ws.LabelMetric.discrete(["x", "y", "z"]).save("m.safetensors")
    return tmp_path


#: What becomes a pipe, and a command that reads it.
INPUTS = {
    "r.yml": "merge r.yml -o out",
    "a.pt": "merge a.pt b.pt -o out",
    "a/model.safetensors": "merge a b -o out",
    "a/model.safetensors.index.json": "inspect a",
    "a/config.json": "merge a b -o out",
    "b/config.json": "merge a b -o out",
    "b/tokenizer.json": "merge a b -o out",
    "a/vocab.txt": "merge a b -o out",
    "b/added_tokens.json": "merge a b -o out",
    "lora/adapter_config.json": "merge a+lora b -o out",
    "lora/adapter_model.safetensors": "merge a+lora b -o out",
    "fisher.safetensors": "merge a b -m fisher --evidence fisher.safetensors,a -o out",
    "model.py": f"spec {NETWORK}",
    "spec.yaml": "match a b --spec spec.yaml -o p.safetensors",
    "p.safetensors": f"permute a p.safetensors {NETWORK} -o out",
    "task.py": "soup a b --task task.py:task -o out",
    "names.txt": "labels predict m.safetensors scores.npy --observed names.txt",
    "edges.csv": "labels build --edges edges.csv -o tree.safetensors",
    "scores.npy": "labels predict m.safetensors scores.npy --observed names.txt",
    "m.safetensors": "labels cover m.safetensors",
    "method.py": "merge a b -m method.py:mean -o out",
    "b.pt": "inspect b.pt",
    "a.txt": "inspect a.txt",
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_pipe_in_the_place_of_an_input_is_not_waited_for(name: str, folder: Path, pipe: type[Pipe]) -> None:
    Path(name).unlink(missing_ok=True)
    if name == "a/model.safetensors.index.json":
        Path("a/model.safetensors").unlink()
    made = pipe(Path(name))
    result = run(INPUTS[name])
    assert not made.waited
    assert result.exit_code in (0, 2), result.exception
    if result.exit_code:
        (line,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
        assert len(line) < 500
        assert not list(Path().glob("out*"))


#: What becomes a pipe, and a command that would write there.
OUTPUTS = {
    "out": "merge a b -o out",
    "out.safetensors": "merge a b -o out.safetensors",
    "out.pt": "merge a b -o out.pt --force",
    "spec.yaml": f"spec {NETWORK} -o spec.yaml --force",
    "p.safetensors": f"match a b {NETWORK} -o p.safetensors",
    "picture.png": "spectrum a -o picture.png",
    "soup.pt": "soup a b --recipe uniform -o soup.pt",
    "tree.safetensors": "labels build --edges edges.csv -o tree.safetensors",
    "predicted.csv": "labels predict m.safetensors scores.npy --observed names.txt -o predicted.csv",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_pipe_in_the_place_of_an_output_is_not_waited_for_nor_replaced(
    name: str, folder: Path, pipe: type[Pipe]
) -> None:
    made = pipe(Path(name))
    result = run(OUTPUTS[name])
    assert result.exit_code == 2, result.exception
    assert "is not a regular file" in result.output or "is a file" in result.output
    assert Path(name).is_fifo()
    assert not made.waited
