"""CLIP models of open_clip as tasks: a minute one here, on images that a colour tells apart."""

import json
import logging
import os
import pickle
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import weightspace as ws
from weightspace import cli
from weightspace.clip import build_clip, image_size, zero_shot_head
from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.tasks import ClassificationTask, Examples, TrainConfig, network_with, variant
from weightspace.zoo import clip_task
from weightspace.zoo.contrastive import pretrained_clip
from weightspace.zoo.fashion import DEBIAN_FOLDER

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("open_clip")

MINUTE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = ("dark", "grey", "bright")
CAPTIONS = [[f"a {name} one.", f"a photo of a {name}."] for name in CLASSES]


def shades(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(40, (count, 1, 16, 16), generator=generator)
    return Examples((noise + (20 + 90 * labels).view(-1, 1, 1, 1)).to(torch.uint8), labels)


def examples() -> dict[str, Examples]:
    return {"train": shades(96, 0), "validation": shades(30, 1), "test": shades(45, 2)}


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "minute.json"
    path.write_text(json.dumps(MINUTE))
    return str(path)


@pytest.fixture(scope="session")
def weights(config: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    images, labels = shades(96, 7)
    network = pretrained_clip(config, images.float() / 255, labels, CAPTIONS, steps=60, batch_size=32)
    path = tmp_path_factory.mktemp("weights") / "minute.safetensors"
    ws.save_checkpoint({name: tensor.detach() for name, tensor in network.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def task(config: str, weights: str) -> ClassificationTask:
    recipe = TrainConfig(epochs=3, learning_rate=3e-3, cooldown=True)
    return clip_task(
        config, examples, CLASSES, weights=weights, shifts=("noise", "contrast"), batch_size=32, recipe=recipe
    )


def test_the_network_begins_as_the_zero_shot_classifier_that_texts_make(
    task: ClassificationTask, config: str, weights: str
) -> None:
    model = build_clip(config, weights=weights)
    images = task.examples["test"].inputs[0:9]
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (model.visual.image_mean, model.visual.image_std))
    head = zero_shot_head(config, model, CLASSES, ["a photo of a {}."])
    with torch.no_grad():
        features = model.encode_image((images.expand(-1, 3, -1, -1) - mean) / std, normalize=True)
        assert torch.allclose(task.network()(images), features @ head.T, atol=1e-4)
    assert nn.functional.normalize(head, dim=-1).shape == (3, 16)
    assert torch.allclose(head.norm(dim=1), model.logit_scale.exp())
    assert task.score(task.network(), "validation")["accuracy"] > 0.6, "it has learnt the texts"


def test_a_head_of_several_templates_is_the_mean_of_directions(config: str, weights: str) -> None:
    model = build_clip(config, weights=weights)
    both = zero_shot_head(config, model, CLASSES, ["a {} one.", "a photo of a {}."])
    each = [zero_shot_head(config, model, CLASSES, [text]) for text in ("a {} one.", "a photo of a {}.")]
    mean = nn.functional.normalize(sum(nn.functional.normalize(head, dim=-1) for head in each), dim=-1)
    assert torch.allclose(nn.functional.normalize(both, dim=-1), mean, atol=1e-6)


def test_fine_tunes_start_at_one_point_and_differ_by_seed_rate_and_augmentation(task: ClassificationTask) -> None:
    base = ws.train(task, seed=0, epochs=0)
    assert all(torch.equal(tensor, base[name]) for name, tensor in task.network().state_dict().items())
    assert not any(name.startswith(("transformer", "token_embedding")) for name in base), "no text tower"
    first = ws.train(task, seed=0)
    again = ws.train(pickle.loads(pickle.dumps(task)), seed=0)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    others = [
        ws.train(task, seed=1),
        ws.train(variant(task, learning_rate=1e-3), seed=0),
        ws.train(variant(task, augmentation="jitter"), seed=0),
    ]
    assert not any(torch.equal(first["head.weight"], other["head.weight"]) for other in others)
    for state in (first, *others):
        assert task.score(network_with(task, state))["accuracy"] > 0.9


def test_shifts_are_further_splits_of_the_test_images(task: ClassificationTask) -> None:
    assert task.shifts == ("noise", "contrast")
    network = task.network()
    scores = {split: task.score(network, split) for split in ("test", *task.shifts)}
    assert len({score["loss"] for score in scores.values()}) == 3
    assert torch.equal(task.examples["noise"].labels, task.examples["test"].labels)
    with pytest.raises(WeightspaceError, match="no split 'snow'; expected train, validation, test, noise, contrast"):
        task.score(network, "snow")


def test_a_spec_can_be_derived_and_holds(task: ClassificationTask) -> None:
    network = task.network().eval()
    spec = ws.derive_spec(network, task.example_args)
    assert any(name.startswith("visual") for name in spec.groups)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count, seed in (("train", 24, 0), ("test", 9, 1), ("sketch", 6, 2)):
        images, labels = shades(count, seed)
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = tmp_path / split / f"{'abc'[label]}_{CLASSES[label]}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{index:02}.png")
    return tmp_path


def test_a_folder_of_images_is_a_task_whose_further_folders_are_shifts(config: str, weights: str, folder: Path) -> None:
    task = clip_task(config, folder, CLASSES, weights=weights, held_out=6, shifts=["blur"])
    assert task.name == "clip-minute"
    assert task.shifts == ("sketch", "blur")
    found = {split: len(one.labels) for split, one in task.examples.items()}
    assert found == {"train": 18, "validation": 6, "test": 9, "sketch": 6, "blur": 9}
    held, kept = (set(task.examples[split].inputs.files) for split in ("validation", "train"))
    assert not held & kept
    images, labels = next(iter(task.batches("train", 0)))
    assert images.shape == (18, 3, 16, 16)
    assert torch.allclose(images.mean((1, 2, 3)), (39.5 + 90 * labels) / 255, atol=0.05)
    assert 0 <= task.score(task.network(), "sketch")["accuracy"] <= 1
    (folder / "test").rename(folder / "val")
    with pytest.raises(WeightspaceError, match="no folder 'test'; found sketch, train, validation"):
        _ = clip_task(config, folder, weights=weights).example_args


def test_class_names_are_those_of_the_folders(config: str, folder: Path) -> None:
    assert clip_task(config, folder, held_out=3).build.class_names == ("a dark", "b grey", "c bright")
    with pytest.raises(WeightspaceError, match=r"held_out is 0; expected .* a number from 1 to 23"):
        _ = clip_task(config, folder).example_args


def test_a_task_of_the_user_works_on_the_command_line(config: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from weightspace.zoo import clip_task\n"
        f"def task(): return clip_task({config!r}, {str(folder)!r}, held_out=6, shifts=['rotation'])\n"
    )
    out = tmp_path / "out.safetensors"
    options = ["--task", f"{file}:task", "--epochs", "1", "--learning-rate", "1e-3", "--augmentation", "flip"]
    trained = CliRunner().invoke(cli.main, ["train", *options, "-o", str(out), "--json"])
    assert trained.exit_code == 0, trained.output
    found = json.loads(trained.stdout)
    assert set(found["scores"]) == {"validation", "test", "sketch", "rotation"}
    assert out.exists()
    result = CliRunner().invoke(cli.main, ["train", *options[:-1], "blurr", "-o", str(out)])
    assert result.exit_code == 2
    assert "expected one of none, flip, jitter, distort" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "ViT-B-23"}, "Unknown open_clip model 'ViT-B-23'.*Did you mean 'ViT-B-32'"),
        ({"model": "absent.json"}, "no file absent.json"),
        ({"class_names": None}, "give class_names"),
        ({"shifts": ["snow"]}, "Unknown shift 'snow'; expected one of rotation, noise, blur, contrast"),
        ({"augmentation": "flop"}, "Unknown augmentation 'flop'.*Did you mean 'flip'"),
    ],
)
def test_impossible_options_are_one_line(config: str, change: dict, message: str) -> None:
    options = {"model": config, "data": examples, "class_names": CLASSES, **change}
    with pytest.raises(WeightspaceError, match=message) as caught:
        clip_task(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ["a photo"]}, r"Template 'a photo' has no \{\}"),
        ({"weights": "absent.safetensors"}, "Unknown pretrained weights of .*minute.json 'absent.safetensors'"),
        ({"class_names": ()}, "Found 0 class names and 1 templates"),
    ],
)
def test_missing_requirements_are_reported_when_the_network_is_built(config: str, change: dict, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        clip_task(**{"model": config, "data": examples, "class_names": CLASSES, **change}).network()


def test_open_clip_does_not_log_and_leaves_the_root_logger_alone(config: str, capfd) -> None:
    before = list(logging.root.handlers)
    build_clip(config)
    assert logging.root.handlers == before
    assert capfd.readouterr() == ("", "")
    assert image_size(config) == 16
    assert image_size("ViT-B-32") == 224


@pytest.mark.parametrize(("rate", "message"), [(0.0, "positive number"), (float("nan"), "positive number")])
def test_a_learning_rate_is_above_0(task: ClassificationTask, rate: float, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        variant(task, learning_rate=rate)
    assert variant(task) is task
    with pytest.raises(WeightspaceError, match="'digits-mlp' has no augmentations to choose from; found 'flip'"):
        variant(ws.load_task("digits-mlp"), augmentation="flip")


@pytest.mark.skipif(
    not DEBIAN_FOLDER.exists() and os.environ.get("WEIGHTSPACE_CI") != "1",
    reason="apt-get install dataset-fashion-mnist",
)
def test_the_built_in_task_makes_its_pretrained_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightspace.zoo import fashion_clip

    made = []
    real = fashion_clip.pretrained_clip

    def counted(*arguments, **options):
        made.append(options["steps"])
        return real(*arguments, **options)

    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path))
    monkeypatch.setattr(fashion_clip, "pretrained_clip", counted)
    monkeypatch.setattr(fashion_clip, "TinyClip", partial(fashion_clip.TinyClip, steps=2))
    tasks = [fashion_clip.fashion_clip(DEBIAN_FOLDER, split=split) for split in (0, 1)]
    with pytest.warns(WeightspaceWarning, match=r"pretrains its tiny CLIP on first use: 2 steps, .* cached in"):
        networks = [tasks[0].network()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        networks.append(tasks[1].network())
    assert made == [2]
    assert torch.equal(networks[0].head.weight, networks[1].head.weight)
    images = fashion_clip.fashion_images(DEBIAN_FOLDER, 0)
    assert {split: tuple(one.inputs.shape) for split, one in images.items()} == {
        "train": (10_000, 1, 28, 28),
        "validation": (5_000, 1, 28, 28),
        "test": (10_000, 1, 28, 28),
    }
    assert not torch.equal(images["train"].labels, fashion_clip.fashion_images(DEBIAN_FOLDER, 1)["train"].labels)
    assert networks[0](torch.rand(2, 1, 32, 32)).shape == (2, 10)
