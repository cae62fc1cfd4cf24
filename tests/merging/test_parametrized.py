"""Merges of networks with weight norm, spectral norm and BatchNorm, by every method."""

from collections.abc import Sequence

import pytest
import torch
from parametrized_networks import (
    BOTH,
    SPECTRAL_NORMS,
    WEIGHT_NORMS,
    equal,
    fine_tunes,
    largest_singular_value,
    weight_of,
)
from samples import METHODS, VARIANTS, Variant, evidence_of
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import effective_name, find_parametrizations
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import merge

#: A convolution, one with a norm along its last axis, and a recurrent layer.
KINDS = ["convolution", "positional convolution", "recurrent"]

#: What makes the copy of copies: differences from a base, and means.
COPYING = [
    variant
    for variant in VARIANTS
    if variant.with_base
    or (
        variant.row.normalised
        and variant.parameters.get("normalize", True)
        and variant.parameters.get("normalize_weights", True)
    )
]

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def split(states: Sequence[StateDict]) -> tuple[list[StateDict], StateDict]:
    """Return models and a base."""
    return [dict(state) for state in states[1:]], dict(states[0])


def plain(state: StateDict) -> StateDict:
    """Return the state with float64 weights in the place of pairs, under the names of the directions."""
    result = find_parametrizations({name: tuple(tensor.shape) for name, tensor in state.items()})
    made = {name: tensor for name, tensor in state.items() if name not in result.functions}
    for direction, norm in result.weight_norms.items():
        size, weight = state[norm.magnitude].double(), state[direction].double()
        axes = [axis for axis, length in enumerate(size.shape) if length == 1]
        norms = weight.square().sum(axes, keepdim=True).sqrt() if size.dim() else weight.norm()
        made[direction] = weight * (size / norms)
    return made


def named(evidence: Sequence[StateDict] | None) -> list[StateDict] | None:
    """Return evidence under the names that a network's modules give their weights."""
    if evidence is None:
        return None
    return [{effective_name(name): tensor for name, tensor in state.items()} for state in evidence]


@every_variant
def test_a_merge_of_weight_norm_is_that_of_the_weights(variant: Variant) -> None:
    for kind in KINDS:
        models, base = split(fine_tunes(WEIGHT_NORMS[kind], variant.count + 1))
        weights = [plain(state) for state in models]
        evidence = evidence_of(variant.row, weights)
        result = plain(variant(models, base, evidence=named(evidence)))
        for name, expected in variant(weights, plain(base), evidence=evidence).items():
            torch.testing.assert_close(result[name].double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", COPYING, ids=str)
@pytest.mark.parametrize("kind", ["linear, old", "square"])
def test_models_equal_to_the_base_merge_to_the_base_bit_for_bit(variant: Variant, kind: str) -> None:
    (state,) = fine_tunes({**WEIGHT_NORMS, **SPECTRAL_NORMS}[kind], 1)
    evidence = named(evidence_of(variant.row, [plain(state)] * variant.count))
    assert equal(variant([dict(state) for _ in range(variant.count)], dict(state), evidence=evidence), state)


@every_variant
def test_a_merge_of_spectral_norm_has_spectral_norm_one(variant: Variant) -> None:
    for kind in ("convolution", "transposed and square, old"):
        models, base = split(fine_tunes(SPECTRAL_NORMS[kind], variant.count + 1))
        result = variant(models, base, evidence=[{}] * variant.count if variant.row.evidence else None)
        weight = weight_of(SPECTRAL_NORMS[kind], result)
        assert largest_singular_value(SPECTRAL_NORMS[kind], weight) == pytest.approx(1, abs=1e-5), kind


@pytest.mark.parametrize("kind", SPECTRAL_NORMS)
def test_every_make_of_spectral_norm_is_merged(kind: str) -> None:
    models, base = split(fine_tunes(SPECTRAL_NORMS[kind], 3))
    weight = weight_of(SPECTRAL_NORMS[kind], merge(models, "task_arithmetic", base=base, weights=[0.7, -0.4]))
    assert largest_singular_value(SPECTRAL_NORMS[kind], weight) == pytest.approx(1, abs=1e-5)


def test_spectral_norm_on_weight_norm_is_merged() -> None:
    models, base = split(fine_tunes(BOTH, 3))
    weight = weight_of(BOTH, merge(models, "ties", base=base, parameters={"density": 0.5}))
    assert largest_singular_value(BOTH, weight) == pytest.approx(1, abs=1e-5)


def test_the_global_pass_over_a_model_counts_a_pair_once() -> None:
    models, base = split(fine_tunes(WEIGHT_NORMS["convolution"], 3))
    options = {"base": base, "parameters": {"density": 0.3, "scope": "model"}}
    result = plain(merge(models, "ties", **options))
    expected = merge([plain(state) for state in models], "ties", **{**options, "base": plain(base)})
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["weight_g", "weight_v"])
def test_evidence_of_half_a_weight_is_refused(part: str) -> None:
    models = fine_tunes(WEIGHT_NORMS["linear, old"], 2)
    evidence = [{part: state[part].square()} for state in models]
    with pytest.raises(WeightspaceError, match=rf"refers to '{part}', a part of the weight 'weight' under weight norm"):
        merge(models, "fisher", evidence=evidence)


@pytest.mark.parametrize("allow", [False, True])
def test_a_direction_of_length_zero_is_refused_unless_nan_is_allowed(allow: bool) -> None:
    states = [{"weight_g": torch.ones(2, 1), "weight_v": torch.tensor([[1.0, size], [0.0, 0.0]])} for size in (1, 2)]
    if not allow:
        with pytest.raises(WeightspaceError, match="'weight_v' is zero in 1 of its 2 slices"):
            merge(states)
    else:
        result = merge(states, allow_nonfinite=True)
        assert result["weight_v"].tolist()[1] == [0.0, 0.0]  # as both have it


def batchnorm(variance: float, dtype: torch.dtype = torch.float32) -> StateDict:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["1.running_var"][:2] = variance
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {"weights": [1, 1]}),
        ("task_arithmetic", {"parameters": {"lambda": 1.2}}),
        ("ties", {"parameters": {"lambda": 2.5}}),
        ("dare_linear", {"parameters": {"density": 0.3, "rescale": "density", "lambda": 2.0}}),
        ("breadcrumbs", {"parameters": {"lambda": 1.5}}),
        ("linear", {"weights": [3, -2.9]}),
        ("wise_ft", {"parameters": {"alpha": 1.9}}),
        ("slerp", {"parameters": {"t": 3.0}}),
        ("passthrough", {"parameters": {"scale": -1.0}}),
    ],
)
def test_no_variance_is_negative(method: str, options: dict[str, object], dtype: torch.dtype) -> None:
    models = [batchnorm(variance, dtype) for variance in (0.3, 0.2)[: METHODS[method].models[1] or 2]]
    if METHODS[method].base != "none":
        options = {**options, "base": batchnorm(1.0, dtype)}
    result = merge(models, method, **options)["1.running_var"]  # type: ignore[arg-type]
    assert bool((result >= 0).all())
    assert result.dtype == dtype


@pytest.mark.parametrize("name", ["norm.running_var", "norm.moving_variance", "normaliser.running_std"])
def test_a_negative_variance_becomes_the_mean_and_no_other_value_changes(name: str) -> None:
    values = ([1.0, 1.0], [0.3, 1.5], [0.1, 2])
    base, a, b = ({name: torch.tensor(row), "w": torch.tensor(row)} for row in values)
    result = merge([a, b], "task_arithmetic", base=base)
    torch.testing.assert_close(result[name], torch.tensor([0.2, 2.5]))
    torch.testing.assert_close(result["w"], torch.tensor([-0.6, 2.5]))


def test_variances_already_negative_in_a_model_stay() -> None:
    state = {"running_var": torch.tensor([-1.0, 2.0])}
    assert merge([state, dict(state)])["running_var"].tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties"])
def test_counters_and_indices_are_merged_by_no_method(method: str) -> None:
    def state(steps: int, dtype: torch.dtype) -> StateDict:
        counters = {"ema.num_updates": torch.tensor(steps).to(dtype), "optimizer.step": torch.tensor(float(steps))}
        return {**counters, "ema.decay": torch.tensor(0.999), "position_ids": torch.arange(3).to(dtype)}

    models = [state(470_000, torch.int32), state(840_000, torch.int64)][: METHODS[method].models[1] or 2]
    base = {} if METHODS[method].base == "none" else {"base": state(900_000, torch.int64)}
    result = merge(models, method, parameters={"t": 0.3} if method == "slerp" else {}, **base)  # type: ignore[arg-type]
    largest = 900_000 if METHODS[method].base == "end" else 840_000
    assert (int(result["ema.num_updates"]), float(result["optimizer.step"])) == (largest, largest)
    assert float(result["ema.decay"]) == pytest.approx(0.999)
    assert result["position_ids"].tolist() == [0, 1, 2]


def test_a_float_beside_an_integer_is_no_weight() -> None:
    with pytest.raises(CheckpointError, match="'w' float32 against int64"):
        merge([{"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.int64)}])
    result = merge([{"position_ids": torch.arange(2.0)}, {"position_ids": torch.arange(2)}])
    assert result["position_ids"].dtype == torch.int64
