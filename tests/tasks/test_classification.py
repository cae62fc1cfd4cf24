"""The task that users instantiate with arrays of their own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.tasks import ClassificationTask, Examples, TrainConfig, carve, objective_value, train


def clusters(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centres = 3 * torch.eye(3)[labels]
    return Examples(centres + torch.randn(count, 3, generator=generator), labels)


def load() -> dict:
    return {"train": clusters(101, 0), "validation": clusters(23, 1), "test": clusters(50, 2)}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


TASK = ClassificationTask("clusters", build, load, batch_size=20, recipe=TrainConfig(epochs=8, learning_rate=0.02))


def test_scores_are_those_computed_by_hand() -> None:
    network = TASK.network().eval()
    inputs, labels = load()["test"]
    logits = network(inputs)
    scores = TASK.score(network)
    assert scores["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert scores["accuracy"] == int((logits.argmax(1) == labels).sum()) / 50


def test_scoring_leaves_modes_and_statistics_as_they_were() -> None:
    network = TASK.network().train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    TASK.score(network)
    assert [part.training for part in network.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_training_batches_cover_every_example_once_and_are_nearly_equal_in_size() -> None:
    batches = list(TASK.batches("train", seed=5))
    assert sorted({len(labels) for _, labels in batches}) == [16, 17]
    inputs = torch.cat([inputs for inputs, _ in batches])
    assert torch.equal(inputs.sort(dim=0).values, load()["train"].inputs.sort(dim=0).values)


def test_training_batches_depend_on_the_seed_alone() -> None:
    first, again, other = (next(iter(TASK.batches("train", seed)))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_training_batches_are_augmented() -> None:
    task = replace(TASK, augment=lambda inputs, generator: torch.zeros_like(inputs))
    assert all(not inputs.any() for inputs, _ in task.batches("train", 0))
    assert torch.equal(torch.cat([inputs for inputs, _ in task.batches("test", 0)]), load()["test"].inputs)


def test_the_loss_of_a_batch_can_be_differentiated() -> None:
    network = TASK.network()
    TASK.loss(network, next(iter(TASK.batches("train", 0)))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_training_learns_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    reports: list[Progress] = []
    network = TASK.network()
    torch.set_rng_state(before)
    network.load_state_dict(train(TASK, 0, on_progress=reports.append))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert TASK.score(network)["accuracy"] > 0.8
    assert [(report.stage, report.index, report.total) for report in reports] == [("epoch", n, 8) for n in range(1, 9)]
    losses = [report.value for report in reports if report.value is not None]
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_dropout_and_shuffling_come_from_the_seed() -> None:
    first, again = train(TASK, 7), train(TASK, 7)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_no_epochs_are_the_initial_weights() -> None:
    state = train(TASK, 0, epochs=0)
    assert state["1.num_batches_tracked"] == 0
    with pytest.raises(WeightspaceError, match="-1 epochs"):
        train(TASK, 0, epochs=-1)


def test_weight_decay_shrinks_the_weights_with_either_optimizer() -> None:
    norms = {}
    for optimizer in ("adam", "sgd"):
        for decay in (0.0, 0.1):
            recipe = replace(TASK.recipe, optimizer=optimizer, weight_decay=decay)
            norms[optimizer, decay] = float(train(replace(TASK, recipe=recipe), 0)["0.weight"].norm())
    assert norms["adam", 0.1] < norms["adam", 0.0] != norms["sgd", 0.0] > norms["sgd", 0.1]


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="'adam'"):
        train(replace(TASK, recipe=replace(TASK.recipe, optimizer="adm")), 0)


def test_a_training_that_diverges_is_an_error() -> None:
    with pytest.raises(WeightspaceError, match="learning rate"):
        train(replace(TASK, augment=lambda inputs, _: inputs * float("nan")), 0)


def test_a_loss_as_the_objective_is_negated() -> None:
    assert objective_value(replace(TASK, objective="loss"), {"loss": 2.0}) == -2.0


def test_carving_partitions_the_examples() -> None:
    examples = Examples(torch.arange(10.0), torch.arange(10))
    rest, taken = carve(examples, 3)
    assert len(taken.labels) == 3
    assert sorted(torch.cat([rest.labels, taken.labels]).tolist()) == list(range(10))
    assert torch.equal(rest.inputs, rest.labels.float())
    assert torch.equal(carve(examples, 3)[1].labels, taken.labels)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": clusters(3, 0)}, "no split 'validation'"),
        ({**load(), "test": Examples(torch.ones(3, 2), torch.ones(4).long())}, "expected"),
        ({**load(), "test": Examples(torch.ones(3, 2), torch.ones(3))}, "torch.float32"),
        ({**load(), "test": Examples(torch.ones(0, 2), torch.ones(0).long())}, "'test'"),
    ],
)
def test_examples_that_do_not_fit_are_refused(splits, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        _ = ClassificationTask("mine", build, lambda: splits).example_args


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="no split 'dev'"):
        TASK.score(TASK.network(), "dev")  # pyright: ignore[reportArgumentType]
