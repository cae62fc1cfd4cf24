"""Adapters out of differences: a planted one comes back, and nothing of its rank is nearer than what is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict, load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora import extract_lora, extract_lora_files, read_adapter
from weightspace.lora.extract import nearest_factors
from weightspace.merging import ExecutionOptions, merge_files

Normal = Callable[..., Tensor]


def product(state: StateDict, module: str) -> Tensor:
    a, b = (state[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return (b.flatten(1) @ a.flatten(1)).view(len(b), *a.shape[1:])


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (150, 90), (7, 5, 3, 3)])
def test_a_planted_difference_of_low_rank_comes_back(shape: tuple[int, ...], normal: Normal) -> None:
    base = normal(*shape, dtype=torch.float64)
    planted = (normal(shape[0], 3, dtype=torch.float64) @ normal(3, base[0].numel(), dtype=torch.float64)).view(shape)
    extraction = extract_lora({"q.weight": base}, {"q.weight": base + planted}, rank=3)
    torch.testing.assert_close(product(extraction.state, "q"), planted, rtol=1e-10, atol=1e-10)
    assert extraction.report.error < 1e-12
    assert extraction.report.energy == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (6, 4, 3, 3)])
def test_the_error_is_that_of_eckart_and_young(shape: tuple[int, ...], dtype: torch.dtype, normal: Normal) -> None:
    base, model = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    values = torch.linalg.svdvals((model.double() - base.double()).flatten(1))
    optimal = float(values[4:].norm() / values.norm())
    extraction = extract_lora({"q.weight": base}, {"q.weight": model}, rank=4)
    assert extraction.report.errors["q.weight"] == pytest.approx(optimal, rel=1e-5)
    left = (model - base - product(extraction.state, "q")).double().norm() / values.norm()
    assert float(left) == pytest.approx(optimal, rel=1e-5)


def test_subspace_iteration_is_almost_as_near_as_the_exact_decomposition(normal: Normal) -> None:
    left, right = (torch.linalg.qr(normal(200, 200, dtype=torch.float64)).Q for _ in range(2))
    values = 1 / torch.arange(1, 201, dtype=torch.float64)
    matrix = left * values @ right
    a, b = nearest_factors(matrix, 5)
    assert float((matrix - b @ a).norm()) == pytest.approx(float(values[5:].norm()), rel=1e-6)


def test_subspace_iteration_depends_on_its_seed_alone(normal: Normal) -> None:
    matrix = normal(100, 100)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = nearest_factors(matrix, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(x, y) for x, y in zip(one, nearest_factors(matrix, 2, seed=3), strict=True))


def test_factors_are_balanced(normal: Normal) -> None:
    a, b = nearest_factors(normal(20, 30, dtype=torch.float64), 4)
    torch.testing.assert_close(a @ a.T, b.T @ b)
    torch.testing.assert_close(a @ a.T, torch.diag(torch.diag(a @ a.T)))


def test_the_rank_is_at_most_the_smaller_side(normal: Normal) -> None:
    shapes = {"x.q": (30, 40), "x.narrow": (30, 2), "y.q": (50, 60)}
    base = {f"{module}.weight": normal(*shape) for module, shape in shapes.items()}
    model = {name: normal(*tensor.shape) for name, tensor in base.items()}
    extraction = extract_lora(base, model, rank=8)
    assert extraction.report.ranks == {"x.q.weight": 8, "x.narrow.weight": 2, "y.q.weight": 8}
    assert extraction.config["r"] == extraction.config["lora_alpha"] == 8
    assert extraction.config["rank_pattern"] == extraction.config["alpha_pattern"] == {r"^x\.narrow": 2}
    assert extraction.config["target_modules"] == ["x.q", "x.narrow", "y.q"]


def test_the_total_error_weighs_tensors_by_their_differences(normal: Normal) -> None:
    base = {"a.weight": torch.zeros(20, 20), "b.weight": torch.zeros(20, 20)}
    model = {"a.weight": normal(20, 20), "b.weight": 9 * normal(20, 20)}
    report = extract_lora(base, model, rank=2).report
    norms = {name: float(tensor.norm()) for name, tensor in model.items()}
    squares = sum((report.errors[name] * norm) ** 2 for name, norm in norms.items())
    assert report.error == pytest.approx((squares / sum(norm**2 for norm in norms.values())) ** 0.5)


def test_equal_tensors_have_no_factors_and_equal_models_are_an_error(normal: Normal) -> None:
    base = {"a.weight": normal(4, 4), "b.weight": normal(4, 4), "n": torch.tensor(3)}
    assert list(extract_lora(base, {**base, "b.weight": normal(4, 4)}, rank=2).report.errors) == ["b.weight"]
    with pytest.raises(WeightspaceError, match="nothing to extract"):
        extract_lora(base, base, rank=2)


def small_model(normal: Normal) -> StateDict:
    matrices = {name: normal(4, 4) for name in ("q.weight", "k.weight")}
    vectors = {name: normal(4) for name in ("q.bias", "k.bias", "norm.weight", "norm.bias", "block.gain", "steps")}
    return {**matrices, **vectors, "block.in.norm.weight": normal(4), "steps": torch.tensor(3)}


#: A counter, a parameter beside modules, the bias of a layer without factors, a norm whose name ends another's.
@pytest.mark.parametrize("name", ["steps", "block.gain", "k.bias"])
def test_tensors_that_an_adapter_cannot_have_are_refused_or_left_out(name: str, normal: Normal) -> None:
    base = small_model(normal)
    model = {**base, "q.weight": normal(4, 4), name: base[name] + 1}
    with pytest.raises(WeightspaceError, match=f"no factors for: '{name}'.*--lenient.*differ from the model there"):
        extract_lora(base, model, rank=2)
    report = extract_lora(base, model, rank=2, lenient=True).report
    assert (report.left_out, report.saved) == ((name,), ())
    assert list(report.errors) == ["q.weight"]


def test_a_norm_whose_name_ends_that_of_another_is_refused(normal: Normal) -> None:
    base = {"q.weight": normal(4, 4), "norm.weight": normal(4), "block.norm.weight": normal(4)}
    with pytest.raises(WeightspaceError, match=r"no factors for: 'norm\.weight'"):
        extract_lora(base, {**base, "q.weight": normal(4, 4), "norm.weight": normal(4)}, rank=2)
    found = extract_lora(base, {**base, "q.weight": normal(4, 4), "block.norm.weight": normal(4)}, rank=2)
    assert found.config["modules_to_save"] == ["block.norm"]


def test_norms_and_biases_beside_factors_are_kept_whole_unless_lenient(normal: Normal, tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in small_model(normal).items() if "block" not in name}
    moved = ("q.weight", "q.bias", "norm.weight")
    tuned = {name: tensor + normal(*tensor.shape) if name in moved else tensor for name, tensor in base.items()}
    for name, state in (("base", base), ("tuned", tuned)):
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    files = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    report = extract_lora_files(*files, tmp_path / "adapter", rank=4)
    assert (report.left_out, report.saved) == ((), ("q.bias", "norm.weight"))
    out = tmp_path / "again.safetensors"
    merge_files([f"{files[0]}+{tmp_path / 'adapter'}"], out, execution=ExecutionOptions(fsync=False))
    again = ws.load_checkpoint(out)
    for name, tensor in tuned.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-5 if name == "q.weight" else 0)
    plain = extract_lora(base, tuned, rank=4, lenient=True)
    assert set(plain.report.left_out) == {"q.bias", "norm.weight"}
    assert all("lora_" in name for name in plain.state)
    assert (plain.config["bias"], plain.config.get("modules_to_save")) == ("none", None)


def test_mistakes_are_errors(normal: Normal) -> None:
    base = {"q.weight": normal(4, 4)}
    with pytest.raises(WeightspaceError, match="at least 1; found 0"):
        extract_lora(base, base, rank=0)
    with pytest.raises(CheckpointError, match="do not fit together"):
        extract_lora(base, {"v.weight": normal(4, 4)}, rank=2)
    with pytest.raises(WeightspaceError, match=r"'q.weight' contains NaN"):
        extract_lora(base, {"q.weight": torch.full((4, 4), torch.nan)}, rank=2)


@pytest.mark.parametrize("turned", [False, True])
def test_model_and_extracted_adapter_are_the_fine_tuned_model(turned: bool, normal: Normal, tmp_path: Path) -> None:
    base = {"embed_tokens.weight": normal(40, 6), "q.weight": normal(12, 9), "k.weight": normal(5, 3, 2, 2)}
    tuned = {name: tensor + normal(*tensor.shape) for name, tensor in base.items()}
    for name, state in (("base", base), ("tuned", tuned)):
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    files = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    report = extract_lora_files(*files, tmp_path / "adapter", rank=30, fan_in_fan_out=turned)
    assert report.error < 1e-5
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.factors["embed_tokens.weight"].embedding
    assert adapter.factors["q.weight"].transposed is turned
    merge_files(
        [f"{files[0]}+{tmp_path / 'adapter'}"],
        tmp_path / "again.safetensors",
        execution=ExecutionOptions(fsync=False),
    )
    again = ws.load_checkpoint(tmp_path / "again.safetensors")
    for name, tensor in tuned.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-5)
    assert load_metadata(tmp_path / "adapter" / "adapter_model.safetensors")["method"] == "extract-lora"


def test_the_same_files_give_the_same_bytes(normal: Normal, tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        ws.save_checkpoint({"q.weight": normal(50, 50)}, tmp_path / f"{name}.safetensors")
    for out in ("x", "y"):
        extract_lora_files(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / out, rank=3)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


@pytest.mark.parametrize("held", ["notes.txt", "model.safetensors", "adapter_config.json/"])
def test_a_folder_that_is_no_adapter_is_not_replaced(held: str, normal: Normal, tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        ws.save_checkpoint({"q.weight": normal(5, 5)}, tmp_path / f"{name}.safetensors")
    files = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    out = tmp_path / "out"
    extract_lora_files(*files, out, rank=1)
    extract_lora_files(*files, out, rank=2)
    assert read_adapter(out).factors["q.weight"].rank == 2
    ws.save_checkpoint(ws.load_checkpoint(out / "adapter_model.safetensors"), out / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="no record of having made it"):  # as an adapter that somebody trained
        extract_lora_files(*files, out, rank=1)
    extract_lora_files(*files, out, rank=2, force=True)
    if held.endswith("/"):
        (out / held.rstrip("/")).unlink()
        (out / held.rstrip("/")).mkdir()
    else:
        (out / held).write_text("mine")
    with pytest.raises(CheckpointError, match="would be lost"):
        extract_lora_files(*files, out, rank=1)
    assert (out / held).exists()
    with pytest.raises(CheckpointError, match="would be a folder"):
        extract_lora_files(*files, files[0], rank=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "out", "tuned.safetensors"]


def test_adapters_is_another_name_of_the_public_functions() -> None:
    from weightspace import adapters, lora

    assert all(getattr(adapters, name) is getattr(lora, name) for name in adapters.__all__)
