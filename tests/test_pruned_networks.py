"""Networks pruned by ``torch.nn.utils.prune``: a common mask is kept, different ones are refused everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import prune

import weightspace as ws
from weightspace import cli
from weightspace.arithmetic.effective import effective_weights
from weightspace.arithmetic.mean import mean
from weightspace.checkpoints import StateDict
from weightspace.connectivity import loss_plane, taylor_barrier
from weightspace.errors import WeightspaceError
from weightspace.merging import METHODS
from weightspace.soups.flatness import angle
from weightspace.soups.model_stock import model_stock_soup
from weightspace.soups.running_mean import RunningMean
from weightspace.tasks import ClassificationTask, Examples

CLASSES = 3
REFUSED = r"masks '0\.(weight|bias)_mask' of .* and .* differ in \d+ of \d+ places.*torch\.nn\.utils\.prune\.remove"


def network() -> nn.Module:
    """Return a network whose hidden layer is pruned, weight and bias, nothing cut off yet."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    for parameter in ("weight", "bias"):
        prune.identity(module[0], parameter)
    return module


def examples() -> dict[Any, Examples]:
    generator = torch.Generator().manual_seed(0)
    return {
        split: Examples(torch.randn(20, 4, generator=generator), torch.randint(CLASSES, (20,), generator=generator))
        for split in ("train", "validation", "test")
    }


TASK = ClassificationTask("pruned", network, examples)


def model(seed: int, masks: int, pruned: str = "weight") -> StateDict:
    """Return weights drawn from one seed, and masks from another."""
    weights, places = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(masks)
    state: StateDict = {}
    for name, tensor in network().state_dict().items():
        is_pruned = name.endswith("_mask") and pruned in name
        state[name] = (
            torch.ones_like(tensor) if name.endswith("_mask") else torch.randn(tensor.shape, generator=weights)
        )
        if is_pruned:
            state[name] = (torch.rand(tensor.shape, generator=places) < 0.6).to(tensor.dtype)
    return state


SAME = [model(seed, masks=7) for seed in range(3)]
DIFFERENT = [model(seed, masks=seed) for seed in range(3)]


def running_mean(states: list[StateDict]) -> StateDict:
    total = RunningMean()
    for number, state in enumerate(states):
        total.add(state, str(number))
    return total.state()


#: Everything that makes a network of several, or measures one, of three models.
COMBINATIONS: dict[str, Callable[[list[StateDict]], object]] = {
    "merge": lambda states: ws.merge(states),
    "slerp": lambda states: ws.merge(states[:2], "slerp", parameters={"t": 0.5}),
    "ties": lambda states: ws.merge(states[1:], "ties", base=states[0]),
    "sum": lambda states: ws.merge(states[:2], weights=[1.0, 1.0], parameters={"normalize": False}),
    "interpolate": lambda states: ws.interpolate(states[0], states[1], 0.5),
    "beyond the ends": lambda states: ws.interpolate(states[0], states[1], -0.5),
    "mean": mean,
    "running mean": running_mean,
    "curve": lambda states: ws.loss_curve(TASK, *states[:2], points=3),
    "matrix": lambda states: ws.barrier_matrix(TASK, states, points=3),
    "plane": lambda states: loss_plane(TASK, *states, resolution=2),
    "estimate": lambda states: taylor_barrier(TASK, *states[:2]),
    "uniform": lambda states: ws.uniform_soup(states),
    "greedy": lambda states: ws.greedy_soup(states, TASK),
    "learned": lambda states: ws.learned_soup(states, TASK, epochs=1),
    "wise-ft": lambda states: ws.wise_ft(states[0], states[1], TASK, positions=(0.0, 0.5, 1.0)),
    "model stock": lambda states: model_stock_soup(states[1:], states[0]),
    "angle": lambda states: angle(*states),
}


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_different_masks_are_refused(kind: str) -> None:
    with pytest.raises(WeightspaceError, match=REFUSED):
        COMBINATIONS[kind](DIFFERENT)


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_a_different_mask_of_a_bias_is_refused(kind: str) -> None:
    with pytest.raises(WeightspaceError, match=r"'0\.bias_mask'"):
        COMBINATIONS[kind]([model(seed, seed, pruned="bias") for seed in range(3)])


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_the_same_masks_are_kept(kind: str) -> None:
    found: Any = COMBINATIONS[kind](SAME)
    state = getattr(found, "state", found)
    if isinstance(state, dict):
        assert list(state) == list(SAME[0])
        assert all(state[name].equal(SAME[0][name]) for name in state if name.endswith("_mask"))


@pytest.mark.parametrize("combine", [ws.merge, running_mean, mean, ws.uniform_soup])
def test_the_mean_under_one_mask_is_that_of_the_effective_weights(combine: Callable[..., StateDict]) -> None:
    merged, plain = effective_weights(combine(SAME)), [effective_weights(state) for state in SAME]
    for name, tensor in ws.merge(plain).items():
        torch.testing.assert_close(merged[name], tensor)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("slerp", {"t": 0.3}), ("ties", {"density": 0.4}), ("sce", {"select_topk": 0.5}), ("karcher", {}), ("tsv_m", {})],
)
@pytest.mark.parametrize("through_files", [False, True])
def test_other_methods_do_not_see_what_the_mask_cuts_off(
    method: str, parameters: dict[str, Any], through_files: bool, files: Any
) -> None:
    count = 2 if method == "slerp" else 3
    based = METHODS[method].base == "required"
    junk = [{**state, "0.weight_orig": state["0.weight_orig"] + 9 * (1 - state["0.weight_mask"])} for state in SAME]
    plain = [effective_weights(state) for state in junk]

    def merged(states: list[StateDict]) -> StateDict:
        models, base = (states[1:], states[0]) if based else (states[:count], None)
        if not through_files:
            return ws.merge(models, method, base=base, parameters=parameters)
        paths = files(states)
        models, base = (paths[1:3], paths[0]) if based else (paths[:count], None)
        ws.merge_files(models, "out.safetensors", method=method, base=base, parameters=parameters)
        return ws.load_checkpoint("out.safetensors")

    found, expected = effective_weights(merged(junk)), merged(plain)
    expected["0.weight"] *= SAME[0]["0.weight_mask"]  # singular vectors reach outside the mask, which is kept
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
@pytest.mark.parametrize("states", [SAME, DIFFERENT], ids=["same", "different"])
def test_masks_are_of_any_dtype(dtype: torch.dtype, states: list[StateDict], tmp_path: Path) -> None:
    cast = [{n: t.to(dtype) if n.endswith("_mask") else t for n, t in state.items()} for state in states]
    for number, state in enumerate(cast):
        ws.save_checkpoint(state, tmp_path / f"{number}.safetensors")
    paths, out = [tmp_path / f"{number}.safetensors" for number in range(3)], tmp_path / "out.safetensors"
    for combine in (ws.merge, running_mean, lambda _: ws.merge_files(paths, out) and ws.load_checkpoint(out)):
        if states is DIFFERENT:
            with pytest.raises(WeightspaceError, match=r"pruning masks"):
                combine(cast)
        else:
            merged = combine(cast)
            assert merged["0.weight_mask"].dtype == dtype
            assert merged["0.weight_mask"].equal(cast[0]["0.weight_mask"])


def test_a_base_with_another_mask_is_refused() -> None:
    with pytest.raises(WeightspaceError, match=REFUSED):
        ws.merge(SAME[:2], "task_arithmetic", base=DIFFERENT[0])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[StateDict]], list[str]]:
    monkeypatch.chdir(tmp_path)

    def save(states: list[StateDict]) -> list[str]:
        for number, state in enumerate(states):
            ws.save_checkpoint(state, f"{number}.safetensors")
        return [f"{number}.safetensors" for number in range(len(states))]

    return save


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, list(arguments))
    return result.exit_code, result.output


TASK_OPTIONS = ("--task", f"{Path(__file__)}:TASK")


def commands(paths: list[str]) -> dict[str, tuple[str, ...]]:
    a, b, c = paths
    return {
        "merge": ("merge", a, b, "-o", "out.safetensors"),
        "merge into a torch file": ("merge", a, b, "-o", "out.pt"),
        "merge with a base": ("merge", b, c, "--base", a, "-m", "task_arithmetic", "-o", "out.safetensors"),
        "merge by processes": ("merge", a, b, "-o", "out.safetensors", "--executor", "processes", "--workers", "2"),
        "barrier": ("barrier", a, b, *TASK_OPTIONS, "--points", "3", "-o", "out.json"),
        "soup": ("soup", a, b, c, *TASK_OPTIONS, "-o", "out.safetensors"),
        "learned soup": ("soup", a, b, *TASK_OPTIONS, "--recipe", "learned", "-o", "out.safetensors"),
    }


@pytest.mark.parametrize("command", commands(["", "", ""]))
def test_commands_refuse_different_masks_and_write_nothing(command: str, files: Any, tmp_path: Path) -> None:
    status, text = run(*commands(files(DIFFERENT))[command])
    assert status == 2
    assert "masks '0.weight_mask' of" in text
    assert "torch.nn.utils.prune.remove" in text
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("command", ["merge", "merge into a torch file", "merge with a base", "merge by processes"])
def test_merged_files_are_the_merge_in_memory(command: str, files: Any) -> None:
    arguments = commands(files(SAME))[command]
    status, text = run(*arguments)
    assert status == 0, text
    own: dict[str, Any] = {"method": "task_arithmetic", "base": SAME[0]} if "--base" in arguments else {}
    expected = ws.merge(SAME[1:] if own else SAME[:2], **own)
    found = ws.load_checkpoint(arguments[arguments.index("-o") + 1])
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_weight_of_more_than_one_leaves_masks_alone(files: Any) -> None:
    (a, b, _), out = files(SAME), "out.safetensors"
    status, text = run("merge", a, b, "--weights", "1,1", "--normalize", "false", "-o", out)
    assert status == 0, text
    assert ws.load_checkpoint(out)["0.weight_mask"].equal(SAME[0]["0.weight_mask"])


def test_a_pruned_model_beside_one_that_is_not_is_told_from_it(files: Any) -> None:
    plain = effective_weights(SAME[0])
    advice = r"pruned.*torch\.nn\.utils\.prune\.remove"
    for states in ([SAME[0], plain], [plain, SAME[0]]):
        with pytest.raises(WeightspaceError, match=advice):
            ws.merge(states)
        with pytest.raises(WeightspaceError, match=advice):
            ws.merge_files(files(states), "out.safetensors")


def test_masks_are_permuted_with_their_weights() -> None:
    module = network()
    module.load_state_dict(SAME[0])
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    spec = ws.derive_spec(module, (inputs,))
    permutation = ws.Permutation.random(spec, seed=1)
    assert any(not torch.equal(order, torch.arange(len(order))) for order in permutation.indices.values())
    moved = ws.permute(spec, permutation, SAME[0])
    assert not moved["0.weight_mask"].equal(SAME[0]["0.weight_mask"])
    other = network()
    other.load_state_dict(moved)
    torch.testing.assert_close(other(inputs), module(inputs))
    found = ws.match(spec, SAME[0], moved).permutation
    back = ws.permute(spec, found, moved)
    assert all(back[name].equal(SAME[0][name]) for name in back)
    assert ws.merge([SAME[0], back])["0.weight_mask"].equal(SAME[0]["0.weight_mask"])


@pytest.mark.parametrize("name", ["attn_mask", "weight_mask", "router_mask"])
def test_a_mask_beside_no_pruned_weight_is_a_tensor_like_any_other(name: str) -> None:
    a, b = ({"weight": torch.ones(2), name: torch.full((2,), value)} for value in (0.0, 1.0))
    assert ws.merge([a, b])[name].tolist() == [0.5, 0.5]


def test_a_mask_of_another_shape_than_the_weight_prunes_nothing() -> None:
    a, b = ({"x_orig": torch.ones(2), "x_mask": torch.full((3,), value)} for value in (0.0, 1.0))
    assert ws.merge([a, b])["x_mask"].tolist() == [0.5] * 3


def weight_normed() -> nn.Module:
    layer = nn.utils.weight_norm(nn.Linear(3, 2))
    prune.l1_unstructured(layer, "weight_v", amount=0.5)
    return layer


def spectral_normed() -> nn.Module:
    layer = nn.utils.spectral_norm(nn.Linear(3, 2))
    prune.l1_unstructured(layer, "weight_orig", amount=0.5)
    return layer


def parametrized() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    prune.l1_unstructured(layer.parametrizations.weight, "original1", amount=0.5)  # type: ignore
    return layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [weight_normed, spectral_normed, parametrized])
def test_pruning_inside_a_parametrized_weight_is_refused(build: Callable[[], nn.Module]) -> None:
    states = [build().state_dict(), build().state_dict()]
    with pytest.raises(WeightspaceError, match=r"prune a part of the weight 'weight' under weight norm or spectral"):
        ws.merge(states)
