"""Localize-and-Stitch with data: the descent on the paper's objective, planted regions, and averages of overlaps."""

from typing import Any

import pytest
import torch
from kitchen import PLAIN, TASK, equal, fine_tunes, saved
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.progress import Progress
from weightspace.soups import AdaMergingOptions, LocalizationOptions, adamerging, localize_and_stitch
from weightspace.soups.localization import stitched
from weightspace.tasks import ClassificationTask


def by_autograd(base: Any, model: Any, options: LocalizationOptions) -> tuple[dict[str, Tensor], list[float]]:
    """Descend on the logits of the soft mask by the gradient of the objective, over the whole split."""
    names = list(base)
    sizes = torch.cat([(model[name] - base[name]).abs().flatten() for name in sorted(names)])
    bound = sizes.topk(int(options.density * len(sizes))).values.min()
    logits = {
        name: torch.where((model[name] - base[name]).abs() >= bound, options.bias, -options.bias).requires_grad_()
        for name in names
    }
    losses = []
    for _ in range(options.epochs):
        soft = {name: logits[name].sigmoid() for name in names}
        merged = {name: base[name] + soft[name] * (model[name] - base[name]) for name in names}
        batches = list(PLAIN.batches(options.split, 0))
        parts = [
            nn.functional.cross_entropy(functional_call(PLAIN.network(), merged, (inputs,)), labels)
            for inputs, labels in batches
        ]
        penalty = options.penalty / options.learning_rate
        objective = sum(parts) + penalty * sum(one.sum() for one in soft.values())
        objective.backward()  # type: ignore[union-attr]
        losses.append(sum(part.item() for part in parts) / len(parts))
        for one in logits.values():
            assert one.grad is not None
            one.data -= options.learning_rate * one.grad
            one.grad = None
    return {name: one.detach() > 0 for name, one in logits.items()}, losses


@pytest.mark.parametrize("penalty", [0.0, 400.0])
def test_masks_are_those_of_the_objective(penalty: float) -> None:
    base, (model,) = fine_tunes(PLAIN, 1, steps=60)
    options = LocalizationOptions(density=0.2, epochs=4, learning_rate=1e4, penalty=penalty, split="train")
    told: list[Progress] = []
    found = localize_and_stitch([model], base, [PLAIN], options=options, on_progress=told.append)
    masks, losses = by_autograd(base, model, options)
    assert found.losses[0] == pytest.approx(losses, rel=1e-4)
    assert all(torch.equal(found.masks[0][name], mask) for name, mask in masks.items())
    assert [at.value for at in told] == list(found.losses[0])
    assert found.losses[0][-1] < found.losses[0][0] or penalty


def test_a_penalty_shrinks_the_mask_and_without_epochs_it_is_the_largest_differences() -> None:
    base, (model,) = fine_tunes(PLAIN, 1, steps=60)
    start = localize_and_stitch([model], base, [PLAIN], options=LocalizationOptions(density=0.2, epochs=0))
    total = sum(tensor.numel() for tensor in base.values())
    assert start.densities == (int(0.2 * total) / total,)
    small = LocalizationOptions(density=0.2, learning_rate=1.0, penalty=2000.0, epochs=1)
    assert localize_and_stitch([model], base, [PLAIN], options=small).densities == (0.0,)


class Tied(nn.Module):
    """A network whose two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).relu()))


@pytest.mark.parametrize("merge", [localize_and_stitch, adamerging])
def test_tied_weights_are_merged_once_and_stay_equal(merge: Any) -> None:
    """Also if the states hold them as two tensors, as files do."""
    task = ClassificationTask("tied", Tied, PLAIN.load)
    base, models = fine_tunes(task, 2)
    states = [{name: tensor.clone() for name, tensor in state.items()} for state in (base, *models)]
    options: Any = {"options": LocalizationOptions(density=0.3, epochs=1)}
    if merge is adamerging:
        options = {"ties": True, "options": AdaMergingOptions(density=0.3, steps=2)}
    tasks = [task, task] if merge is localize_and_stitch else [task]
    found = merge(models, base, tasks, **options).state
    assert torch.equal(found["first.weight"], found["second.weight"])
    assert not torch.equal(found["first.weight"], base["first.weight"])
    assert equal(merge(states[1:], states[0], tasks, **options).state, found)


def test_overlaps_are_averaged_and_the_rest_is_the_base() -> None:
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0]), "n": torch.tensor(2)}
    models = [{"w": torch.tensor(row), "n": torch.tensor(2)} for row in ([2.0, 3.0, 9.0, 9.0], [4.0, 9.0, 5.0, 9.0])]
    masks = [{"w": torch.tensor(row).bool()} for row in ([1, 1, 0, 0], [1, 0, 1, 0])]
    merged = stitched(models, base, masks, {})
    assert merged["w"].tolist() == [3, 3, 5, 1]
    assert merged["n"] == 2


def test_files_and_states_give_the_same_bits(tmp_path: Any) -> None:
    base, models = fine_tunes(PLAIN, 2)
    paths = saved([base, *models], tmp_path)
    options = LocalizationOptions(density=0.1, epochs=2)
    a = localize_and_stitch(models, base, [PLAIN, PLAIN], options=options)
    b = localize_and_stitch(paths[1:], paths[0], [PLAIN, PLAIN], options=options)
    assert equal(a.state, b.state)
    assert a.densities == b.densities


def test_missing_tasks_and_statistics_are_refused() -> None:
    base, models = fine_tunes(PLAIN, 2)
    with pytest.raises(WeightspaceError, match="one task per model, 2; found 1"):
        localize_and_stitch(models, base, [PLAIN])
    with pytest.raises(WeightspaceError, match="density must be a number from 0 to 1; found -1"):
        LocalizationOptions(density=-1)
    with pytest.raises(CheckpointError, match="base and model 1 do not fit"):
        localize_and_stitch([{"w": torch.ones(1)}], base, [PLAIN])
    base, models = fine_tunes(TASK, 1)
    with pytest.raises(WeightspaceError, match=r"buffer '1\.running_mean' of model 1 differs .*without data"):
        localize_and_stitch(models, base, [TASK])
