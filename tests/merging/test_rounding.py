"""Every element of a merge is the exact value, rounded once: weights are the float64 that they are, 0.3 too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import exact_oracles as exact
import pytest
import torch
from exact_data import KINDS, tensors
from samples import same_bits
from torch import Tensor

import weightspace as ws
from weightspace.arithmetic.coefficients import shares
from weightspace.arithmetic.double_word import narrowed_once
from weightspace.arithmetic.linear_combination import LinearCombiner, combine
from weightspace.arithmetic.mean import mean
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._masked_sum import MaskedSum

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZE = 2000

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS)


def merged(method: str, models: Sequence[Tensor], base: Tensor | None = None, **options: Any) -> Tensor:
    """Merge tensors as models of one name."""
    origin = None if base is None else {"w": base}
    return ws.merge([{"w": model} for model in models], method, base=origin, **options)["w"]


def assert_rounded_once(found: Tensor, expected: exact.Exact) -> None:
    """Check that 99.9 % of the elements are the exact value rounded once, and the others beside it."""
    assert exact.share_right(found, expected) >= 0.999
    assert exact.largest_error(found, expected) <= 1.0


# Each: the result, and what exact arithmetic makes of the same tensors, the base last.
LINEAR: dict[str, tuple[int, Callable[[list[Tensor]], Tensor], Callable[[list[exact.Exact]], exact.Exact]]] = {
    "mean of 2": (2, lambda t: merged("linear", t), lambda t: exact.linear(t, [1, 1])),
    "mean of 3": (3, lambda t: merged("linear", t), lambda t: exact.linear(t, [1, 1, 1])),
    "mean of 4": (4, lambda t: merged("linear", t), lambda t: exact.linear(t, [1, 1, 1, 1])),
    ".6 and .4": (2, lambda t: merged("linear", t, weights=[0.6, 0.4]), lambda t: exact.linear(t, [0.6, 0.4])),
    ".7 and .3": (2, lambda t: merged("linear", t, weights=[0.7, 0.3]), lambda t: exact.linear(t, [0.7, 0.3])),
    ".5, .3 and .2": (
        3,
        lambda t: merged("linear", t, weights=[0.5, 0.3, 0.2]),
        lambda t: exact.linear(t, [0.5, 0.3, 0.2]),
    ),
    "a sum of .7 and -.3": (
        2,
        lambda t: merged("linear", t, weights=[0.7, -0.3], parameters={"normalize": False}),
        lambda t: exact.linear(t, [0.7, -0.3], normalize=False),
    ),
    "uneven weights": (
        3,
        lambda t: merged("linear", t, weights=[0.1234567, 2.345, 1e-3]),
        lambda t: exact.linear(t, [0.1234567, 2.345, 1e-3]),
    ),
    "task arithmetic": (
        3,
        lambda t: merged("task_arithmetic", t[:-1], t[-1]),
        lambda t: exact.task_arithmetic(t[:-1], t[-1], [1, 1]),
    ),
    "task arithmetic, .7 and .2": (
        3,
        lambda t: merged("task_arithmetic", t[:-1], t[-1], weights=[0.7, 0.2]),
        lambda t: exact.task_arithmetic(t[:-1], t[-1], [0.7, 0.2]),
    ),
    "task arithmetic, λ = .3": (
        3,
        lambda t: merged("task_arithmetic", t[:-1], t[-1], weights=[1, -0.4], parameters={"lambda": 0.3}),
        lambda t: exact.task_arithmetic(t[:-1], t[-1], [1, -0.4], 0.3),
    ),
    "task arithmetic, normalised": (
        4,
        lambda t: merged("task_arithmetic", t[:-1], t[-1], parameters={"normalize": True}),
        lambda t: exact.task_arithmetic(t[:-1], t[-1], [1, 1, 1], normalize=True),
    ),
    "WiSE-FT": (
        2,
        lambda t: merged("wise_ft", t[:1], t[1], parameters={"alpha": 0.3}),
        lambda t: exact.line(t[1], t[0], 0.3),
    ),
    "passthrough": (
        1,
        lambda t: merged("passthrough", t, parameters={"scale": 0.3}),
        lambda t: exact.combined(t, [Fraction(0.3)]),
    ),
    "interpolate": (
        2,
        lambda t: ws.interpolate({"w": t[0]}, {"w": t[1]}, 0.3)["w"],
        lambda t: exact.line(t[0], t[1], 0.3),
    ),
    "mean": (5, lambda t: mean([{"w": one} for one in t])["w"], lambda t: exact.linear(t, [1] * 5)),
    "uniform soup": (3, lambda t: ws.uniform_soup([{"w": one} for one in t])["w"], lambda t: exact.linear(t, [1] * 3)),
}


@every_kind
@every_dtype
@pytest.mark.parametrize("name", LINEAR)
def test_linear_combinations_are_the_exact_value_rounded_once(name: str, dtype: torch.dtype, kind: str) -> None:
    count, combine, oracle = LINEAR[name]
    given = tensors(kind, count, dtype, SIZE)
    assert_rounded_once(combine(given), oracle([exact.fractions(one) for one in given]))


@every_kind
@every_dtype
@pytest.mark.parametrize("t", [0.3, 0.5, -0.7])
def test_slerp_is_the_exact_arc_rounded_once(t: float, dtype: torch.dtype, kind: str) -> None:
    model, base = tensors(kind, 2, dtype, SIZE)
    found = merged("slerp", [model], base, parameters={"t": t})
    assert_rounded_once(found, exact.slerp(exact.fractions(base), exact.fractions(model), t))


TIES: list[tuple[list[float], float, float, bool]] = [
    ([1.0, 1.0], 0.5, 1.0, True),
    ([0.6, 0.4], 0.5, 1.0, True),
    ([0.7, 0.3], 1.0, 0.3, True),
    ([0.5, 0.3, 0.2], 0.7, 1.0, True),
    ([0.7, 0.3], 0.8, 1.0, False),
    ([0.6, -0.4], 0.8, 1.0, True),
]


@every_kind
@every_dtype
@pytest.mark.parametrize(("weights", "density", "factor", "normalize"), TIES, ids=str)
def test_ties_is_the_exact_consensus_rounded_once(
    weights: list[float], density: float, factor: float, normalize: bool, dtype: torch.dtype, kind: str
) -> None:
    *models, base = tensors(kind, len(weights) + 1, dtype, SIZE)
    options = {"density": density, "lambda": factor, "normalize": normalize}
    found = merged("ties", models, base, weights=weights, parameters=options)
    expected = exact.ties(
        [exact.fractions(model) for model in models], exact.fractions(base), weights, density, factor, normalize
    )
    # A vote may depend on an element that is trimmed by a near tie.
    assert exact.share_right(found, expected) >= 0.999


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.3], [0.5, 0.3, 0.2]], ids=str)
def test_float8_is_rounded_once_too(weights: list[float], dtype: torch.dtype) -> None:
    given = tensors("random", len(weights), dtype, SIZE)
    found = merged("linear", given, weights=weights)
    assert found.dtype == dtype
    assert_rounded_once(found, exact.linear([exact.fractions(one) for one in given], weights))


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0), (torch.float16, 65504.0)],
    ids=str,
)
def test_values_beyond_the_range_of_the_dtype_are_an_error(dtype: torch.dtype, largest: float) -> None:
    """Not the largest number, which torch makes of it in float8_e4m3fn."""
    models = [{"w": torch.tensor([1.0, largest]).to(dtype)} for _ in range(2)]
    total = {"normalize": False}
    with pytest.raises(WeightspaceError, match=r"'w' of the result holds (NaN|infinite) values .*1 of the 2"):
        ws.merge(models, weights=[1, 0.25], parameters=total)
    allowed = ws.merge(models, weights=[1, 0.25], parameters=total, allow_nonfinite=True)["w"].float()
    assert allowed[0] == 1.25
    assert not allowed[1].isfinite()


@pytest.mark.parametrize(("dtype", "half_way"), [(torch.float8_e4m3fn, 464.0), (torch.float16, 65520.0)], ids=str)
def test_values_that_round_to_the_largest_number_are_no_error(dtype: torch.dtype, half_way: float) -> None:
    """Half a step beyond it, 448 is the even one; of 65504 and 65536, which float16 does not have, the second is."""
    largest = torch.finfo(dtype).max
    weights = [half_way / largest * (1 - 1e-9)]
    models = [{"w": torch.tensor([largest]).to(dtype)}]
    assert ws.merge(models, weights=weights, parameters={"normalize": False})["w"].item() == largest


@every_kind
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_mean_does_not_depend_on_the_order(count: int, dtype: torch.dtype, kind: str) -> None:
    models = [{"w": one} for one in tensors(kind, count, dtype, 20_000)]
    turned = [*models[1:], models[0]]
    for average in (ws.merge, mean, ws.uniform_soup):
        found = average(models)["w"]
        assert same_bits(average(models[::-1])["w"], found)
        assert same_bits(average(turned)["w"], found)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.3], [0.5, 0.3, 0.2], [3.0, -1.0], [1.0] * 7], ids=str)
def test_copies_give_the_copy_bit_for_bit(weights: list[float], dtype: torch.dtype) -> None:
    model = tensors("mixed_exponents", 1, dtype, 500)[0]
    # Beside the largest number of float64 there is no room for the least.
    least = torch.finfo(dtype).smallest_normal / 8 if dtype != torch.float64 else 1e-30
    largest = torch.finfo(dtype).max
    model[:6] = torch.tensor([0.0, -0.0, largest, -largest, least, -least], dtype=torch.float64)
    models = [model.clone() for _ in weights]
    assert same_bits(merged("linear", models, weights=weights), model)
    assert same_bits(merged("task_arithmetic", models, model.clone(), weights=weights), model)
    assert same_bits(merged("ties", models, model.clone(), weights=weights), model)
    assert same_bits(merged("slerp", models[:1], model.clone(), parameters={"t": 0.3}), model)
    assert same_bits(mean([{"w": one} for one in models])["w"], model)
    assert same_bits(ws.uniform_soup([{"w": one} for one in models])["w"], model)
    assert same_bits(ws.interpolate({"w": models[0]}, {"w": models[1]}, 0.3)["w"], model)


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000, 1.0])
def test_float64_is_exact_at_the_ends_of_its_range(scale: float) -> None:
    """At 2^1000 squares overflow, at 2^-1000 they are 0."""
    a, b, c = (scale * one for one in tensors("random", 3, torch.float64, 60))
    exactly = [exact.fractions(one) for one in (a, b, c)]
    found = merged("linear", [a, b, c], weights=[0.5, 0.3, 0.2])
    assert_rounded_once(found, exact.linear(exactly, [0.5, 0.3, 0.2]))
    found = merged("task_arithmetic", [a, b], c, weights=[0.7, 0.2])
    assert_rounded_once(found, exact.task_arithmetic(exactly[:2], exactly[2], [0.7, 0.2]))
    # The coefficients of an arc are float64 themselves.
    found = merged("slerp", [a], b, parameters={"t": 0.3})
    expected = [float(one / Fraction(scale)) for one in exact.slerp(exactly[1], exactly[0], 0.3)]
    torch.testing.assert_close(found / scale, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15)


def test_slerp_at_5e307_is_that_of_smaller_numbers() -> None:
    a, b = torch.tensor([5e307, 1e307], dtype=torch.float64), torch.tensor([-3e307, 5e307], dtype=torch.float64)
    small = merged("slerp", [a * 2.0**-1000], b * 2.0**-1000, parameters={"t": 0.5})
    torch.testing.assert_close(merged("slerp", [a], b, parameters={"t": 0.5}), small * 2.0**1000, rtol=1e-14, atol=0)
    for method in ("nuslerp", "multislerp", "karcher"):
        small = merged(method, [a * 2.0**-1000, b * 2.0**-1000])
        torch.testing.assert_close(merged(method, [a, b]), small * 2.0**1000, rtol=1e-14, atol=0)


def test_midway_between_two_numbers_the_digits_of_the_weights_decide() -> None:
    """In bfloat16 a step is 2^-7: 1 + 0.3 · 5/128 · 2 lies 1.5 steps on but for what 0.3 is less than 3/10."""
    a, b = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1 + 5 * 2.0**-7], dtype=torch.bfloat16)
    assert Fraction(0.3) < Fraction(3, 10)
    assert merged("linear", [a, b], weights=[0.7, 0.3]).item() == 1 + 2 * 2.0**-7
    for weight, steps in ((0.3, 1), (0.30000000000000004, 2), (0.29999999999999993, 1)):
        found = merged("wise_ft", [b], a, parameters={"alpha": weight})
        assert found.item() == 1 + steps * 2.0**-7, weight


def test_exact_midpoints_of_equal_models_round_to_even() -> None:
    """0.3 and 0.2 are one half in sum, to the last digit."""
    a, b = torch.tensor([1.0, 1 + 2.0**-7], dtype=torch.bfloat16), torch.tensor([1 + 2.0**-7, 1 + 2.0**-6]).bfloat16()
    found = merged("linear", [a, b, b.clone()], weights=[0.5, 0.3, 0.2])
    assert found.tolist() == [1.0, 1 + 2.0**-6]


def test_models_that_cancel_their_base_leave_what_the_weights_leave() -> None:
    """1 - 0.7 - 0.3 is 2^-54: that many of the base's."""
    base = tensors("random", 1, torch.bfloat16, 1000)[0]
    pruned = torch.zeros_like(base)
    found = merged("task_arithmetic", [pruned, pruned.clone()], base, weights=[0.7, 0.3])
    rest = 1 - Fraction(0.7) - Fraction(0.3)
    assert rest != 0
    assert_rounded_once(found, exact.combined([exact.fractions(base)], [rest]))


def test_the_mean_of_many_models_is_exact() -> None:
    models = tensors("random", 40, torch.float32, 300)
    expected = exact.linear([exact.fractions(one) for one in models], [1] * 40)
    assert exact.share_right(merged("linear", models), expected) == 1
    assert exact.share_right(ws.uniform_soup([{"w": one} for one in models])["w"], expected) == 1


def test_inputs_of_float32_are_rounded_once_to_a_narrow_output() -> None:
    models = [{"w": one} for one in tensors("random", 3, torch.float32, SIZE)]
    expected = exact.linear([exact.fractions(one["w"]) for one in models], [1, 1, 1])
    narrow = mean([{"w": one["w"].bfloat16()} for one in models])["w"]
    assert narrow.dtype == torch.bfloat16
    mixed = ws.merge([models[0], {"w": models[1]["w"].bfloat16()}, models[2]])["w"]
    assert mixed.dtype == torch.float32
    assert_rounded_once(ws.merge(models)["w"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.6, 0.4], [0.37, 0.123]], ids=str)
def test_fine_tunes_are_merged_without_double_words(
    weights: list[float], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a few elements, most of them of TIES."""
    slow: list[int] = []
    exactly, combined_exactly = MaskedSum.__call__, LinearCombiner._compute_exactly

    def counted(self: MaskedSum, models: Tensor, *given: Any) -> Tensor:
        slow.append(models.shape[1])
        return exactly(self, models, *given)

    def combined(self: LinearCombiner, out: Tensor, given: Sequence[Tensor]) -> None:
        slow.append(10 * len(out))
        combined_exactly(self, out, given)

    monkeypatch.setattr(MaskedSum, "__call__", counted)
    monkeypatch.setattr(LinearCombiner, "_compute_exactly", combined)
    *models, base = tensors("fine_tunes", 3, dtype, 200_000)
    merged("linear", models, weights=weights)
    merged("task_arithmetic", models, base, weights=weights)
    merged("slerp", models[:1], base, parameters={"t": 0.3})
    merged("ties", models, base, weights=weights)
    assert sum(slow) <= 0.06 * 200_000


def test_a_part_that_cancels_is_seen_in_a_large_tensor() -> None:
    """One row in twenty, not the first one: what its terms leave of each other has few digits in float64."""
    a, b = (one.view(400, 250) for one in tensors("random", 2, torch.float32, 100_000))
    rows = slice(7, None, 20)
    b[rows] = (-a[rows].double() * (0.123 / 0.4567)).float()
    options = {"weights": [0.123, 0.4567], "parameters": {"normalize": False}}
    found = merged("linear", [a, b], **options)[rows]
    exactly = [exact.fractions(one[rows]) for one in (a, b)]
    assert exact.share_right(found, exact.linear(exactly, [0.123, 0.4567], normalize=False)) >= 0.999


@pytest.mark.parametrize("count", [3, 20, 40])
def test_means_of_many_tensors_are_rounded_once_in_every_block(count: int) -> None:
    models = [torch.randn(300_000, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(count)]
    expected = torch.stack([model.double() for model in models]).sum(0).div(count).bfloat16()
    found = merged("linear", models)
    assert (found != expected).sum() <= 300  # a float64 sum of few bits is exact, and is rounded through float32


@pytest.mark.parametrize("count", [1000, 300_000])
def test_means_of_dequantised_numbers_are_rounded_once(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(count, generator=generator).to(torch.float8_e4m3fn).float() for _ in range(2)]
    models = [number * scale for number, scale in zip(numbers, (3.25 / 448, 3.375 / 448), strict=True)]
    found = combine(models, shares((1.0, 1.0)), torch.bfloat16)
    mantissa, exponent = torch.frexp((models[0].double() + models[1].double()) / 2)
    expected = torch.ldexp((mantissa * 2**8).round(), exponent - 8)
    assert (found.double() != expected).sum() <= count / 1000


@pytest.mark.parametrize("rest", [2.0**-30, -(2.0**-30), 0.0])
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)], ids=str)
@pytest.mark.parametrize("count", [3, 300_000])
def test_a_mean_of_two_that_float32_rounds_to_a_midpoint_is_rounded_once(
    count: int, dtype: torch.dtype, bits: int, rest: float
) -> None:
    midpoint = 1 + 2.0**-bits
    models = [torch.full((count,), value) for value in (2 * midpoint, rest)]
    expected = 1 + 2.0 ** (1 - bits) if rest > 0 else 1.0  # the even one if nothing is left
    found = combine(models, shares((1.0, 1.0)), dtype)
    assert torch.equal(found.float(), torch.full((count,), expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [2000, 300_000])
def test_float64_numbers_beside_midpoints_are_rounded_once(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(2**15), 2**15, (count,), generator=generator).to(torch.int16)
    below, above = codes.view(dtype), (codes & -(2**15) | (codes & 0x7FFF) + 1).to(torch.int16).view(dtype)
    known = below.isfinite() & above.isfinite()
    below, above = below[known], above[known]
    sides = torch.randint(-1, 2, (len(below),), generator=generator)
    middle = (below.double() + above.double()) / 2
    values = middle * (1 + sides.double() * 2.0**-50)
    even = torch.where(codes[known] & 1 == 0, below, above)
    expected = torch.where(sides < 0, below, torch.where(sides > 0, above, even))
    assert torch.equal(narrowed_once(values, dtype).view(torch.int16), expected.view(torch.int16))
