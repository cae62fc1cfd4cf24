"""Paths of results: names that are nearly those of files, files of another kind, inputs of the result."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import provenance
from weightspace.checkpoints.output_paths import (
    KINDS,
    check_apart,
    check_checkpoint_output,
    check_file_output,
    check_name,
    meant_ending,
)
from weightspace.errors import CheckpointError

OURS = (".safetensors", ".pt", ".pth", ".bin")

MEANT = {
    "x.safetensor": "x.safetensors",
    "x.safetensros": "x.safetensors",
    "x.SafeTensor": "x.safetensors",
    "x.safetensors2": "x.safetensors",
    "x.safetensors.tmp": "x.safetensors",
    "x.safetensors~": "x.safetensors",
    "x.safetensors (1)": "x.safetensors",
    "x.safetensors ": "x.safetensors",
    ".safetensors": "model.safetensors",
    "x.st": "x.safetensors",
    "x.ptt": "x.pt",
    "x.pt.": "x.pt",
    "x.tp": "x.pt",
    "x.pt1": "x.pt",
    "x.bni": "x.bin",
    "x.ckpt": "x.pt",
    "x.pth.tar": "x.pth",
    "x.json": "x.safetensors",
    "x.gguf": "x.safetensors",
    "x.onnx": "x.safetensors",
    "x.yaml": "x.safetensors",
}
FOLDERS = (
    *("Llama-3.1-8B", "model-v2.0", "out", "merged.d", "qwen2.5", "gemma.it", "model.ft", "llama.pt-br", "v0.1.bf16"),
    *("Phi-3.5-mini-instruct", "m.gpt", ".hidden", "a.b", "x.merged", "x.slerp", "...", "x."),
)


@pytest.mark.parametrize("name", MEANT)
def test_a_name_that_is_nearly_that_of_a_file_is_refused_with_the_one_that_was_meant(name: str, tmp_path: Path) -> None:
    for write in (lambda path: ws.save_checkpoint({"w": torch.ones(1)}, path), check_checkpoint_output):
        with pytest.raises(CheckpointError, match="would be a folder") as found:
            write(tmp_path / name)
        assert f"Did you mean {MEANT[name]}?" in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FOLDERS)
def test_names_of_folders_are_left_alone(name: str, tmp_path: Path) -> None:
    assert meant_ending(name, OURS) is None
    check_name(Path(name))


def test_a_folder_that_is_there_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    ws.save_checkpoint({"w": torch.ones(1)}, tmp_path / "x.json")
    assert (tmp_path / "x.json" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.pt", "adapter.json"])
def test_an_adapter_is_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="would be a folder"):
        check_name(tmp_path / name, folder_only=True)


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return content.getvalue()


STRANGERS = {
    "notes": b"my notes\n",
    "one byte": b"x",
    "zeros": bytes(100),
    "an archive of something": archive("notes.txt"),
    "a configuration": b'{"hidden_size": 3}',
    "a list": b"[1, 2]",
    "a deep list": b"[" * 100_000,
    "a table": b"name,grade\nann,1\n",
    "settings": b"merge_method: linear\n",
}


@pytest.mark.parametrize("ending", KINDS)
@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_replaced_only_by_force(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / (f"result{ending}" if ending.startswith(".") else "result.yaml")
    path.write_bytes(content)
    kind = None if ending.startswith(".") else ending
    with pytest.raises(CheckpointError, match=r"already exists and holds something other .* \(--force\)"):
        check_file_output(path, kind=kind)
    check_file_output(path, kind=kind, force=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.bin", "m"])
def test_an_earlier_result_is_replaced_and_a_trained_model_only_by_force(name: str, tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.ones(3)}, tmp_path / name, metadata=provenance([], "linear", {}))
    check_checkpoint_output(tmp_path / name)
    ws.save_checkpoint({"w": torch.ones(3)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"no record of having made it: .* trained weights, .* \(--force\)"):
        check_checkpoint_output(tmp_path / name)
    check_checkpoint_output(tmp_path / name, force=True)


def test_a_damaged_checkpoint_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    ws.save_checkpoint({"w": torch.ones(3)}, path, metadata=provenance([], "linear", {}))
    os.truncate(path, path.stat().st_size - 4)  # a download that broke off
    with pytest.raises(CheckpointError, match="no record of having made it"):
        check_checkpoint_output(path)
    check_checkpoint_output(path, force=True)


def test_empty_files_and_folders_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "m.safetensors").touch()
    for name in ("folder", "m.safetensors"):
        check_checkpoint_output(tmp_path / name)


def test_models_that_other_programs_wrote_are_replaced_only_by_force(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.ones(2)}, tmp_path / "new.bin")
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match="no record of having made it"):
            check_file_output(path)
        check_file_output(path, force=True)


def test_every_result_that_we_write_is_known_again(tmp_path: Path) -> None:
    from weightspace.connectivity import BarrierMatrix, Curve, Plane
    from weightspace.labels.results import Predictions
    from weightspace.soups import SoupReport

    common = {"split": "test", "statistics": "none", "task": "x"}
    results = {
        "curve": Curve(positions=(0.0, 1.0), loss=(1.0, 2.0), accuracy=None, **common),
        "matrix": BarrierMatrix(
            models=("a", "b"),
            barrier=((0.0, 1.0), (1.0, 0.0)),
            loss=(1.0, 1.0),
            accuracy_barrier=None,
            accuracy=None,
            baseline="linear",
            **common,
        ),
        "plane": Plane(
            models=("a", "b", "c"),
            positions=((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)),
            model_loss=(1.0, 1.0, 1.0),
            x=(0.0, 1.0),
            y=(0.0, 1.0),
            loss=((1.0, 1.0), (1.0, 1.0)),
            model_accuracy=None,
            accuracy=None,
            **common,
        ),
        "predictions": Predictions((0,), ("x",), (0.5,)),
    }
    paths = [(one, tmp_path / f"{name}{ending}") for name, one in results.items() for ending in (".json", ".csv")]
    paths.append((results["predictions"], tmp_path / "ids.npy"))
    paths.append((SoupReport("t", "accuracy", ("a",), {}, ()), tmp_path / "report.json"))
    for result, path in paths:
        result.save(path)
        check_file_output(path)


def test_an_empty_file_is_free(tmp_path: Path) -> None:
    for ending in (".safetensors", ".pt", ".json", ".png"):
        (tmp_path / f"x{ending}").touch()
        check_file_output(tmp_path / f"x{ending}")


@pytest.mark.parametrize("force", [False, True])
def test_folders_pipes_and_devices_are_never_replaced_by_a_file(force: bool, tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "device.pt").symlink_to("/dev/null")
    for name, what in (("folder", "a folder"), ("pipe", "not a regular file"), ("device", "not a regular file")):
        with pytest.raises(CheckpointError, match=f"{name}.pt is {what}"):
            check_file_output(tmp_path / f"{name}.pt", force=force)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    ws.save_checkpoint({"w": torch.ones(3)}, folder)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 3}))
    return folder


def test_an_output_replaces_no_input_under_any_name(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    (tmp_path / "link.safetensors").symlink_to(weights)
    (tmp_path / "hard.safetensors").hardlink_to(weights)
    (tmp_path / "folder_link").symlink_to(model)
    (tmp_path / "link_to_link.safetensors").symlink_to("link.safetensors")
    (tmp_path / "config.safetensors").hardlink_to(model / "config.json")
    outs = ("link.safetensors", "hard.safetensors", "link_to_link.safetensors", "folder_link", "config.safetensors")
    for out in (*(tmp_path / name for name in outs), weights, model, tmp_path, model / ".." / "model"):
        for given in (model, tmp_path / "folder_link"):
            with pytest.raises(CheckpointError, match=r"would replace .* which it is made from"):
                check_apart(out, [given])


def test_an_input_by_its_link_is_an_input_too(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(model / "model.safetensors")
    for out in (snapshot, snapshot / "model.safetensors", model / "model.safetensors"):
        with pytest.raises(CheckpointError, match="would replace"):
            check_apart(out, [snapshot / "model.safetensors"])


@pytest.mark.parametrize("name", ["2_Dense/model.safetensors", "data/statistics.pt", "a/b/c.bin"])
def test_an_output_replaces_nothing_deeper_in_an_input(name: str, model: Path) -> None:
    (model / name).parent.mkdir(parents=True)
    check_apart(model / name, [model])
    torch.save(torch.ones(1), model / name)
    with pytest.raises(CheckpointError, match="would replace"):
        check_apart(model / name, [model])


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_an_output_has_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ws.save_checkpoint({"w": torch.ones(1)}, tmp_path / "a.pt")
    for write in (lambda: ws.save_checkpoint({"w": torch.ones(1)}, name), lambda: ws.merge_files(["a.pt"], name)):
        with pytest.raises(CheckpointError, match="expected the path of a file or folder"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "adapter_config.json"])
def test_an_output_becomes_no_part_of_an_input(name: str, model: Path) -> None:
    with pytest.raises(CheckpointError, match="would become a part of"):
        check_apart(model / name, [model])


def test_beside_and_among_inputs_there_is_room(model: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "out", tmp_path / "out.pt", model / "merged.safetensors", tmp_path / "mode"):
        check_apart(out, [model, model / "model.safetensors", tmp_path / "nowhere"])
