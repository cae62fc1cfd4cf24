"""Alignment by all symmetries of an architecture."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, SpecError, WeightspaceError
from weightspace.matching.aligning import align_many, alignment
from weightspace.matching.aligning.best_maps import best_maps
from weightspace.symmetry.kinds.canonical_weights import CanonicalWeights, parts_of
from weightspace.symmetry.pattern import units_in
from weightspace.tasks import ClassificationTask, TrainConfig
from weightspace.zoo.digits import digits_examples
from weightspace.zoo.llama import Llama
from weightspace.zoo.vision_transformer import VisionTransformer

Case = tuple[nn.Module, torch.Tensor]


def vit() -> nn.Module:
    return VisionTransformer(size=8, patch=2, channels=1, classes=10, width=24, depth=2, heads=3, hidden=32)


def llama() -> nn.Module:
    return Llama(vocabulary=23, length=12, width=24, depth=2, heads=4, groups=2, hidden=20)


NETWORKS: dict[str, Callable[[], Case]] = {
    "vit": lambda: (vit(), torch.randn(3, 1, 8, 8)),
    "llama": lambda: (llama(), torch.randint(23, (2, 12))),
}


@lru_cache
def case(name: str) -> tuple[ws.SymmetrySpec, StateDict, nn.Module, torch.Tensor]:
    """Return the spec, the random weights in float64, the network and inputs."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    spec = ws.derive_spec(network.eval(), inputs, symmetry="full")
    state = {key: tensor + 0.3 * torch.randn_like(tensor) for key, tensor in network.double().state_dict().items()}
    network.load_state_dict(state)
    return spec, state, network, inputs if name == "llama" else inputs.double()


@lru_cache
def digits() -> ClassificationTask:
    recipe = TrainConfig(epochs=6, learning_rate=3e-3, cooldown=True)
    return ClassificationTask("digits-vit", vit, digits_examples, recipe=recipe)


@lru_cache
def trained(seed: int) -> StateDict:
    return ws.train(digits(), seed)


@lru_cache
def spec_of_digits() -> ws.SymmetrySpec:
    return ws.derive_spec(digits().network(), digits().example_args, symmetry="full")


def outputs(network: nn.Module, state: StateDict, inputs: torch.Tensor) -> torch.Tensor:
    network.load_state_dict(state)
    with torch.no_grad():
        return network(inputs)


def distance(a: StateDict, b: StateDict) -> float:
    norm = sum(float(tensor.norm() ** 2) for tensor in a.values()) ** 0.5
    return sum(float((a[name] - b[name]).norm() ** 2) for name in a) ** 0.5 / norm


@pytest.mark.parametrize("name", NETWORKS)
def test_canonical_weights_are_the_same_function_with_less_norm_and_are_their_own_canonical_weights(name: str) -> None:
    spec, state, network, inputs = case(name)
    before, folded, canonical = outputs(network, state, inputs), ws.symmetry.fold(spec, state), None
    canonical = ws.canonicalise(spec, state)
    torch.testing.assert_close(outputs(network, canonical, inputs), before, rtol=1e-10, atol=1e-10)
    norms = [sum(float(tensor.norm() ** 2) for tensor in one.values()) for one in (canonical, folded)]
    assert norms[0] < norms[1]
    assert distance(canonical, ws.canonicalise(spec, canonical)) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_equivalent_weights_have_the_same_canonical_norm(name: str) -> None:
    """Scales between queries and keys, and between the linear branches of gated units, are undone."""
    spec, state, _, _ = case(name)
    scaled = {key: tensor.clone() for key, tensor in state.items()}
    for key in scaled:
        if "query" in key or "q_proj" in key or "down_proj" in key:
            scaled[key] *= 4
        elif "key" in key or "k_proj" in key or "up_proj" in key:
            scaled[key] /= 4
    one, two = (ws.canonicalise(spec, weights) for weights in (state, scaled))
    assert all(abs(float(one[key].norm() - two[key].norm())) < 1e-9 * float(one[key].norm() + 1) for key in one)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_element_is_recovered(name: str, seed: int) -> None:
    spec, state, network, inputs = case(name)
    canonical = ws.canonicalise(spec, state)
    planted = ws.Element.random(spec, seed=seed).apply(canonical)
    found = ws.align(spec, state, planted)
    target, source = found.apply(state, planted)
    assert distance(target, source) < 1e-6
    assert found.l2_reduction > 1 - 1e-6
    assert found.converged
    torch.testing.assert_close(outputs(network, source, inputs), outputs(network, state, inputs), rtol=1e-6, atol=1e-6)


def test_a_planted_element_of_trained_weights_is_recovered() -> None:
    spec, state = spec_of_digits(), {name: tensor.double() for name, tensor in trained(0).items()}
    planted = ws.Element.random(spec, seed=5).apply(ws.canonicalise(spec, state))
    assert distance(*ws.align(spec, state, planted).apply(state, planted)) < 1e-6


def test_a_planted_element_of_trained_weights_is_recovered_from_data() -> None:
    spec, state, task = spec_of_digits(), trained(0), digits()
    planted = ws.Element.random(spec, seed=5).apply(ws.canonicalise(spec, state))
    found = ws.align(spec, state, planted, task=task)
    assert distance(*found.apply(state, planted)) < 1e-3  # activations are in float32
    assert found.objective[-1] < 1e-6 < found.objective[0]


def midpoint_loss(a: StateDict, b: StateDict) -> float:
    network = digits().network()
    network.load_state_dict({name: (a[name] + b[name]) / 2 for name in a})
    return digits().score(network)["loss"]


def test_networks_trained_apart_come_into_one_basin() -> None:
    spec, task, a, b = spec_of_digits(), digits(), trained(0), trained(1)
    naive = midpoint_loss(a, b)
    activations = ws.match(spec, a, b, "full-activations", task=task)
    learned = ws.match(spec, a, b, "full", task=task, steps=120)
    closed, refined = (midpoint_loss(*found.apply(a, b)) for found in (activations, learned))
    assert refined < closed < naive
    assert list(learned.objective) == sorted(learned.objective, reverse=True)
    moved = learned.apply(a, b)[1]
    network, inputs = task.network(), task.examples["test"].inputs
    torch.testing.assert_close(outputs(network, moved, inputs), outputs(network, b, inputs), rtol=1e-3, atol=1e-3)


def test_labels_can_be_used_for_learning() -> None:
    spec, a, b = spec_of_digits(), trained(0), trained(1)
    found = ws.align(spec, a, b, task=digits(), method="learned", steps=40, by_labels=True)
    assert midpoint_loss(*found.apply(a, b)) < midpoint_loss(a, b)


def test_alignment_is_reproducible_and_leaves_its_inputs_as_they_are() -> None:
    spec, a, b = spec_of_digits(), trained(0), trained(1)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (a, b)]
    one, two = (ws.align(spec, a, b, task=digits(), method="learned", steps=5, seed=2) for _ in range(2))
    assert one.objective == two.objective
    assert all(torch.equal(value, two.element.moves[name]) for name, value in one.element.moves.items())
    for state, old in zip((a, b), before, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in state)


def test_progress_is_reported() -> None:
    seen: list[str] = []
    spec, a, b = spec_of_digits(), trained(0), trained(1)
    options = {"task": digits(), "method": "learned", "steps": 2}
    ws.align(spec, a, b, on_progress=lambda at: seen.append(at.stage), **options)  # type: ignore[arg-type]
    assert list(dict.fromkeys(seen)) == ["sweep", "heads", "step"]


def test_three_copies_moved_apart_are_brought_together() -> None:
    spec, state, _, _ = case("llama")
    canonical = ws.canonicalise(spec, state)
    copies = [canonical, *(ws.Element.random(spec, seed=seed).apply(canonical) for seed in (1, 2))]
    found = align_many(spec, copies)
    assert distance(canonical, found.merged) < 1e-6
    assert list(found.objective) == sorted(found.objective)


def test_three_networks_trained_apart_come_into_one_basin() -> None:
    spec, states = spec_of_digits(), [trained(seed) for seed in (0, 1, 2)]
    found = align_many(spec, states, task=digits(), max_sweeps=1)
    network = digits().network()
    losses = []
    for state in ({name: sum(one[name] for one in states) / 3 for name in states[0]}, found.merged):
        network.load_state_dict(state)
        losses.append(digits().score(network)["loss"])
    assert losses[1] < losses[0]
    assert list(found.objective) == sorted(found.objective)


def test_mistakes_are_errors_that_say_what_to_do() -> None:
    spec, state = spec_of_digits(), trained(0)
    ordinary = ws.derive_spec(digits().network(), digits().example_args)
    with pytest.raises(WeightspaceError, match="spec is a permutation spec; expected a symmetry spec"):
        ws.align(ordinary, state, state)  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match="spec is a permutation spec; expected a symmetry spec"):
        ws.match(ordinary, state, state, "full-weights")
    with pytest.raises(WeightspaceError, match="Did you mean 'weights'"):
        ws.align(spec, state, state, method="weigths")  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match="'learned' uses data: give it the task"):
        ws.align(spec, state, state, method="learned")
    with pytest.raises(CheckpointError, match="Is this its spec"):
        ws.align(spec, case("llama")[1], case("llama")[1])
    with pytest.raises(WeightspaceError, match="at least two networks"):
        align_many(spec, [state])
    broken = state | {"head.bias": torch.full((10,), torch.nan)}
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        ws.align(spec, state, broken)


def test_a_gain_of_zero_cannot_be_folded_where_its_shift_stays() -> None:
    class Unbiased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.embed(x)))

    network = Unbiased().eval()
    spec = ws.derive_spec(network, torch.randn(2, 3), symmetry="full")
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    state["norm.weight"][0], state["norm.bias"][0] = 0, 1
    with pytest.raises(SpecError, match=r"norm\.weight is 0 where norm\.bias is not"):
        ws.align(spec, state, state)


def test_the_best_orthogonal_map_fixes_ones_where_it_has_to() -> None:
    products = torch.randn(6, 6, dtype=torch.float64)
    free, fixed = (best_maps("orthogonal", products, fixes_ones=ones).maps for ones in (False, True))
    eye, ones = torch.eye(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for found in (free, fixed):
        torch.testing.assert_close(found @ found.T, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(fixed @ ones, ones, rtol=0, atol=1e-12)
    assert (free * products).sum() >= (fixed * products).sum()


def test_best_phases_beat_all_angles_of_a_grid() -> None:
    products = torch.randn(4, 4, dtype=torch.float64)
    best = best_maps("phases", products)
    angles = torch.linspace(-torch.pi, torch.pi, 721, dtype=torch.float64)
    along, across = products[0, 0] + products[2, 2], products[2, 0] - products[0, 2]
    grid = angles.cos() * along + angles.sin() * across
    assert abs(float(angles[grid.argmax()] - best.maps[0])) < 0.01


def test_a_network_of_permutations_alone_is_matched_as_by_weight_matching() -> None:
    task = partial(ws.load_task, "digits-mlp")()
    a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
    inputs = task.example_args
    full = ws.align(ws.derive_spec(task.network(), inputs, symmetry="full"), a, b)
    plain = ws.weight_matching(ws.derive_spec(task.network(), inputs), a, b)
    assert full.objective[-1] > 0.99 * plain.objective[-1]


def test_parts_of_a_transformer_are_its_layers() -> None:
    spec = case("llama")[0]
    layer = "model.layers.0"
    attention = [f"{layer}.self_attn.{name}_proj.weight" for name in "qkvo"]
    mlp = [f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    parts = {part.names[0]: part for part in parts_of(spec)}
    assert parts["model.embed_tokens.weight"].names == ("model.embed_tokens.weight",)
    assert parts[f"{layer}.input_layernorm.weight"].names == (f"{layer}.input_layernorm.weight", *attention)
    assert set(parts[f"{layer}.post_attention_layernorm.weight"].names[1:]) == set(mlp)
    assert parts["lm_head.weight" if "lm_head.weight" in parts else "model.norm.weight"].folds
    assert sorted(name for part in parts.values() for name in part.names) == sorted(spec.axes)
    assert sorted(group for part in parts.values() for group in part.groups) == sorted(
        {units.group for axes in spec.axes.values() for axis in axes for units in units_in(axis) if units.dual}
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_canonical_weights_that_are_not_kept_are_the_same_and_few_are_held(name: str) -> None:
    spec, state, _, _ = case(name)
    expected, lazy = ws.canonicalise(spec, state), CanonicalWeights(spec, state.__getitem__)
    kept = CanonicalWeights(spec, state.__getitem__, keep=2**30)
    for key in (*state, *reversed(state)):
        assert torch.equal(lazy[key], expected[key])
        assert len(lazy.last) <= 2
        assert not lazy.kept
        assert kept[key] is kept[key]
    assert kept.kept.keys() == state.keys()


def test_an_alignment_that_keeps_no_weights_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, a, _, _ = case("llama")
    generator = torch.Generator().manual_seed(1)
    b = {key: tensor + torch.randn(tensor.shape, generator=generator) for key, tensor in a.items()}
    for label, state in (("a", a), ("b", b)):
        ws.save_checkpoint({key: one.bfloat16() for key, one in state.items()}, tmp_path / f"{label}.safetensors")
    a, b = (ws.load_checkpoint(tmp_path / f"{label}.safetensors") for label in "ab")
    expected = ws.align(spec, a, b, max_sweeps=5)
    monkeypatch.setattr(alignment, "_KEPT", 0)
    found = ws.align(spec, a, b, max_sweeps=5)
    assert found.objective == expected.objective
    assert found.l2_reduction == expected.l2_reduction
    assert all(torch.equal(found.element.maps[group], value) for group, value in expected.element.maps.items())
    target, source = found.apply(a, b)
    moved = expected.element.apply(ws.canonicalise(spec, b))
    assert list(source) == list(b)
    assert all(torch.equal(source[key], moved[key].bfloat16()) for key in b)
    assert all(torch.equal(target[key], one.bfloat16()) for key, one in ws.canonicalise(spec, a).items())
