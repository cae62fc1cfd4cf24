"""Methods that decide element by element whether to move: nearswap, arcee fusion, RAM."""

import pytest
import torch
from large import assert_agrees, large
from samples import normals, same_bits

from weightspace.merging import merge


def test_nearswap_moves_by_t_at_most() -> None:
    base, model = {"w": torch.zeros(5)}, {"w": torch.tensor([0.1, -0.2, 0.3, -5.0, 0.0])}
    for t, expected in (
        (0.25, [0.1, -0.2, 0.25, -0.25, 0]),
        (0.0, [0] * 5),
        (-1.0, [0] * 5),
        (9.0, [0.1, -0.2, 0.3, -5, 0]),
    ):
        found = merge([model], "nearswap", base=base, parameters={"t": t})["w"].tolist()
        assert found == pytest.approx(expected)


def test_arcee_fusion_keeps_only_outlier_updates_and_the_rest_of_the_base_bit_for_bit() -> None:
    base = normals(0, (100, 20))
    model = base + 1e-3 * normals(1, (100, 20))
    model[3, 4], model[50, 0] = base[3, 4] + 2, base[50, 0] - 2
    merged = merge([{"w": model}], "arcee_fusion", base={"w": base})["w"]
    taken = merged != base
    assert taken[3, 4]
    assert taken[50, 0]
    assert same_bits(merged[taken], model[taken])
    assert 0 < taken.sum() < 200


def test_ram_averages_what_several_changed_and_keeps_what_one_changed() -> None:
    base = {"w": torch.zeros(4)}
    models = [
        {"w": torch.tensor(values)} for values in ([1.0, 2.0, 0.0, 0.1], [0.0, 4.0, 0.0, 0.3], [0.0, 0.0, 0.0, 5.0])
    ]
    assert merge(models, "ram", base=base)["w"].tolist() == pytest.approx([1, 3, 0, 1.8])
    assert merge(models, "ram", base=base, parameters={"epsilon": 0.1})["w"].tolist() == pytest.approx([1, 3, 0, 2.65])


def test_ram_does_not_count_a_change_of_just_epsilon() -> None:
    base, model = {"w": torch.zeros(2)}, {"w": torch.tensor([0.5, 0.5000001])}
    assert merge([model], "ram", base=base, parameters={"epsilon": 0.5})["w"].tolist() == pytest.approx([0, 0.5])


def test_ramplus_enlarges_what_one_model_changed_by_its_overlap() -> None:
    """The first model has two changes of its own and one shared, the second one of its own and one shared."""
    base = {"w": torch.zeros(4)}
    models = [{"w": torch.tensor(values)} for values in ([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0])]
    options = {"r": 0.5, "alpha": 0.8}
    expected = [1 + 0.5 * 0.5, 1 + 0.5 * 0.5, 1, 1 + 0.5 * 0.8]
    assert merge(models, "ramplus_tl", base=base, parameters=options)["w"].tolist() == pytest.approx(expected)
    assert merge(models, "ramplus_tl", base=base, parameters={"r": 0.0})["w"].tolist() == [1, 1, 1, 1]


def test_several_chunks_agree_with_the_oracle() -> None:
    models, base = [large(seed) for seed in (1, 2, 3)], large(0)
    assert_agrees("nearswap", models[:1], base, t=0.5)
    assert_agrees("ram", models, base, epsilon=1.0)
    assert_agrees("ramplus_tl", models, base, epsilon=1.0, r=0.5, alpha=0.9)


@pytest.mark.parametrize("shape", [(3 * 2**17 + 5,), (1111, 355), (70, 11, 23, 23)])
def test_the_quantiles_of_arcee_fusion_are_exact_over_several_chunks(shape: tuple[int, ...]) -> None:
    base = large(0, shape)
    assert_agrees("arcee_fusion", [base + large(1, shape, 0.1)], base)
