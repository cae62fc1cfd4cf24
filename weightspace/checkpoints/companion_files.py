"""The files beside the weights in a model's folder: those to copy into a new folder, and those to leave behind.

Everything else in the folder belongs to the model (configuration, tokenizer, code, pooling modules with their own
weights) and is copied. The same weights in other formats, training state, and links that point outside, which may be
malicious, are left behind and reported. Hidden files (``.git``) aren't part of a model.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors, synced_file
from weightspace.checkpoints.components import Component, find_components, listed_folders
from weightspace.checkpoints.file_format import MODULES, PIPELINE
from weightspace.checkpoints.hf_folder import CARD, DIFFUSERS, ENTRANCES, PROVENANCE
from weightspace.errors import CheckpointError

#: Files and folders of weights in any format, of this or another library.
_WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pth.tar", "*.index.json"),
    *("*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.onnx.data", "*.ot", "*.tflite"),
    *("*.mlmodel", "*.mlpackage", "*.engine", "model.ckpt*", "openvino_model.xml", "*.tar", "*.zip"),
    "adapter_config.json",  # transformers would load the adapter's base instead of the model
)
_WEIGHT_FOLDERS = ("onnx", "openvino", "coreml", "original", "gguf", "tflite", "tensorrt", "*.mlpackage")

#: Training artefacts: state and logs.
_TRAINING = (
    *("optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "trainer_state.json"),
    *("training_args*", "zero_to_fp32.py", "latest", "events.out.tfevents*", "trainer_log.jsonl", "all_results.json"),
    *("train_results.json", "eval_results.json", "training_loss.png", "*.log", "nohup.out", "slurm-*.out"),
    *("custom_checkpoint_*.pkl", "sampler*.bin", "dl_state_dict*"),
)
_TRAINING_FOLDERS = (
    *("checkpoint-*", "global_step*", "runs", "wandb", "logs", "tensorboard", "__pycache__", "lightning_logs"),
    *("tb_logs", "mlruns", "optimizer_*", "pytorch_model_fsdp*"),
)

#: Weights of heads after the network, in separate files: vectors of BGE-M3, value heads of reinforcement learning,
#: projectors of vision models.
_HEADS = (
    *("*linear.*", "*head.*", "*proj.*", "*projector.*", "*projection.*", "*dense.*", "*pooler.*", "*pooling.*"),
    *("*embeddings.*", "prompt*.*", "*voice*.*", "*speaker*.*"),
)

#: Folders that a model's files may link to: the Hub's cache, git-annex.
_STORES = ("blobs", "annex")

#: Folders of modules after the network, numbered by sentence-transformers, with their own weights.
_MODULE = re.compile(r"\d+_\w+")

#: The tokenizer's files.
_TOKENIZER = (
    *("tokenizer*", "tokenization_*.py", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *("vocab*", "merges.txt", "bpe.codes", "dict*.txt", "*.tiktoken", "*.spm", "spiece.model", "sentencepiece*.model"),
    *("*.model", "encoder.json", "rwkv_vocab*", "tekken.json", "chat_template*", "additional_chat_templates/*"),
)

#: Other files, besides weights and tokenizer, that a folder to replace may hold.
_REPLACEABLE = (
    *ENTRANCES,
    *("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"),
    *("config.json", "generation_config.json", "open_clip_config.json", "quantization_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor*.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "LICENSE*"),
    *("configuration_*.py", "modeling_*.py", "processing_*.py", "image_processing_*.py"),
    *(PIPELINE, PROVENANCE, CARD),
)


@dataclass(frozen=True)
class Companions:
    """The files beside the weights of a folder, as paths relative to it, with ``/``.

    Attributes:
        copied: files that belong to the model.
        left: files and folders that don't.
    """

    copied: tuple[str, ...]
    left: tuple[str, ...]


def find_companions(folder: Path, components: Sequence[Component] | None = None) -> Companions:
    """Return the files beside the weights of a folder.

    Args:
        folder: a model's folder.
        components: the components whose weights are read; None: all that have some, if any. The others are copied.

    Raises:
        CheckpointError: the folder cannot be read, or a file of the model isn't a regular file.
    """
    copied: list[str] = []
    left: list[str] = []
    listed = set(listed_folders(folder).values())
    if components is None:
        components = find_components(folder) if listed else ()
    weights, merged = _weights_of(components), {one.folder for one in components}
    whole = find_components(folder) if "" in {*listed} - merged else ()  # its own weights are copied
    kept = _weights_of([one for one in whole if not one.folder])
    with one_line_errors(folder, "read"):
        for path in sorted(folder.iterdir()):
            name = path.name
            if name in kept and not _leads_out(path):
                copied.append(name)
                continue
            if name.startswith(".") or name in (CARD, PROVENANCE) or name in weights or _is_entrance(name):
                continue
            if _leads_out(path):
                left.append(name)
            elif path.is_dir():
                inside, others = _companions_in(path, weights, is_merged=name in merged, is_listed=name in listed)
                copied.extend(inside)
                left.extend(others)
            elif is_companion(name) and (path.is_file() or _matches(name, (*_REPLACEABLE, *_TOKENIZER))):
                copied.append(name)
            else:
                left.append(name)
        for name in copied:
            _check_regular(folder / name)
    return Companions(tuple(copied), tuple(left))


def _weights_of(components: Sequence[Component]) -> set[str]:
    """Return the files that hold or index the weights of components, as relative paths."""
    return {f"{one.path}{file.name}" for one in components for file in (one.weights.entrance, *one.weights.files)}


def _companions_in(
    folder: Path, weights: Collection[str], *, is_merged: bool, is_listed: bool
) -> tuple[list[str], list[str]]:
    """Return the files in a subfolder that belong to the model, and those that don't, as paths relative to the model.

    Args:
        folder: the subfolder.
        weights: files of weights that are read.
        is_merged: whether it is a component whose weights are read.
        is_listed: whether it is a component.
    """
    inside = [f"{folder.name}/{file}" for file in _files_in(folder)] if may_hold_companions(folder.name) else []
    if is_merged:
        own = [file for file in inside if is_companion(file.rpartition("/")[2])]
        return own, [file for file in inside if file not in {*own, *weights}]
    if inside and (is_listed or is_in_companion_folder(inside[0], inside)):
        return inside, []
    return [], [f"{folder.name}/"]


def _is_entrance(name: str) -> bool:
    """Return whether a file leads to the weights of a PyTorch model of transformers, possibly in another format."""
    return name in ENTRANCES and not name.startswith((DIFFUSERS, "flax"))


def _check_regular(path: Path) -> None:
    """Check that a file of a model can be copied.

    Raises:
        CheckpointError: it is a pipe, a device, or a broken link.
    """
    if not path.is_file():
        what = "a broken link" if path.is_symlink() else "not a regular file"
        raise CheckpointError(f"{path} is {what}; expected a file that belongs to the model. Copy the model again.")


def is_companion(name: str) -> bool:
    """Return whether a file of this name beside the weights belongs to the model."""
    return not (name.startswith(".") or name in (CARD, PROVENANCE, *ENTRANCES) or is_left(name))


def may_hold_companions(folder: str) -> bool:
    """Return whether files in a subfolder of this name may belong to the model."""
    return not folder.startswith(".") and not is_left(folder, folder=True)


def is_in_companion_folder(name: str, names: Collection[str]) -> bool:
    """Return whether a file ``FOLDER/NAME`` belongs to the model.

    Args:
        name: name of the file.
        names: names of all files in the model's folder.
    """
    folder, nested, _ = name.partition("/")
    if not nested or not may_hold_companions(folder):
        return False
    inside = [other for other in names if other.startswith(f"{folder}/")]
    return bool(_MODULE.fullmatch(folder)) or not any(_matches(other, _WEIGHTS) for other in inside)


def is_left(name: str, *, folder: bool = False) -> bool:
    """Return whether a file (or folder) of this name beside the weights isn't part of the model."""
    if folder:
        return _matches(name, (*_WEIGHT_FOLDERS, *_TRAINING_FOLDERS))
    return _matches(name, _TRAINING) or (_matches(name, _WEIGHTS) and not is_head(name))


def is_head(name: str) -> bool:
    """Return whether a file of this name beside the weights holds the weights of a head after the network."""
    return _matches(name, _WEIGHTS) and _matches(name.lower(), _HEADS)


def is_other_copy(name: str) -> bool:
    """Return whether a file or folder left behind is known training state, or another copy of the weights."""
    known = (*_TRAINING, *_TRAINING_FOLDERS, *_WEIGHT_FOLDERS, "*model*", "consolidated*", "*.gguf", "*.onnx*", "*.h5")
    return _matches(name.rstrip("/"), known)


def is_tokenizer(name: str) -> bool:
    """Return whether a file of this name is part of a tokenizer."""
    return _matches(name, _TOKENIZER)


def copy_companions(
    source: Path, folder: Path, names: Collection[str] | None = None, *, tokenizer: bool | None = None
) -> None:
    """Copy files beside the weights of one folder into another, replacing existing ones.

    Args:
        source: a model's folder.
        folder: the new folder.
        names: the files, as relative paths; by default all that ``find_companions`` finds.
        tokenizer: True for the tokenizer only, False for everything else, None for everything.

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    for name in find_companions(source).copied if names is None else names:
        if tokenizer is None or is_tokenizer(name) == tokenizer:
            target = folder / name
            with one_line_errors(source / name, "copied"):
                target.parent.mkdir(exist_ok=True, parents=True)
                target.unlink(missing_ok=True)
                with open(source / name, "rb") as original, synced_file(target) as copy:
                    shutil.copyfileobj(original, copy)


def check_replaceable(folder: Path, again: Collection[str] = ()) -> None:
    """Check that nothing but a checkpoint is lost when the folder is replaced.

    Args:
        folder: folder to replace; it need not exist.
        again: files that the new folder will hold as well, as paths relative to it.

    Raises:
        CheckpointError: the path is a file, or the folder holds something that isn't part of a checkpoint.
    """
    with one_line_errors(folder, "written"):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; expected a folder, or a name that ends in .safetensors or .pt.")
        paths = sorted(folder.iterdir())
        if paths and not any((folder / name).is_file() for name in (*ENTRANCES, PIPELINE, MODULES)):
            raise CheckpointError(
                f"{folder} exists and is not a checkpoint: it holds {paths[0].name!r}. Choose a new folder."
            )
        files = [path.name for path in paths if not path.is_dir()]
        nested = [
            f"{path.name}/{file}" for path in paths if path.is_dir() for file in _files_in(path, links=True) or [""]
        ]
        own = _files_of_components(folder)
        for name in (*files, *nested):
            if name not in (*again, *own) and not _matches(name, (*_REPLACEABLE, *_TOKENIZER)):
                raise CheckpointError(
                    f"{folder} exists and holds {name.rstrip('/')!r}, which is not part of a checkpoint "
                    "and would be lost. Choose a new folder, or move that file away."
                )


def _files_of_components(folder: Path) -> tuple[str, ...]:
    """Return the weight files, indices and configurations of a folder's components; none if some are damaged."""
    try:
        listed = listed_folders(folder)
        weights = _weights_of(find_components(folder) if listed else ())
    except CheckpointError:
        return ()
    return (*weights, *(f"{path}/config.json" for path in listed.values()))


def _files_in(folder: Path, *, links: bool = False) -> list[str]:
    """Return the files in a folder and its subfolders, except hidden ones, as relative paths with ``/``.

    Args:
        folder: folder to search.
        links: include all links; otherwise only those that stay within the model.
    """
    return sorted(_walk(folder, links=links))


def _walk(folder: Path, *, links: bool) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            if not name.startswith(".") and (links or not _leads_out(path)):
                yield path.relative_to(folder).as_posix()


def _leads_out(path: Path) -> bool:
    """Return whether a path is a link that points outside its folder, other models' folders and known stores."""
    if not path.is_symlink() or not path.exists():
        return False
    target = Path(os.path.realpath(path))
    if not target.is_file():
        return True
    stored = not set(_STORES).isdisjoint(target.parts) or any((target.parent / name).is_file() for name in ENTRANCES)
    return not stored and not target.is_relative_to(os.path.realpath(path.parent))


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
