"""Several adapters into one: exact where that is possible, and against the same merge of full matrices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora import read_adapter
from weightspace.merging import ADAPTER_METHODS, merge, merge_adapters

Write = Callable[..., Path]
Normal = Callable[..., Tensor]


def deltas(folder: Path) -> dict[str, Tensor]:
    """Return what an adapter adds, in float64 and in the shape of its targets."""
    adapter, state = read_adapter(folder), ws.load_checkpoint(folder / "adapter_model.safetensors")
    found = {}
    for name, factors in adapter.factors.items():
        a, b = state[factors.names["A"]].double(), state[factors.names["B"]].double()
        delta = factors.scale * (b.flatten(1) @ a.flatten(1))
        found[name] = delta.T if factors.transposed else delta.view(factors.shape)
    return found


def pair(normal: Normal, module: str, rank: int, *shape: int) -> dict[str, Tensor]:
    a, b = normal(rank, *shape[1:]), normal(shape[0], rank, *[1] * (len(shape) - 2))
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


@pytest.fixture
def three(write: Write, normal: Normal) -> list[Path]:
    """Return adapters of several ranks, scales and targets."""
    embedding = {"e.lora_embedding_A": normal(3, 11), "e.lora_embedding_B": normal(6, 3)}
    return [
        write("one", {**pair(normal, "q", 2, 12, 9), **pair(normal, "k", 2, 5, 3, 2, 2)}, r=2, lora_alpha=5),
        write("two", {**pair(normal, "q", 3, 12, 9), **embedding}, r=3, lora_alpha=3),
        write("three", pair(normal, "q", 1, 12, 9), r=1, lora_alpha=2, use_rslora=True),
    ]


@pytest.mark.parametrize("method", ADAPTER_METHODS)
@pytest.mark.parametrize("alpha", [1e308, 1e300, 1e60])
def test_scales_beyond_what_factors_can_hold_are_refused(
    method: str, alpha: float, write: Write, normal: Normal, tmp_path: Path
) -> None:
    adapters = [write(name, pair(normal, "q", 2, 6, 5), r=2, lora_alpha=alpha) for name in ("one", "two")]
    with pytest.raises(WeightspaceError, match=r"overflows float64|overflow float32"):
        merge_adapters(adapters, tmp_path / "out", method=method)
    assert not (tmp_path / "out").exists()


def summed(folders: list[Path], weights: list[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        for name, delta in deltas(folder).items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def assert_deltas(folder: Path, expected: dict[str, Tensor]) -> None:
    found = deltas(folder)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_with_task_arithmetic_inside_it_is_the_weighted_sum(method: str, three: list[Path], tmp_path: Path) -> None:
    weights = [0.5, -1.5, 2.0]
    merge_adapters(three, tmp_path / "out", method=method, inner="task_arithmetic", weights=weights, lambda_=2)
    assert_deltas(tmp_path / "out", summed(three, [2 * weight for weight in weights]))


def test_linear_is_the_weighted_sum_with_all_ranks(three: list[Path], tmp_path: Path) -> None:
    report = merge_adapters(three, tmp_path / "out", method="linear", weights=[0.5, -1.5, 2.0])
    assert_deltas(tmp_path / "out", summed(three, [0.5, -1.5, 2.0]))
    assert report.ranks == {"q.weight": 6, "k.weight": 2, "e.weight": 3}


def test_linear_is_the_mean_by_default(three: list[Path], tmp_path: Path) -> None:
    merge_adapters(three, tmp_path / "out", method="linear")
    assert_deltas(tmp_path / "out", summed(three, [1 / 3] * 3))


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_one_adapter_comes_back(method: str, three: list[Path], tmp_path: Path) -> None:
    report = merge_adapters(three[:1], tmp_path / "out", method=method)
    assert_deltas(tmp_path / "out", deltas(three[0]))
    assert report.ranks == {"q.weight": 2, "k.weight": 2}


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_copies_of_an_adapter_give_the_adapter_in_its_rank(method: str, three: list[Path], tmp_path: Path) -> None:
    report = merge_adapters([three[1]] * 3, tmp_path / "out", method=method)
    assert_deltas(tmp_path / "out", deltas(three[1]))
    assert report.ranks == {"q.weight": 3, "e.weight": 3}


def test_knots_is_the_merge_of_full_differences(write: Write, normal: Normal, tmp_path: Path) -> None:
    folders = [write(str(rank), pair(normal, "q", rank, 12, 20), r=rank, lora_alpha=2 * rank) for rank in (2, 3)]
    parameters = {"density": 0.4, "lambda": 0.7}
    merge_adapters(folders, tmp_path / "out", method="knots", inner="ties", density=0.4, lambda_=0.7)
    full = [deltas(folder)["q.weight"] for folder in folders]
    left, values, right = torch.linalg.svd(torch.cat(full, dim=1), full_matrices=False)
    basis = left[:, :5]
    blocks = [{"x": block} for block in (values[:5, None] * right[:5]).split(20, dim=1)]
    merged = merge(blocks, "ties", base={"x": torch.zeros(5, 20, dtype=torch.float64)}, parameters=parameters)["x"]
    torch.testing.assert_close(deltas(tmp_path / "out")["q.weight"], basis @ merged, rtol=1e-4, atol=1e-5)


def test_core_space_is_its_formula(write: Write, normal: Normal, tmp_path: Path) -> None:
    folders = [write(str(rank), pair(normal, "q", rank, 12, 20), r=rank, lora_alpha=2 * rank) for rank in (2, 3)]
    merge_adapters(folders, tmp_path / "out", method="core_space", inner="ties", density=0.4, weights=[0.6, 0.4])
    states = [ws.load_checkpoint(folder / "adapter_model.safetensors") for folder in folders]
    a, b = ([state[f"base_model.model.q.lora_{side}.weight"].double() for state in states] for side in "AB")
    left = torch.linalg.svd(torch.cat(b, dim=1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat(a), full_matrices=False)[2].T
    cores = [{"x": left.T @ (2 * y @ x) @ right} for x, y in zip(a, b, strict=True)]
    zero = {"x": torch.zeros(5, 5, dtype=torch.float64)}
    merged = merge(cores, "ties", base=zero, weights=[0.6, 0.4], parameters={"density": 0.4})["x"]
    expected = left @ merged @ right.T
    torch.testing.assert_close(deltas(tmp_path / "out")["q.weight"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", ["ties", "dare_ties", "dare_linear", "breadcrumbs", "sce"])
@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_methods_of_differences_merge_inside(method: str, inner: str, three: list[Path], tmp_path: Path) -> None:
    for out in ("x", "y"):
        merge_adapters(three, tmp_path / out, method=method, inner=inner)
    x, y = (tmp_path / out / "adapter_model.safetensors" for out in "xy")
    assert x.read_bytes() == y.read_bytes()
    assert deltas(tmp_path / "x").keys() == {"q.weight", "k.weight", "e.weight"}


def test_a_scope_over_the_model_looks_at_all_tensors(three: list[Path], tmp_path: Path) -> None:
    for scope in ("tensor", "model"):
        merge_adapters(three, tmp_path / scope, density=0.3, parameters={"scope": scope})
    one, other = (deltas(tmp_path / scope)["q.weight"] for scope in ("tensor", "model"))
    assert not torch.allclose(one, other)


def test_adapters_without_a_difference_give_zeros(write: Write, tmp_path: Path) -> None:
    zeros = {"q.lora_A.weight": torch.ones(2, 5), "q.lora_B.weight": torch.zeros(4, 2)}
    folders = [write(name, zeros) for name in ("a", "b")]
    for method in ("knots", "core_space"):
        merge_adapters(folders, tmp_path / method, method=method)
        assert not deltas(tmp_path / method)["q.weight"].any()


def test_an_adapter_that_somebody_trained_is_replaced_only_by_force(three: list[Path], tmp_path: Path) -> None:
    trained = three[2]
    before = {path: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(CheckpointError, match="no record of having made it: it may be trained weights"):
        merge_adapters(three[:2], trained, method="linear")
    assert {path: path.read_bytes() for path in trained.iterdir()} == before
    merge_adapters(three[:2], trained, method="linear", force=True)
    merge_adapters(three[:2], trained, method="linear")  # its own result
    ws.save_checkpoint(ws.load_checkpoint(trained / "adapter_model.safetensors"), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="no record of having made it"):
        merge_adapters(three[:2], tmp_path / "lora.safetensors", method="linear", format="diffusers")


def test_the_output_says_where_it_comes_from(three: list[Path], tmp_path: Path) -> None:
    merge_adapters(three, tmp_path / "out", density=0.5)
    metadata = load_metadata(tmp_path / "out" / "adapter_model.safetensors")
    names = [entry["name"] for entry in json.loads(metadata["inputs"])]
    assert names[:2] == ["one/adapter_config.json", "one/adapter_model.safetensors"]
    assert json.loads(metadata["parameters"])["parameters"] == {"density": 0.5}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"method": "knot"}, "Did you mean 'knots'"),
    "unknown inner method": ({"inner": "tie"}, "Did you mean 'ties'"),
    "an inner method without a base": ({"inner": "linear"}, "cannot merge coordinates"),
    "an inner method with evidence": ({"inner": "regmean"}, "cannot merge coordinates"),
    "an inner method of linear": ({"method": "linear", "inner": "ties"}, "no inner method"),
    "an option of linear": ({"method": "linear", "density": 0.5}, "'density'"),
    "an unknown option": ({"parameters": {"densty": 1}}, "Did you mean 'density'"),
    "weights of another number": ({"weights": [1.0]}, "1 weights for 3"),
    "weights of linear of another number": ({"method": "linear", "weights": [1.0]}, "1 weights for 3"),
    "a density out of bounds": ({"density": 2.0}, "from 0 to 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_and_nothing_is_written(mistake: str, three: list[Path], tmp_path: Path) -> None:
    options, expected = MISTAKES[mistake]
    with pytest.raises(WeightspaceError) as error:
        merge_adapters(three, tmp_path / "out", **options)
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_fit_are_refused(three: list[Path], write: Write, normal: Normal, tmp_path: Path) -> None:
    wide = write("wide", pair(normal, "q", 2, 12, 8))
    saved = write("saved", {**pair(normal, "q", 2, 12, 9), "h.weight": normal(3)}, modules_to_save=["h"])
    broken = write("broken", {"q.lora_A.weight": torch.full((2, 9), torch.nan), "q.lora_B.weight": normal(12, 2)})
    for folder, expected in ((wide, "one shape"), (saved, "modules_to_save"), (broken, "holds NaN")):
        with pytest.raises(WeightspaceError, match=expected):
            merge_adapters([three[0], folder], tmp_path / "out")
    with pytest.raises(WeightspaceError, match="no adapter"):
        merge_adapters([], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match="would be lost"):
        merge_adapters(three, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("pattern", "expected"), [("output|h\\.0\\.q", "output|h\\.0\\.q"), (["output", "q"], ["output", "h.0.q"])]
)
def test_a_target_that_other_modules_end_with_stays_the_only_one(
    pattern: Any, expected: Any, write: Write, normal: Normal, tmp_path: Path
) -> None:
    """PEFT takes every ``attention.output`` for a target that a list calls ``output``, but none for a pattern."""
    tensors = {**pair(normal, "output", 2, 12, 9), **pair(normal, "h.0.q", 2, 5, 5)}
    folders = [write(name, tensors, r=2, target_modules=pattern) for name in ("one", "two")]
    merge_adapters(folders, tmp_path / "out", method="linear")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == expected


def test_adapters_of_different_models_are_reported(write: Write, normal: Normal, tmp_path: Path) -> None:
    bases = ("tiny/math", "/models/Math", None, "tiny/code")
    several = [
        write(str(number), pair(normal, "q", 2, 6, 5), base_model_name_or_path=base)
        for number, base in enumerate(bases)
    ]
    with pytest.warns(ws.WeightspaceWarning, match=r"3 was trained on tiny/code, but .*0 on tiny/math") as found:
        merge_adapters(several, tmp_path / "out")
    assert len(found) == 1


def test_an_adapter_that_shares_no_tensor_with_the_others_is_warned_of(
    write: Write, normal: Normal, tmp_path: Path
) -> None:
    """It may have other names for the same tensors, as files of Wan and of Z-Image do."""
    one, other = (write(name, pair(normal, name, 2, 6, 5), target_modules=[name]) for name in ("q", "k"))
    with pytest.warns(ws.WeightspaceWarning, match="changes no tensor that another adapter changes"):
        merge_adapters([one, other], tmp_path / "out", method="linear")
