from pathlib import Path

import pytest
import torch

from weightspace.errors import WeightspaceError
from weightspace.zoo.augmentations import AUGMENTATIONS
from weightspace.zoo.images import ArrayImages, find_images, split_folders
from weightspace.zoo.shifts import SHIFTS, ShiftedImages, shifted

Image = pytest.importorskip("PIL.Image")


def bytes_of(count: int, side: int = 12, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def test_arrays_become_floats_from_0_to_1_of_the_size_asked_for() -> None:
    pixels = bytes_of(3)
    same = ArrayImages(pixels, 12)
    assert torch.equal(same[torch.tensor([2, 0])], pixels[[2, 0]] / 255)
    larger = ArrayImages(pixels, 16)
    assert larger.shape == larger[0:3].shape == (3, 1, 16, 16)
    assert larger[0:3].aminmax().min >= 0
    assert larger[0:3].aminmax().max <= 1
    assert float(larger[1:2].mean()) == pytest.approx(float(same[1:2].mean()), abs=0.02)


@pytest.mark.parametrize("pixels", [torch.rand(2, 1, 4, 4), bytes_of(2)[0], bytes_of(2, channels=2)], ids=lambda p: "")
def test_other_arrays_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(WeightspaceError, match=r"expected \(n, 1 or 3, height, width\) torch.uint8"):
        ArrayImages(pixels, 4)


def test_a_file_is_resized_by_its_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    picture = torch.zeros(8, 16, dtype=torch.uint8)
    picture[:, 4:12] = 255  # the middle is white
    (tmp_path / "a").mkdir()
    Image.fromarray(picture.numpy()).save(tmp_path / "a" / "x.png")
    images, labels = find_images(tmp_path, ["a"], 4)
    assert images.shape == (1, 3, 4, 4)
    assert labels.tolist() == [0]
    assert images[0:1].mean() > 0.95


def test_classes_are_matched_by_the_names_of_their_folders(tmp_path: Path) -> None:
    for name, count in (("b", 2), ("c", 1)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{index}.png")
    images, labels = find_images(tmp_path, ["a", "b", "c"], 4)
    assert labels.tolist() == [1, 1, 2]
    assert [file.parent.name for file in images.files] == ["b", "b", "c"]
    with pytest.raises(WeightspaceError, match=r"'c'; expected one of a, b"):
        find_images(tmp_path, ["a", "b"], 4)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_text("nothing")
    images, _ = find_images(tmp_path, ["a"], 4)
    with pytest.raises(WeightspaceError, match=r"broken\.png cannot be read as an image"):
        _ = images[0:1]


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"no folder .*absent"):
        split_folders(tmp_path / "absent")
    (tmp_path / "train").mkdir()
    with pytest.raises(WeightspaceError, match="no folder 'test'; found train"):
        split_folders(tmp_path)
    with pytest.raises(WeightspaceError, match="has no images"):
        find_images(tmp_path / "train", ["a"], 4)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_each_image_alike_whatever_is_asked_with_it(name: str) -> None:
    images = ArrayImages(bytes_of(6), 12)
    made = ShiftedImages(images, SHIFTS[name])
    together, alone = made[torch.arange(6)], made[torch.tensor([4])]
    assert torch.equal(together[4:5], alone)
    assert together.shape == (6, 1, 12, 12)
    assert (together - images[0:6]).abs().mean() > 0.02
    low, high = together.aminmax()
    assert low >= 0
    assert high <= 1 + 1e-6
    kept = shifted(images, SHIFTS[name])
    assert kept.shape == (6, 1, 12, 12)
    assert torch.allclose(kept[0:6], together, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if AUGMENTATIONS[name]])
def test_an_augmentation_follows_its_generator_and_leaves_its_input_alone(name: str) -> None:
    augment = AUGMENTATIONS[name]
    assert augment is not None
    images = ArrayImages(bytes_of(8), 12)[0:8]
    before = images.clone()
    first, again, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape


def test_a_turn_by_a_right_angle_is_a_turn() -> None:
    from weightspace.zoo.shifts import turned

    images = ArrayImages(bytes_of(2), 12)[0:2]
    found = turned(images, torch.tensor([90.0, 0.0]))
    assert torch.allclose(found[1], images[1], atol=1e-5)
    ways = [torch.allclose(found[0], images[0].rot90(k, (1, 2)), atol=1e-4) for k in (1, 3)]
    assert any(ways)
