"""Differences of the sources of a merge: against numpy, tensor by tensor, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import Differences, source_differences

LAYERS = 3


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b", "c")):
        generator = torch.Generator().manual_seed(seed)
        state = {"head.weight": torch.randn(3, 4, generator=generator)}
        state |= {f"layers.{i}.w": torch.randn(40, 50, generator=generator) for i in range(LAYERS)}
        state |= {f"layers.{i}.b": torch.randn(50, generator=generator) for i in range(LAYERS)}
        ws.save_checkpoint(state, f"{name}.safetensors")


def flat(name: str, tensors: list[str]) -> np.ndarray:
    state = ws.load_checkpoint(f"{name}.safetensors")
    return torch.cat([state[tensor].flatten() for tensor in tensors]).double().numpy()


def check(found: Differences, names: tuple[str, ...], reference: str, tensors: list[str], threshold: float) -> None:
    """Compare with the definitions."""
    origin = flat(reference, tensors)
    deltas = np.stack([flat(name, tensors) - origin for name in names])
    norms = np.linalg.norm(deltas, axis=1)
    np.testing.assert_allclose(found.norms, norms)
    np.testing.assert_allclose(found.relative, norms / np.linalg.norm(origin))
    np.testing.assert_allclose(found.cosines, deltas @ deltas.T / np.outer(norms, norms))
    pieces = [flat(reference, [tensor]) for tensor in tensors]
    bounds = np.concatenate([np.full(len(piece), threshold * np.sqrt(np.mean(piece**2))) for piece in pieces])
    counted = np.abs(deltas) > bounds
    np.testing.assert_allclose(found.above, counted.mean(axis=1))
    conflicts = ((deltas > 0) & counted).any(axis=0) & ((deltas < 0) & counted).any(axis=0)
    assert found.conflicts == pytest.approx(conflicts.mean())
    assert found.elements == len(origin)


def test_tensors_layers_and_total_are_as_numpy_has_them() -> None:
    names = ("a", "b", "c")
    found = source_differences(
        [f"{name}.safetensors" for name in names], method="ties", base="base.safetensors", threshold=0.7
    )
    assert found.models == tuple(f"{name}.safetensors" for name in names)
    assert found.reference == "base.safetensors"
    for tensor in found.tensors:
        check(tensor, names, "base", [tensor.name], 0.7)
    assert [layer.name for layer in found.layers] == ["layers.0", "layers.1", "layers.2", "outside"]
    for number, layer in enumerate(found.layers[:LAYERS]):
        check(layer, names, "base", [f"layers.{number}.w", f"layers.{number}.b"], 0.7)
    check(found.layers[-1], names, "base", ["head.weight"], 0.7)
    check(found.total, names, "base", [tensor.name for tensor in found.tensors], 0.7)


def test_without_a_base_the_first_model_is_the_reference() -> None:
    found = source_differences(["a.safetensors", "b.safetensors", "c.safetensors"])
    assert (found.reference, found.models) == ("a.safetensors", ("b.safetensors", "c.safetensors"))
    check(found.total, ("b", "c"), "a", [tensor.name for tensor in found.tensors], found.threshold)


def test_large_tensors_are_read_in_chunks_and_give_the_same() -> None:
    generator = torch.Generator().manual_seed(9)
    state: dict[str, Tensor] = {}
    for name in ("x", "y", "z"):
        state = {"w": torch.randn(700, 300, generator=generator).to(torch.bfloat16)}
        ws.save_checkpoint(state, f"{name}.safetensors")
    found = source_differences(["y.safetensors", "z.safetensors"], method="task_arithmetic", base="x.safetensors")
    check(found.total, ("y", "z"), "x", ["w"], found.threshold)


def test_equal_models_have_no_cosine_and_no_conflicts() -> None:
    for name in ("same", "too"):
        ws.save_checkpoint(ws.load_checkpoint("a.safetensors"), f"{name}.safetensors")
    found = source_differences(
        ["same.safetensors", "too.safetensors"], method="ties", base="a.safetensors", threshold=0
    )
    assert found.total.relative == found.total.above == (0.0, 0.0)
    assert found.total.conflicts == 0
    assert found.total.mean_cosine is None


def test_what_one_model_alone_gives_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="nothing to compare"):
        source_differences(["a.safetensors"], method="passthrough")
    with pytest.raises(WeightspaceError, match="threshold must be a finite number"):
        source_differences(["a.safetensors", "b.safetensors"], threshold=-1.0)


def test_a_nan_is_an_error_that_names_the_tensor() -> None:
    state = ws.load_checkpoint("b.safetensors")
    state["head.weight"][0, 0] = float("nan")
    ws.save_checkpoint(state, "nan.safetensors")
    with pytest.raises(WeightspaceError, match=r"'head\.weight' of nan\.safetensors"):
        source_differences(["a.safetensors", "nan.safetensors"])
