"""Refusals of every row of the table of merge methods, and their messages."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import (
    ROWS,
    VARIANTS,
    Variant,
    assert_same_bits,
    copied,
    evidence_of,
    floats,
    random_state,
    same_bits,
    sample,
)

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import METHODS, merge, merge_files

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_row = pytest.mark.parametrize("variant", ROWS, ids=str)


@every_row
@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
def test_a_value_that_is_not_finite_is_refused_by_name(variant: Variant, value: float) -> None:
    models, base = sample(variant)
    holders = {f"model {variant.count}": models[-1], **({"the base": base} if variant.with_base else {})}
    for holder, state in holders.items():
        kept = state["conv.weight"]
        state["conv.weight"] = kept.clone()
        state["conv.weight"][0, 1, 2, 0] = value
        with pytest.raises(WeightspaceError, match=rf"'conv.weight' of {holder} holds (NaN|infinite) values .*1 of"):
            variant(models, base)
        state["conv.weight"] = kept


@every_variant
def test_values_that_are_not_finite_are_merged_where_they_are_allowed(variant: Variant) -> None:
    """What they make of their own tensor is open, but the others come out as ever."""
    models, base = sample(variant)
    expected = variant(models, base)
    damaged = ["scale", "bias", "tall.weight", "conv.weight"]
    for value in (math.nan, math.inf, -math.inf):
        spoilt = copied(models[-1])
        for name in damaged:
            spoilt[name].view(-1)[:1] = value
        merged = variant([*models[:-1], spoilt], base, allow_nonfinite=True)
        assert merged.keys() == expected.keys()
        others = expected.keys() - damaged if not variant.whole else ["index"]
        assert all(same_bits(merged[name], expected[name]) for name in others)


@pytest.mark.parametrize("variant", [row for row in ROWS if row.method != "arcee_fusion"], ids=str)
def test_a_value_that_is_not_finite_does_not_come_out_finite_by_accident(variant: Variant) -> None:
    """With every element of every model NaN. Arcee fusion, which takes outstanding elements alone, takes none."""
    models, base = sample(variant)
    spoilt = [{**model, "bias": torch.full((7,), math.nan)} for model in models]
    merged = variant(spoilt, base, allow_nonfinite=True)["bias"]
    assert not merged.isfinite().any()


@every_row
def test_integers_and_bools_are_copied_where_all_models_agree(variant: Variant) -> None:
    models, base = sample(variant)
    merged = variant(
        models, base if variant.row.base == "end" else {**base, "index": torch.zeros(4, dtype=torch.int64)}
    )
    assert same_bits(merged["index"], torch.arange(4))
    assert same_bits(merged["mask"], torch.tensor([True, False]))


@pytest.mark.parametrize("variant", [row for row in ROWS if row.count > 1], ids=str)
def test_integers_that_differ_between_the_models_are_refused_by_name(variant: Variant) -> None:
    models, base = sample(variant)
    models[-1]["index"] = torch.tensor([0, 1, 3, 2])
    with pytest.raises(WeightspaceError, match=r"'index' holds torch.int64 .* differ in 2 of 4 elements"):
        variant(models, base)


@pytest.mark.parametrize("variant", [row for row in ROWS if row.row.base == "end"], ids=str)
def test_integers_that_differ_between_the_ends_of_a_line_are_refused_by_name(variant: Variant) -> None:
    models, base = sample(variant)
    base["index"] = torch.tensor([0, 1, 3, 2])
    with pytest.raises(WeightspaceError, match=r"'index' holds torch.int64 .* differ in 2 of 4 elements"):
        variant(models, base)


@pytest.mark.parametrize("variant", [row for row in ROWS if row.count > 1], ids=str)
def test_of_counters_of_batches_the_largest_is_kept(variant: Variant) -> None:
    models, base = sample(variant)
    for index, model in enumerate(models):
        model["norm.num_batches_tracked"] = torch.tensor(40 - index)
    base["norm.num_batches_tracked"] = torch.tensor(90)
    assert variant(models, base)["norm.num_batches_tracked"].item() == 40


@every_row
def test_an_unknown_parameter_is_refused_with_the_known_ones(variant: Variant) -> None:
    models, base = sample(variant)
    with pytest.raises(WeightspaceError, match=f"Unknown parameter of method '{variant.method}'"):
        variant(models, base, parameters={"normalise_it": True})


@pytest.mark.parametrize(
    ("variant", "name"), [(row, parameter.name) for row in ROWS for parameter in row.row.parameters], ids=str
)
def test_values_that_a_parameter_cannot_have_are_refused(variant: Variant, name: str) -> None:
    models, base = sample(variant)
    parameter = next(one for one in variant.row.parameters if one.name == name)
    wrong: list[Any] = ["nonsense", [[]]]
    if not parameter.choices:
        wrong += [math.nan, math.inf, 2] if isinstance(parameter.default, bool) else [math.nan, math.inf, True]
    if parameter.low > -math.inf:
        wrong.append(parameter.low - 1)
    if parameter.high < math.inf:
        wrong.append(parameter.high * 2 + 1)
    if isinstance(parameter.default, int):
        wrong.append(1.5)
    wrong.append([0.5] * (variant.count + 1))
    for value in wrong:
        with pytest.raises(WeightspaceError, match=rf"arameter '{name}'"):
            variant(models, base, parameters={name: value})


@every_row
@pytest.mark.parametrize("value", [1e308, -1e31, 10**30 + 10**15, 10**400, -(10**5000)], ids=["1", "2", "3", "4", "5"])
def test_numbers_that_only_overflow_are_refused(variant: Variant, value: float) -> None:
    models, base = sample(variant)
    for parameter in variant.row.parameters:
        if not parameter.choices and not isinstance(parameter.default, bool | str):
            with pytest.raises(
                WeightspaceError, match=rf"'{parameter.name}' must be a number of magnitude at most 1e\+30"
            ):
                variant(models, base, parameters={parameter.name: value})
    if variant.row.weighted:
        with pytest.raises(WeightspaceError, match=r"Weights must be finite numbers of magnitude at most 1e\+30"):
            variant(models, base, weights=[value, *[1.0] * (variant.count - 1)])


@pytest.mark.parametrize("variant", [row for row in ROWS if row.parameters], ids=str)
def test_a_parameter_without_a_default_has_to_be_given(variant: Variant) -> None:
    models, base = sample(variant)
    with pytest.raises(WeightspaceError, match=f"Method '{variant.method}' needs the parameter 't'"):
        merge(models, variant.method, base=base)


@every_row
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "kind"])
def test_models_that_do_not_fit_together_are_refused(variant: Variant, damage: str) -> None:
    models, base = sample(variant)
    last = models[-1] if variant.count > 1 else base
    if variant.count == 1 and not variant.with_base:
        models = [*models, last]
    if damage == "missing":
        del last["scale"]
    if damage == "extra":
        last["more"] = torch.ones(1)
    if damage == "shape":
        last["bias"] = torch.ones(6)
    if damage == "kind":
        last["bias"] = torch.ones(7, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"model 1 and (model \d|the base) do not fit"):
        variant(models, base)


@pytest.mark.parametrize("variant", [row for row in ROWS if row.with_base], ids=str)
def test_a_base_that_does_not_fit_is_refused(variant: Variant) -> None:
    models, base = sample(variant)
    base["bias"] = torch.ones(6)
    with pytest.raises(CheckpointError, match="model 1 and the base do not fit"):
        variant(models, base)


@every_row
def test_a_base_is_taken_by_the_methods_that_have_one_and_by_no_others(variant: Variant) -> None:
    models, base = sample(variant)
    arguments: dict[str, Any] = {"parameters": variant.parameters, "evidence": evidence_of(variant.row, models)}
    if variant.row.base == "none":
        with pytest.raises(WeightspaceError, match="takes no base"):
            merge(models, variant.method, base=base, **arguments)
    elif variant.row.base in ("required", "end"):
        with pytest.raises(WeightspaceError, match=r"needs a base|takes two models, or one and a base"):
            merge(models, variant.method, **arguments)
    else:
        plain = merge(models, variant.method, **arguments)["bias"]
        assert not torch.equal(merge(models, variant.method, base=base, **arguments)["bias"], plain)


@pytest.mark.parametrize("variant", [row for row in ROWS if row.row.base == "end"], ids=str)
def test_the_first_of_two_models_is_the_end_where_no_base_is_named(variant: Variant) -> None:
    models, base = sample(variant)
    found = merge([base, *models], variant.method, parameters=variant.parameters)
    assert_same_bits(found, variant(models, base))


@pytest.mark.parametrize("variant", [row for row in ROWS if row.with_base], ids=str)
def test_a_base_that_is_also_among_the_models_is_none_of_them(variant: Variant) -> None:
    models, base = sample(variant)
    assert_same_bits(variant([base, *models], base), variant(models, base))


@every_row
def test_a_number_of_models_that_a_method_does_not_take_is_refused(variant: Variant) -> None:
    low, high = variant.row.models
    for count in {low - 1, *([] if high is None else [high + 1])} - {0}:
        models = [random_state(seed) for seed in range(1, count + 1)]
        with pytest.raises(WeightspaceError, match=rf"takes {low}.* models?.*; found {count}"):
            variant(models, random_state(0))


@every_row
def test_weights_are_one_finite_number_per_model_and_only_where_models_have_weights(variant: Variant) -> None:
    models, base = sample(variant)
    wrong = {
        "4 weights for": [1.0] * 4,
        "Weights must be finite": [math.nan, *[1.0] * (variant.count - 1)],
        "finite numbers": [math.inf, *[1.0] * (variant.count - 1)],
    }
    for message, weights in wrong.items():
        with pytest.raises(WeightspaceError, match=message if variant.row.weighted else "takes no weights"):
            variant(models, base, weights=weights)


@every_row
def test_evidence_is_needed_by_the_methods_that_have_it_and_refused_by_the_others(variant: Variant) -> None:
    models, base = sample(variant)
    wrong = None if variant.row.evidence else [copied(model) for model in models]
    with pytest.raises(
        WeightspaceError, match="needs .* evidence" if variant.row.evidence else "does not use evidence"
    ):
        merge(
            models,
            variant.method,
            base=base if variant.with_base else None,
            parameters=variant.parameters,
            evidence=wrong,
        )


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("multislerp", {}),
        ("task_arithmetic", {"normalize": True}),
        ("dare_linear", {"normalize": True}),
        ("della_linear", {"normalize": True}),
        ("breadcrumbs", {"normalize": True}),
        ("knots", {"inner": "task_arithmetic"}),
        ("core_space", {"inner": "task_arithmetic"}),
    ],
)
def test_weights_that_cancel_are_refused_where_a_method_divides_by_their_sum(
    method: str, parameters: dict[str, Any]
) -> None:
    variant = Variant(method, parameters, METHODS[method].base == "required")
    models, base = sample(variant)
    with pytest.raises(WeightspaceError, match="sum to 0"):
        variant(models, base, weights=[1, -0.75, -0.25])
    other = {"normalize_weights" if method == "multislerp" else "normalize": False}
    merged = variant(models, base, weights=[1, -0.75, -0.25], parameters=other)
    assert all(tensor.isfinite().all() for tensor in floats(merged).values())


def test_the_table_says_what_its_rows_do() -> None:
    for name, row in METHODS.items():
        assert row.name == name
        assert row.formula
        assert "https://" in row.source
        low, high = row.models
        assert low >= 1
        assert high is None or low <= high
        assert len({parameter.name for parameter in row.parameters}) == len(row.parameters)
        assert all(parameter.help for parameter in row.parameters)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.divides_if and not row.evidence])
@pytest.mark.parametrize("weights", [(1, -1), (0, 0)])
def test_weights_that_sum_to_0_are_refused_while_planning(
    method: str, weights: tuple[float, float], tmp_path: Path
) -> None:
    row = METHODS[method]
    for number, name in enumerate(("base", "a", "b")):
        ws.save_checkpoint({"v": torch.ones(2), "w": torch.full((2,), float(number))}, tmp_path / f"{name}.safetensors")
    models = [
        {
            "model": f"{tmp_path}/{name}.safetensors",
            "parameters": {"weight": [{"filter": "w", "value": weight}, {"value": 1}]},
        }
        for name, weight in zip("ab", weights, strict=True)
    ]
    content: dict[str, Any] = {"merge_method": row.name, "models": models, "parameters": {row.divides_if: True}}
    inner = {"inner": "task_arithmetic"} if row.name in ("knots", "core_space") else {}
    content["parameters"] |= inner
    if row.base == "required":
        content["base_model"] = f"{tmp_path}/base.safetensors"
    (tmp_path / "recipe.yml").write_text(json.dumps(content))
    expected = rf"'w': weights .* sum to 0.*{row.divides_if}=False"
    with pytest.raises(WeightspaceError, match=expected):
        merge_files(tmp_path / "recipe.yml", tmp_path / "out.safetensors", dry_run=True)
    content["parameters"] = {**inner, row.divides_if: False}
    (tmp_path / "recipe.yml").write_text(json.dumps(content))
    merge_files(tmp_path / "recipe.yml", tmp_path / "out.safetensors", dry_run=True)
