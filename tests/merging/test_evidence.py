"""Methods that read statistics of data: RegMean and Fisher merging."""

from pathlib import Path

import pytest
import torch
from samples import error, normals, same_bits
from torch import Tensor

from weightspace.checkpoints import StateDict, save_checkpoint
from weightspace.errors import WeightspaceError
from weightspace.merging import merge, merge_files


def gram(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs


def regmean(models: list[Tensor], grams: list[Tensor], **parameters: float) -> Tensor:
    evidence: list[StateDict] = [{"w": one} for one in grams]
    return merge([{"w": model} for model in models], "regmean", evidence=evidence, parameters=parameters)["w"]


def test_regmean_is_the_layer_whose_outputs_are_nearest_to_those_of_all_models() -> None:
    models = [normals(seed, (6, 4), torch.float64) for seed in (1, 2)]
    inputs = [normals(seed, (30, 4), torch.float64) for seed in (3, 4)]
    found = regmean(models, [gram(x) for x in inputs], reduce=1.0)
    targets = torch.cat([x @ model.T for x, model in zip(inputs, models, strict=True)])
    exact = torch.linalg.lstsq(torch.cat(inputs), targets).solution.T
    assert error(found, exact) < 1e-12


def test_regmean_takes_every_direction_from_the_model_that_has_data_in_it() -> None:
    models = [normals(seed, (6, 4), torch.float64) for seed in (1, 2)]
    seen = [torch.diag(torch.tensor(values)) for values in ([2.0, 5.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0])]
    found = regmean(models, seen)
    assert error(found[:, :2], models[0][:, :2]) < 1e-12
    assert error(found[:, 2], models[1][:, 2]) < 1e-12
    assert error(found[:, 3], (models[0] + models[1])[:, 3] / 2) < 1e-12


def test_regmean_with_reduce_0_weighs_columns_by_the_diagonal() -> None:
    models = [normals(seed, (6, 4), torch.float64) for seed in (1, 2)]
    grams = [gram(normals(seed, (30, 4), torch.float64)) for seed in (3, 4)]
    a, b = (one.diagonal() for one in grams)
    assert error(regmean(models, grams, reduce=0.0), (models[0] * a + models[1] * b) / (a + b)) < 1e-12


def test_regmean_of_a_convolution_takes_its_kernel_as_a_row() -> None:
    models = [normals(seed, (5, 2, 3, 3), torch.float64) for seed in (1, 2)]
    grams = [gram(normals(seed, (40, 18), torch.float64)) for seed in (3, 4)]
    flat = regmean([model.reshape(5, 18) for model in models], grams)
    assert error(regmean(models, grams).reshape(5, 18), flat) < 1e-12


def test_without_evidence_about_a_tensor_it_gets_the_mean() -> None:
    models = [{"w": normals(seed, (6, 4)), "b": normals(seed, (6,))} for seed in (1, 2)]
    grams = [{"w": gram(normals(seed, (30, 4)))} for seed in (3, 4)]
    assert error(merge(models, "regmean", evidence=grams)["b"], (models[0]["b"] + models[1]["b"]) / 2) < 1e-6
    information = [{"w": torch.ones(6, 4)}] * 2
    found = merge(models, "fisher", evidence=information, weights=[1, 3])["b"]
    assert error(found, (models[0]["b"] + 3 * models[1]["b"]) / 4) < 1e-6


@pytest.mark.parametrize(
    ("method", "evidence", "message"),
    [
        (
            "regmean",
            [torch.eye(4), torch.eye(3)],
            r"model 2 for 'w': found one of shape \(3, 3\), expected .* \(4, 4\)",
        ),
        ("regmean", [torch.eye(4), None], "model 2 for 'w': found none"),
        ("regmean", [torch.eye(4), torch.ones(4, 4).triu()], "not symmetric"),
        ("fisher", [torch.ones(6, 4), torch.ones(4, 6)], r"expected one of shape \(6, 4\)"),
        ("fisher", [None, torch.ones(6, 4)], "model 1 for 'w': found none"),
        ("fisher", [torch.ones(6, 4), -torch.ones(6, 4)], "negative"),
        ("fisher", [torch.ones(6, 4), torch.full((6, 4), float("nan"))], "negative or NaN"),
        ("regmean", [torch.eye(4), -torch.eye(4)], "negative squares"),
    ],
)
def test_evidence_that_does_not_fit_is_refused(method: str, evidence: list[Tensor | None], message: str) -> None:
    models = [{"w": normals(seed, (6, 4))} for seed in (1, 2)]
    states = [{} if one is None else {"w": one} for one in evidence]
    with pytest.raises(WeightspaceError, match=message):
        merge(models, method, evidence=states)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_evidence_of_another_network_is_refused(method: str) -> None:
    models = [{"w": normals(seed, (6, 4))} for seed in (1, 2)]
    with pytest.raises(WeightspaceError, match="none of the models' tensors, but 'other'"):
        merge(models, method, evidence=[{"other": torch.eye(4)}] * 2)
    with pytest.raises(WeightspaceError, match=r"evidence\[0\] is None; expected a list of state dicts"):
        merge(models, method, evidence=[None, None])  # type: ignore[list-item]


def test_fisher_takes_every_element_from_the_models_that_it_matters_to() -> None:
    models = [{"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}, {"w": torch.tensor([5.0, 5.0, 5.0, 5.0])}]
    information = [{"w": torch.tensor([1.0, 0.0, 3.0, 0.0])}, {"w": torch.tensor([0.0, 2.0, 1.0, 0.0])}]
    assert merge(models, "fisher", evidence=information)["w"].tolist() == [1, 5, 2, 3]
    assert merge(models, "fisher", evidence=information, weights=[1, 3])["w"].tolist() == [1, 5, 3, 4]


def test_fisher_refuses_negative_weights() -> None:
    models = [{"w": torch.ones(2)}, {"w": torch.ones(2)}]
    with pytest.raises(WeightspaceError, match="non-negative weights"):
        merge(models, "fisher", evidence=models, weights=[1, -0.5])


def test_a_dry_run_of_fisher_refuses_negative_weights(tmp_path: Path) -> None:
    for name in ("a", "b", "a_fisher", "b_fisher"):
        save_checkpoint({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    models, evidence = ([tmp_path / f"{name}{end}.safetensors" for name in "ab"] for end in ("", "_fisher"))
    with pytest.raises(WeightspaceError, match=r"'w': method 'fisher' takes non-negative weights; found -0\.5"):
        merge_files(
            models, tmp_path / "out.safetensors", method="fisher", evidence=evidence, weights=[1, -0.5], dry_run=True
        )


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_only_the_ratio_of_the_informations_counts(scale: float) -> None:
    models = [{"w": normals(seed, (50,))} for seed in (1, 2)]
    information = [{"w": normals(seed, (50,)).square()} for seed in (3, 4)]
    scaled = [{"w": one["w"] * scale} for one in information]
    expected = merge(models, "fisher", evidence=information)["w"]
    assert same_bits(merge(models, "fisher", evidence=scaled)["w"], expected)
