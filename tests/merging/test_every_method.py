"""Properties that every row of the table of merging methods has."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    DTYPES,
    ROWS,
    VARIANTS,
    Variant,
    assert_same_bits,
    copied,
    error,
    evidence_of,
    floats,
    normals,
    random_state,
    same_bits,
    sample,
    scaled,
)
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.merging import METHODS

#: Methods whose result at an element depends on sums over the tensor, beside those that need whole matrices.
_SUMMING = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce"}

#: Methods whose result at an element depends on no sum over the tensor, unless they restore a norm.
ELEMENTWISE = {name for name, row in METHODS.items() if row.granularity != "whole"} - _SUMMING

BASED = [variant for variant in VARIANTS if variant.with_base]
MEANS = [
    variant
    for variant in VARIANTS
    if variant.row.normalised
    and not variant.with_base
    and variant.parameters.get("normalize", True)
    and variant.parameters.get("normalize_weights", True)
]

SUMMING = [v for v in VARIANTS if v.method not in ELEMENTWISE or v.parameters.get("rescale") or v.random]

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_row = pytest.mark.parametrize("variant", ROWS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)


def some_weights(variant: Variant) -> list[float] | None:
    return [0.3, 1.1, 0.7][: variant.count] if variant.row.weighted else None


@pytest.mark.parametrize("variant", BASED, ids=str)
def test_models_equal_to_the_base_merge_to_the_base_bit_for_bit(variant: Variant) -> None:
    for dtype in DTYPES:
        base = random_state(0, dtype)
        models = [copied(base) for _ in range(variant.count)]
        assert_same_bits(variant(models, base, weights=some_weights(variant)), base)


@pytest.mark.parametrize("variant", [variant for variant in BASED if variant.row.weighted], ids=str)
@given(
    weights=st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3).filter(lambda weights: abs(sum(weights[:2])) > 1),
    shape=shapes,
)
@settings(max_examples=10, deadline=None)
def test_the_base_comes_out_bit_for_bit_whatever_the_weights_are(
    variant: Variant, weights: list[float], shape: tuple[int, ...]
) -> None:
    weights[2] = abs(weights[2]) * (1 if sum(weights[:2]) > 0 else -1)  # so that they don't cancel
    base = {"w": normals(0, shape)}
    models = [copied(base) for _ in range(variant.count)]
    assert_same_bits(variant(models, base, weights=weights[: variant.count]), base)


@pytest.mark.parametrize("variant", MEANS, ids=str)
@every_dtype
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), shape=shapes)
@settings(max_examples=5, deadline=None)
def test_equal_models_merge_to_the_copy_bit_for_bit_whatever_the_weights_are(
    variant: Variant, dtype: torch.dtype, weights: list[float], shape: tuple[int, ...]
) -> None:
    model = {**random_state(1, dtype), "more": normals(0, shape, dtype)}
    models = [copied(model) for _ in range(variant.count)]
    merged = variant(models, weights=weights[: variant.count] if variant.row.weighted else None)
    assert_same_bits(merged, model)


@pytest.mark.parametrize("variant", [variant for variant in MEANS if variant.row.models[1] is None], ids=str)
@pytest.mark.parametrize("copies", [1, 2, 7])
def test_any_number_of_copies_merges_to_the_copy_bit_for_bit(variant: Variant, copies: int) -> None:
    model = random_state(1)
    assert_same_bits(variant([copied(model) for _ in range(copies)]), model)


@every_row
def test_the_inputs_are_unchanged_and_the_result_shares_no_memory_with_them(variant: Variant) -> None:
    models, base = sample(variant)
    before = [copied(state) for state in [*models, base]]
    for tensor in variant(models, base).values():
        tensor.zero_()
    for state, old in zip([*models, base], before, strict=True):
        assert_same_bits(state, old)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.row.evidence], ids=str)
def test_evidence_is_unchanged(variant: Variant) -> None:
    models, base = sample(variant)
    evidence = evidence_of(variant.row, models) or []
    before = [copied(state) for state in evidence]
    variant(models, base, evidence=evidence)
    for state, old in zip(evidence, before, strict=True):
        assert_same_bits(state, old)


@every_row
def test_the_same_merge_twice_gives_the_same_bits(variant: Variant) -> None:
    models, base = sample(variant)
    assert_same_bits(variant(models, base), variant(models, base))


def beside(narrow: Tensor, wide: Tensor) -> bool:
    """Return whether numbers are what wide ones round to, these being rounded themselves: half-way, to either side."""
    below, above = (torch.nextafter(wide, torch.full_like(wide, end)).to(narrow.dtype) for end in (-math.inf, math.inf))
    return bool(((narrow == below) | (narrow == above)).all())


@every_variant
def test_names_shapes_and_dtypes_are_kept_and_narrow_ones_computed_in_float32_and_rounded_once(
    variant: Variant,
) -> None:
    for dtype in DTYPES:
        models, base = sample(variant, dtype)
        merged = variant(models, base)
        assert list(merged) == list(models[0])
        wide = torch.promote_types(dtype, torch.float32)
        exact = merged
        if wide != dtype:
            exact = variant([{**model, **{n: t.to(wide) for n, t in floats(model).items()}} for model in models], base)
        for name, tensor in floats(models[0]).items():
            assert merged[name].shape == tensor.shape
            assert merged[name].isfinite().all()
            assert same_bits(merged[name], exact[name].to(dtype)) or beside(merged[name], exact[name]), name


@every_variant
def test_fp8_models_merge_to_what_their_values_in_float32_do_in_fp8(variant: Variant) -> None:
    models, base = sample(variant, torch.float8_e4m3fn)
    merged = variant(models, base)
    exact = variant([{**own, **{n: t.float() for n, t in floats(own).items()}} for own in models], base)
    for name, tensor in floats(models[0]).items():
        assert merged[name].dtype == tensor.dtype
        # A step of FP8 is an eighth of the number at most.
        torch.testing.assert_close(merged[name].float(), exact[name], rtol=0.125, atol=2.0**-9, msg=name)


@every_row
def test_differing_float_dtypes_are_promoted(variant: Variant) -> None:
    dtypes = [torch.bfloat16, torch.float16, torch.bfloat16][: variant.count]
    models = [random_state(seed, dtype) for seed, dtype in enumerate(dtypes, start=1)]
    merged = variant(models, random_state(0, torch.bfloat16))
    expected = torch.bfloat16 if variant.count == 1 else torch.float32
    assert {tensor.dtype for tensor in floats(merged).values()} == {expected}


@pytest.mark.parametrize("variant", [row for row in ROWS if row.with_base], ids=str)
def test_a_base_of_a_wider_dtype_does_not_widen_the_result(variant: Variant) -> None:
    models, base = sample(variant, torch.bfloat16)
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in base.items()}
    merged = variant(models, exact)
    assert {tensor.dtype for tensor in floats(merged).values()} == {torch.bfloat16}
    for name, tensor in floats(variant(models, base)).items():
        assert error(merged[name], tensor) < 1e-2, name


@every_variant
def test_the_order_of_the_names_is_irrelevant(variant: Variant) -> None:
    models, base = sample(variant)
    turned = [dict(reversed(list(state.items()))) for state in [*models, base]]
    expected = variant(models, base)
    assert_same_bits(variant([models[0], *turned[1:-1]], turned[-1]), expected)
    assert_same_bits(variant(turned[:-1], turned[-1]), dict(reversed(list(expected.items()))))


@every_row
def test_a_view_with_strides_merges_as_its_copy(variant: Variant) -> None:
    models, base = sample(variant)
    expected = variant(models, base)
    turned = [
        {**state, "tall.weight": state["tall.weight"].T.contiguous().T, "bias": state["bias"].repeat(2, 1).T[:, 0]}
        for state in [*models, base]
    ]
    assert not turned[0]["tall.weight"].is_contiguous()
    assert_same_bits(variant(turned[:-1], turned[-1]), expected)


@pytest.mark.parametrize("variant", [*ROWS, *(variant for variant in SUMMING if variant not in ROWS)], ids=str)
def test_the_number_of_threads_is_irrelevant(variant: Variant) -> None:
    """One matrix that torch splits over threads. Singular vectors also depend on the order of LAPACK's sums, hence
    1e-4: those of two close singular values rotate by the rounding error over the gap.
    """
    shape = (60, 50) if variant.singular else (40, 1000)
    states = [{"w": normals(seed, shape)} for seed in range(variant.count + 1)]
    assert torch.get_num_threads() == 1
    expected = variant(states[1:], states[0])["w"]
    try:
        torch.set_num_threads(2)
        found = variant(states[1:], states[0])["w"]
    finally:
        torch.set_num_threads(1)
    assert error(found, expected) < 1e-4 if variant.singular else same_bits(found, expected)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.row.scale_free], ids=str)
def test_scaling_everything_by_a_power_of_two_scales_the_result_exactly(variant: Variant) -> None:
    """Exactly, as no bit but the exponents changes; where singular vectors are in it, to 1e-5."""
    models, base = sample(variant)
    unscaled = variant(models, base)
    for factor in (2.0**-20, 2.0**20):
        expected = scaled(unscaled, factor)
        found = variant([scaled(model, factor) for model in models], scaled(base, factor))
        if not variant.singular:
            assert_same_bits(found, expected)
        for name, tensor in floats(expected).items():
            assert error(found[name], tensor) < 1e-5, name


@pytest.mark.parametrize(("method", "parameter"), [("nearswap", "t"), ("ram", "epsilon"), ("ramplus_tl", "epsilon")])
def test_a_parameter_in_the_unit_of_the_weights_scales_with_them(method: str, parameter: str) -> None:
    variant = next(row for row in ROWS if row.method == method)
    models, base = sample(variant)
    expected = scaled(variant(models, base, parameters={parameter: 0.5}), 2.0**20)
    large = [scaled(state, 2.0**20) for state in [*models, base]]
    assert_same_bits(variant(large[:-1], large[-1], parameters={parameter: 0.5 * 2.0**20}), expected)
    unscaled = variant(large[:-1], large[-1], parameters={parameter: 0.5})
    assert not torch.equal(unscaled["conv.weight"], expected["conv.weight"])


def language_model(seed: int, tied: bool) -> StateDict:
    embedding = normals(seed, (6, 2))
    return {"embedding": embedding, "head": embedding if tied else embedding.flip(0).contiguous()}


@every_row
def test_tensors_tied_everywhere_stay_tied_and_others_do_not(variant: Variant) -> None:
    models, base = [language_model(seed, True) for seed in range(variant.count)], language_model(9, True)
    both = variant(models, base)
    assert both["head"] is both["embedding"]
    one = variant([language_model(7, False), *models[1:]], base)
    assert one["head"] is not one["embedding"]
    assert not torch.equal(one["head"], one["embedding"])


@every_row
def test_parameters_that_require_gradients_merge_to_plain_tensors(variant: Variant) -> None:
    models, base = sample(variant)
    expected = variant(models, base)
    trainable: Sequence[Any] = [
        {n: torch.nn.Parameter(t) if t.is_floating_point() else t for n, t in state.items()}
        for state in [*models, base]
    ]
    merged = variant(trainable[:-1], trainable[-1])
    assert not any(tensor.requires_grad for tensor in merged.values())
    assert_same_bits(merged, expected)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if not variant.random], ids=str)
@given(shape=shapes, chunks=st.integers(5, 60))
@settings(max_examples=8, deadline=None)
def test_a_tensor_in_many_chunks_merges_as_in_one(variant: Variant, shape: tuple[int, ...], chunks: int) -> None:
    states = [{"w": normals(seed, shape)} for seed in range(variant.count + 1)]
    expected = variant(states[1:], states[0])["w"]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("_tensor_stack", "_registry", "_sparsify"):
            patch.setattr(f"weightspace.merging.methods.{module}.CHUNK", chunks)
        found = variant(states[1:], states[0])["w"]
    if variant.method in ELEMENTWISE and not variant.parameters.get("rescale"):
        assert same_bits(found, expected)
    assert error(found, expected) < 1e-6


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if not variant.random], ids=str)
def test_the_models_may_come_in_any_order(variant: Variant) -> None:
    """To the rounding of their sum; all but the result of a merge, which comes first."""
    models, base = sample(variant)
    first = 1 if variant.row.after_merge else 0
    evidence = evidence_of(variant.row, models)
    weights = [0.5, 0.25, 0.125][: variant.count] if variant.row.weighted else None
    parameters = {name: value[::-1] for name, value in variant.parameters.items() if isinstance(value, list)}
    if any(parameter.name == "rebuild" for parameter in variant.row.parameters):  # the number of a model
        parameters["rebuild"] = variant.count + 1 - variant.parameters.get("rebuild", 1)
    expected = variant(models, base, weights=weights)
    found = variant(
        [*models[:first], *models[first:][::-1]],
        base,
        weights=weights and weights[::-1],
        parameters=parameters,
        evidence=evidence and evidence[::-1],
    )
    for name, tensor in floats(expected).items():
        assert error(found[name], tensor) < (1e-4 if variant.singular else 2e-6), name
