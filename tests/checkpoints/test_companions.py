"""Files beside the weights: what belongs to a model comes along, and nothing of a user's is lost."""

import json
import os
from pathlib import Path

import pytest
import torch

from weightspace.checkpoints import StateDict, save_checkpoint
from weightspace.checkpoints.companion_files import (
    check_replaceable,
    copy_companions,
    find_companions,
    is_other_copy,
    is_tokenizer,
)
from weightspace.errors import CheckpointError

#: A text model with code of its own, a sentence encoder, a translation model, an image model, a speech model.
BELONGING = (
    *("config.json", "generation_config.json", "modeling_x.py", "configuration_x.py", "chat_template.jinja"),
    *("additional_chat_templates/tool_use.jinja", "modules.json", "config_sentence_transformers.json"),
    *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin"),
    *("source.spm", "target.spm", "vocab.json", "dict.txt", "bpe.codes", "vocab.bpe", "tokenizer.model.v3"),
    *("preprocessor_config.json", "normalizer.json", "tekken.json", "spk_stats.npy", "labels.csv", "LICENSE"),
    *("emoji.tiktoken", "assets/logo.svg", "mean_std.npz"),
    *("colbert_linear.pt", "sparse_linear.pt", "v_head.safetensors", "value_head.bin", "mm_projector.bin"),
    *("1_Dense/model.safetensors", "text_projection.pth", "speaker_embeddings.pt"),
)

LEFT = (
    *("pytorch_model-00001-of-00002.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx", "q4.gguf"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state.pth", "consolidated.00.pth"),
    *("ema.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.safetensors", "consolidated.safetensors"),
    *("custom_checkpoint_0.pkl", "random_states_0.pkl", "sampler.bin", "slurm-17.out", "lightning_logs/hparams.yaml"),
    *("checkpoint-500/config.json", "onnx/model.onnx", "original/params.json", "fp16/model.safetensors"),
)


def folder_of(path: Path, *names: str) -> Path:
    for name in ("model.safetensors", *names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("[]" if name == "modules.json" else name)
    return path


@pytest.mark.parametrize("name", BELONGING)
def test_companion_files_of_a_model_are_copied(name: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", name)
    assert find_companions(source).copied == (name,)
    (tmp_path / "out").mkdir()
    copy_companions(source, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == (source / name).read_text()


@pytest.mark.parametrize("name", LEFT)
def test_other_copies_of_the_weights_and_training_states_are_left_and_named(name: str, tmp_path: Path) -> None:
    companions = find_companions(folder_of(tmp_path / "a", name))
    assert companions.copied == ()
    assert companions.left == (f"{name.split('/')[0]}/" if "/" in name else name,)


@pytest.mark.parametrize(
    "name", [".git/HEAD", ".gitattributes", ".cache/x", "README.md", "model.safetensors.index.json"]
)
def test_hidden_files_and_the_card_are_no_part_of_a_model(name: str, tmp_path: Path) -> None:
    companions = find_companions(folder_of(tmp_path / "a", name))
    assert (companions.copied, companions.left) == ((), ())


def test_the_tokenizer_is_copied_alone_or_left_out(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "a", "config.json", "tokenizer.json", "tekken.json", "additional_chat_templates/x.jinja"
    )
    for tokenizer in (True, False):
        out = tmp_path / str(tokenizer)
        out.mkdir()
        copy_companions(source, out, tokenizer=tokenizer)
        files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert files == {name for name in find_companions(source).copied if is_tokenizer(name) == tokenizer}


def test_a_folder_may_be_written_again_with_the_files_of_its_donor(state: StateDict, tmp_path: Path) -> None:
    donor = folder_of(tmp_path / "a", "2_Dense/model.safetensors", "modeling_x.py", "statistics.npy")
    for _ in range(2):
        save_checkpoint(state, tmp_path / "out", companions_from=donor)
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["thesis.tex", "data/train.csv", "weights.safetensors", "run.py"])
def test_a_folder_with_a_file_of_the_users_is_not_replaced(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out", "config.json", name)
    with pytest.raises(CheckpointError, match=rf"holds '{name}', which is not part of a checkpoint"):
        check_replaceable(folder, ["config.json", "modeling_x.py"])


def test_the_configurations_of_listed_components_are_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out", "config.json", "1_Pooling/config.json")
    with pytest.raises(CheckpointError, match=r"holds '1_Pooling/config\.json'"):
        check_replaceable(folder)
    modules = [{"path": path, "type": f"m.{kind}"} for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))]
    (folder / "modules.json").write_text(json.dumps(modules))
    check_replaceable(folder)


@pytest.mark.parametrize("place", ["blobs/4f2a", ".git/annex/objects/4f/x.npz", "a/kept.npz", "other/statistics.npz"])
def test_links_of_snapshots_and_to_files_of_models_are_followed(place: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    folder_of(tmp_path / "other")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, tmp_path / place)
    (folder / "statistics.npz").symlink_to(tmp_path / place)
    assert "statistics.npz" in find_companions(folder).copied


@pytest.mark.parametrize("name", ["LICENSE", "config.json", "1_Pooling/config.json", "assets", "assets/inner"])
def test_links_that_lead_out_of_the_model_are_left_and_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "home" / "inner").mkdir(parents=True)
    (tmp_path / "home" / "secret").write_text("password")
    (tmp_path / "home" / "inner" / "secret").write_text("password")
    folder = folder_of(tmp_path / "a", "1_Pooling/kept.json", "assets/kept.json" if "/" in name else "notes.txt")
    target = tmp_path / "home" / ("" if "assets" in name else "secret")
    (folder / name).symlink_to(target)
    companions = find_companions(folder)
    assert name not in companions.copied
    assert not any("secret" in copied for copied in companions.copied)
    assert "/" in name or name in companions.left
    (tmp_path / "out").mkdir()
    copy_companions(folder, tmp_path / "out")
    assert not any(path.is_file() and path.read_text() == "password" for path in (tmp_path / "out").rglob("*"))


def test_a_folder_with_a_link_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out", "1_Pooling/config.json")
    (folder / "1_Pooling" / "mine").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds '1_Pooling/mine'"):
        check_replaceable(folder, ["1_Pooling/config.json"])


def test_other_copies_are_distinguished_from_files_that_should_be_copied() -> None:
    assert all(map(is_other_copy, ("optimizer.pt", "model.fp16.safetensors", "checkpoint-5/", "q4.gguf", "onnx/")))
    assert not any(map(is_other_copy, ("ema.safetensors", "voices/", "LICENSE")))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json", "vocab.txt", "LICENSE"])
@pytest.mark.parametrize("kind", ["pipe", "link to itself", "link to nothing"])
def test_files_of_the_model_that_cannot_be_read_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", name) / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "link to itself" else "nowhere")
    with pytest.raises(CheckpointError, match=f"{name} is (a broken link|not a regular file)"):
        find_companions(tmp_path / "a")


def test_dangling_links_under_other_names_are_not_copied(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "config.json")
    (tmp_path / "a" / "notes").symlink_to("nowhere")
    assert find_companions(tmp_path / "a").left == ("notes",)
