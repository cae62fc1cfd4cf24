"""Fine-tunes of digits with a known best scaling factor, and tiny models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.tasks import ClassificationTask

#: The scaling factor of task arithmetic that gives the trained network.
PLANTED = 0.6


@pytest.fixture(scope="session")
def digits() -> ClassificationTask:
    """Digits, scored by the loss, which is smooth in the weights."""
    task = ws.load_task("digits-mlp")
    assert isinstance(task, ClassificationTask)
    return replace(task, objective="loss", mode="min")


@pytest.fixture(scope="session")
def trained(digits: ClassificationTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two fine-tunes whose changes add up to more than those of a network that is trained well."""
    folder = tmp_path_factory.mktemp("digits")
    base = ws.train(digits, seed=0, epochs=1)
    best = ws.train(digits, seed=0, epochs=6)
    generator = torch.Generator().manual_seed(0)
    noise = {name: 1e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    ws.save_checkpoint(base, folder / "base.safetensors")
    for name, sign in (("a", 1), ("b", -1)):
        tuned = {key: base[key] + (best[key] - base[key]) / (2 * PLANTED) + sign * noise[key] for key in base}
        ws.save_checkpoint(tuned, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def kept_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep scores apart from the user's."""
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(cache))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models of two tensors, in the working directory; scores are kept there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        state = {"v": torch.randn(12, generator=generator), "w": torch.randn(8, 12, generator=generator)}
        ws.save_checkpoint(state, f"{name}.safetensors")
    return tmp_path
