import os
import pickle
import sys

import pytest
import torch

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.tasks import Task, objective_value, train
from weightspace.zoo import TASKS, load_task
from weightspace.zoo.digits import digits_examples
from weightspace.zoo.fashion import DEBIAN_FOLDER, fashion_folder

DIGITS = [name for name in TASKS if name.startswith("digits")]


def test_digits_networks_of_two_seeds_are_accurate(
    digits_mlp: Task, digits_cnn: Task, mlp_states: tuple[StateDict, ...], cnn_states: tuple[StateDict, ...]
) -> None:
    for task, states in ((digits_mlp, mlp_states), (digits_cnn, cnn_states)):
        network = task.network()
        for state in states:
            network.load_state_dict(state)
            assert task.score(network)["accuracy"] > 0.96
        assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])


@pytest.mark.parametrize("name", DIGITS)
def test_a_built_in_task_satisfies_the_protocol(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    network = task.network().eval()
    assert network(*task.example_args).shape == (len(task.example_args[0]), 10)


@pytest.mark.parametrize("name", DIGITS)
def test_a_pickled_task_is_small_and_scores_alike(name: str) -> None:
    task = load_task(name)
    network = task.network()
    scores = task.score(network)
    pickled = pickle.dumps(task)
    assert len(pickled) < 2_000
    assert pickle.loads(pickled).score(network) == scores


def test_the_splits_share_no_image_and_are_the_same_in_every_process() -> None:
    examples = digits_examples()
    assert [len(examples[split].labels) for split in ("train", "validation", "test")] == [1147, 200, 450]
    assert examples["test"].labels[:8].tolist() == [6, 5, 5, 7, 9, 9, 8, 4]
    images = torch.cat([split.inputs.flatten(1) for split in examples.values()])
    assert len(images.unique(dim=0)) == len(images)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits_examples.cache_clear()
    with pytest.raises(WeightspaceError, match=r'pip install "weightspace\[demo\]"') as caught:
        _ = load_task("digits-mlp").example_args
    assert "\n" not in str(caught.value)


def test_without_fashion_mnist_one_line_says_how_to_get_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path))
    with pytest.raises(WeightspaceError, match=r"apt-get install dataset-fashion-mnist, or pass --data") as caught:
        load_task("fashion-mlp")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_folder_given_comes_before_the_environment_before_debian(tmp_path, monkeypatch) -> None:
    given, environment = tmp_path / "given", tmp_path / "environment"
    for folder in (given, environment):
        folder.mkdir()
        (folder / "train-images-idx3-ubyte.gz").touch()
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(environment))
    assert fashion_folder(given) == given
    assert fashion_folder() == environment


@pytest.mark.skipif(
    not DEBIAN_FOLDER.exists() and os.environ.get("WEIGHTSPACE_CI") != "1",
    reason="apt-get install dataset-fashion-mnist",
)
@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-cnn", "vit-fashion"])
def test_fashion_networks_build_and_score_on_the_real_images(name: str) -> None:
    task = load_task(name, data=DEBIAN_FOLDER)
    scores = task.score(task.network(), "validation")
    assert 0.0 <= scores["accuracy"] < 0.4
    assert task.example_args[0].shape == (4, 1, 28, 28)


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightspaceError, match=r"'digit-mlp'; expected .*fashion-cnn.*Did you mean 'digits-mlp'"):
        load_task("digit-mlp")


def test_a_data_folder_for_a_task_that_reads_none_is_refused(tmp_path) -> None:
    with pytest.raises(WeightspaceError, match="uses no data folder"):
        load_task("digits-mlp", data=tmp_path)


def test_the_objective_is_better_when_larger(digits_mlp: Task) -> None:
    assert objective_value(digits_mlp, {"loss": 2.0, "accuracy": 0.5}) == 0.5
    with pytest.raises(WeightspaceError, match="objective 'accuracy'"):
        objective_value(digits_mlp, {"loss": 2.0})


@pytest.mark.parametrize("name", DIGITS)
def test_the_same_seed_trains_the_same_network_bit_for_bit(name: str) -> None:
    task = load_task(name)
    first, again, other = (train(task, seed, epochs=1) for seed in (3, 3, 4))
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key]), key
    assert not torch.equal(first["head.weight"], other["head.weight"])
