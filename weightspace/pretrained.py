"""Load networks and tokenizers from Hugging Face folders. The only module that imports transformers.

Networks are built without weights, on torch's ``meta`` device. Each module's weights are loaded when it runs and
released afterwards, so that a network of any size runs in the memory of its largest module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder; code in the folder is never run.

    Raises:
        WeightspaceError: transformers isn't installed, or cannot read a tokenizer from the folder.
    """
    transformers = _transformers()
    try:
        with _quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise WeightspaceError(f"transformers cannot read a tokenizer from {folder}: {_first_line(error)}.") from error


def build_empty(folder: Path) -> nn.Module:
    """Build the network of a folder's configuration without its head, on ``meta``, in evaluation mode.

    Raises:
        WeightspaceError: transformers isn't installed, or cannot build this network.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            network = transformers.AutoModel.from_config(config, trust_remote_code=False)
        _compute_buffers(network)
    except Exception as error:
        raise WeightspaceError(f"transformers cannot build the network of {folder}: {_first_line(error)}.") from error
    return network.eval()


@dataclass(frozen=True)
class Loaded:
    """The loading report of transformers for a folder.

    Attributes:
        network: name of the network's class.
        parameters: number of its parameter tensors.
        missing: names of the network's tensors that the folder lacks.
        unexpected: names of the folder's tensors that the network lacks.
        mismatched: names of tensors whose shapes differ.
    """

    network: str
    parameters: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_on_meta(folder: Path) -> Loaded:
    """Load a folder on ``meta``, without allocating weights, as the class named in its configuration.

    Raises:
        WeightspaceError: transformers isn't installed, or cannot load the folder.
    """
    network, info = _loaded(folder, device_map="meta", ignore_mismatched_sizes=True, output_loading_info=True)
    return Loaded(
        type(network).__name__,
        sum(1 for _ in network.parameters()),
        *(tuple(map(_name_of, info.get(f"{key}_keys", ()))) for key in ("missing", "unexpected", "mismatched")),
    )


def run_once(folder: Path, name: str) -> tuple[bool | None, str]:
    """Run a folder's network on a few tokens and check that its outputs are finite.

    Args:
        folder: the folder.
        name: name of the network's class, for the message.

    Returns:
        Whether all outputs are finite, or None if the network was not run; and the reason why it was not run.
    """
    network = _loaded(folder)
    try:
        inputs = dict(network.dummy_inputs)
        size = network.config.get_text_config().vocab_size
        inputs = {key: value % size if not value.is_floating_point() else value for key, value in inputs.items()}
        with torch.no_grad():
            outputs = network.eval()(**inputs)
    except Exception as error:
        return None, f"not run: {name} takes inputs other than tokens ({type(error).__name__})"
    tensors = [value for value in outputs.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return all(bool(value.isfinite().all()) for value in tensors), ""


def _loaded(folder: Path, **options: Any) -> Any:
    """Load a folder as the class named in its configuration; code in the folder is never run."""
    transformers = _transformers()
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            named = (config.architectures or [""])[0]
            network = getattr(transformers, named, transformers.AutoModel)
            options[_dtype_option(transformers)] = "auto"
            return network.from_pretrained(folder, config=config, local_files_only=True, **options)
    except Exception as error:
        raise WeightspaceError(f"transformers cannot load {folder}: {_first_line(error)}.") from error


def _dtype_option(transformers: ModuleType) -> str:
    """Return the name of ``from_pretrained``'s dtype argument in this release."""
    return "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Silence the logging and progress bars of transformers."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = getattr(logging, "is_progress_bar_enabled", lambda: False)()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _name_of(key: Any) -> str:
    """Return a key listed by transformers as text, with its shapes if they are given."""
    if isinstance(key, str):
        return key
    name, *shapes = key
    return f"{name} ({' and '.join(str(tuple(shape)) for shape in shapes)})"


@contextmanager
def streamed_weights(network: nn.Module, read: Callable[[str], Tensor]) -> Iterator[None]:
    """Load the parameters of each module when it runs, and release them afterwards.

    Args:
        network: a network on ``meta``.
        read: returns a parameter by its name in the network.
    """
    handles = []
    for prefix, module in network.named_modules():
        empty = dict(module.named_parameters(recurse=False))
        if empty:
            names = {name: f"{prefix}.{name}" if prefix else name for name in empty}
            handles.append(module.register_forward_pre_hook(_load_hook(names, read)))
            handles.append(module.register_forward_hook(_release_hook(empty), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _load_hook(names: dict[str, str], read: Callable[[str], Tensor]) -> Callable[..., None]:
    def load(module: nn.Module, _: object) -> None:
        for name, full in names.items():
            module._parameters[name] = nn.Parameter(read(full), requires_grad=False)

    return load


def _release_hook(empty: dict[str, nn.Parameter]) -> Callable[..., None]:
    def release(module: nn.Module, *_: object) -> None:
        module._parameters.update(empty)

    return release


def _compute_buffers(network: nn.Module) -> None:
    """Compute buffers that are not stored in files (rotary frequencies) by rebuilding their modules off ``meta``."""
    for name, module in list(network.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            config = getattr(module, "config", None)
            if config is None:
                raise WeightspaceError(f"the buffers of {name} cannot be computed")
            network.set_submodule(name, type(module)(config=config))


def _transformers() -> ModuleType:
    try:
        import transformers
    except Exception as error:
        raise WeightspaceError(
            "This needs transformers, which cannot be imported: pip install 'weightspace[transformers]'."
        ) from error
    return transformers


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
