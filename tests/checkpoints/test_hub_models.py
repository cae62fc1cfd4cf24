"""Models of the Hugging Face Hub by name: from a path, its cache, or by range, against a server on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, local_hub
from remote_files import equal, state

import weightspace as ws
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.hub_names import HubModel, hub_model
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import CheckpointError

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Serve ``org/model``, short ``word``, its revision ``v1``, and an adapter ``org/lora``; nothing is here."""
    for seed, name in enumerate(("model", "model@v1")):
        folder = tmp_path / "served" / "org" / name
        ws.save_checkpoint(state(seed), folder)
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    lora = tmp_path / "served" / "org" / "lora"
    ws.save_checkpoint({"x.lora_A.weight": torch.ones(1, 2)}, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text("{}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with local_hub(tmp_path / "served", tmp_path / "hub", monkeypatch) as found:
        found.short["word"] = "org/model"
        yield found


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/model", HubModel("org/model", None)),
        ("org/model-v0.1_x@refs/pr/1", HubModel("org/model-v0.1_x", "refs/pr/1")),
        ("model", HubModel("model", None)),
        ("bert-base-uncased@v1", HubModel("bert-base-uncased", "v1")),
        ("modle.safetensors", None),
        ("modle.safetensor", None),
        ("model.v2", None),
        ("./model", None),
        ("model/", None),
        ("a", None),
        ("a@main", None),
        ("./org/model", None),
        ("/org/model", None),
        ("org/sub/model", None),
        ("org/model.safetensors", None),
        ("org/.hidden", None),
        ("hf://org/model", None),
        ("org/model+org/lora", None),
        ("a/b", None),
        ("a/b@main", None),
    ],
)
def test_names_of_the_hub_are_those_that_no_path_has(
    source: str, expected: HubModel | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_model(source) == expected


def test_a_model_that_is_not_in_the_cache_is_read_by_range(hub: LocalHub) -> None:
    path = local_path("org/model")
    assert path.name == "model"
    assert hub.sent < 5_000
    assert read_contents(path).tensors == read_contents(hub.root / "org" / "model").tensors
    assert equal(ws.load_checkpoint("org/model"), state(0))
    assert equal(ws.load_checkpoint("org/model@v1"), state(1))


def test_a_path_that_exists_comes_first(hub: LocalHub) -> None:
    ws.save_checkpoint(state(7), "org/model")
    assert equal(ws.load_checkpoint("org/model"), state(7))
    assert not hub.asked


def test_a_model_in_the_cache_is_taken_from_there(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = huggingface_hub.snapshot_download("org/model")
    huggingface_hub.snapshot_download("org/model", revision="v1")
    huggingface_hub.snapshot_download("org/lora")
    sent = hub.sent
    assert local_path("org/model") == Path(folder)
    assert equal(ws.load_checkpoint("org/model"), state(0))
    commit = Path(folder).name
    offline(monkeypatch)
    assert equal(ws.load_checkpoint("org/model"), state(0))
    assert equal(ws.load_checkpoint(f"org/model@{commit}"), state(0))
    assert equal(ws.load_checkpoint("org/model@v1"), state(1))
    assert {file.name for file in local_path("org/lora").iterdir()} >= {"adapter_config.json"}
    assert hub.sent == sent


def test_the_newest_commit_is_taken_where_the_hub_answers(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.snapshot_download("org/model")
    ws.save_checkpoint(state(5), hub.root / "org" / "model")
    assert equal(ws.load_checkpoint("org/model"), state(5))
    offline(monkeypatch)
    assert equal(ws.load_checkpoint("org/model"), state(0))


def test_a_hub_that_does_not_answer_is_as_no_network(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.snapshot_download("org/model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert equal(ws.load_checkpoint("org/model"), state(0))
    with pytest.raises(CheckpointError, match=r"does not answer .*`hf download org/lora` downloads it"):
        local_path("org/lora")


def test_files_beside_the_weights_that_the_cache_lacks_are_brought(hub: LocalHub) -> None:
    folder = Path(huggingface_hub.snapshot_download("org/model", allow_patterns=["model.safetensors"]))
    assert not (folder / "tokenizer.json").exists()
    assert local_path("org/model") == folder
    assert (folder / "tokenizer.json").is_file()


def test_a_model_that_is_there_in_part_is_read_by_range(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(huggingface_hub.snapshot_download("org/model", allow_patterns=["config.json"]))
    assert local_path("org/model") != folder
    assert equal(ws.load_checkpoint("org/model"), state(0))
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match="org/model is only partly cached, and HF_HUB_OFFLINE is set"):
        local_path("org/model")


def test_a_model_of_one_word_is_a_path_or_in_the_cache_or_on_the_hub(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert equal(ws.load_checkpoint("word"), state(0))
    assert equal(ws.load_checkpoint("word@v1"), state(1))
    folder = Path(huggingface_hub.snapshot_download("word"))
    assert folder.parents[1].name == "models--word"
    assert local_path("word") == folder
    offline(monkeypatch)
    assert equal(ws.load_checkpoint("word"), state(0))
    ws.save_checkpoint(state(7), "word")
    assert equal(ws.load_checkpoint("word"), state(7))


def test_a_model_of_one_word_is_found_in_the_cache_by_its_full_name(hub: LocalHub) -> None:
    folder = Path(huggingface_hub.snapshot_download("org/model"))
    sent = hub.sent
    assert local_path("word") == folder
    assert hub.sent == sent


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "word",
            r"^word does not exist here, and HF_HUB_OFFLINE is set; is the path right.*`hf download word` downloads it",
        ),
        ("modle.safetensors", r"^modle.safetensors does not exist. Expected a checkpoint file or folder; is the path"),
        ("./modle", r"modle does not exist. Expected a checkpoint file or folder; is the path right\?$"),
        ("word.v2", r"^word.v2 does not exist.* Models on the Hugging Face Hub are written as ORG/MODEL.$"),
        ("org/model", "org/model is not cached, and HF_HUB_OFFLINE is set.*`hf download org/model` downloads it"),
        ("org/model", r"The cache that was searched is /.*hub\.$"),
        ("org/model@v1", "`hf download org/model --revision v1`"),
    ],
)
def test_what_is_absent_offline_comes_with_the_command_that_fetches_it(
    source: str, message: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match=message) as error:
        ws.load_checkpoint(source)
    assert "\n" not in str(error.value)
    assert not hub.asked


def test_a_revision_that_is_absent_offline_is_told_from_those_that_are_there(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.snapshot_download("org/model", revision="v1")
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r"org/model has no revision main in the cache \(v1 is there\), and"):
        local_path("org/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    huggingface_hub.snapshot_download("org/model")
    offline(monkeypatch)
    message = r"no revision v3 in the cache \(main and v1 are there\).*`hf download org/model --revision v3`"
    with pytest.raises(CheckpointError, match=message):
        local_path("org/model@v3")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "^none is not a local path, and the Hugging Face Hub has no such model; is the path right"),
        ("org/none", "org/none is not a local path, and the Hugging Face Hub has no such model; is the path right"),
        ("org/model@v9", "org/model at the revision 'v9' is not a local path"),
        ("org/x--y", r"org/x--y does not exist. Is the path right\?"),
    ],
)
def test_what_the_hub_has_not_is_one_line(source: str, message: str, hub: LocalHub) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        local_path(source)
    assert "\n" not in str(error.value)


def test_private_models_need_the_token(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add("org/model")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(CheckpointError, match="HF_TOKEN"):
        local_path("org/model")
    monkeypatch.setenv("HF_TOKEN", "secret")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    assert equal(ws.load_checkpoint("org/model"), state(0))


def test_provenance_names_the_model_not_the_commit(hub: LocalHub) -> None:
    by_range = ws.checkpoints.provenance(["org/model"], "x", {})["inputs"]
    huggingface_hub.snapshot_download("org/model")
    assert ws.checkpoints.provenance(["org/model"], "x", {})["inputs"] == by_range
    assert '"model/model.safetensors"' in by_range
    shutil.rmtree(hub.root)
