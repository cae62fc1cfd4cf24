"""Networks and tokenizers of Hugging Face folders, as the transformers library has them: its only door.

Networks are built without weights, on torch's ``meta`` device; weights are brought when a module runs, and forgotten
behind it, so that a network of any size runs in the memory of its largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder; no code that comes with it is run.

    Raises:
        WeightspaceError: transformers isn't installed, or the folder has no tokenizer that it reads.
    """
    transformers = _transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise WeightspaceError(f"{folder} has no tokenizer that transformers reads: {_said(error)}.") from error


def build_empty(folder: Path) -> nn.Module:
    """Return the network of a folder's configuration without its head, on ``meta``, in evaluation mode.

    Raises:
        WeightspaceError: transformers isn't installed, or does not build this network.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            network = transformers.AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
        _compute_buffers(network)
    except Exception as error:
        raise WeightspaceError(f"transformers does not build the network of {folder}: {_said(error)}.") from error
    return network.eval()


@contextmanager
def streamed_weights(network: nn.Module, read: Callable[[str], Tensor]) -> Iterator[None]:
    """Bring the parameters of each module when it runs, and forget them behind it.

    Args:
        network: on ``meta``.
        read: returns a parameter by its name in the network.
    """
    handles = []
    for prefix, module in network.named_modules():
        empty = dict(module.named_parameters(recurse=False))
        if empty:
            names = {name: f"{prefix}.{name}" if prefix else name for name in empty}
            handles.append(module.register_forward_pre_hook(_bringing(names, read)))
            handles.append(module.register_forward_hook(_forgetting(empty), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bringing(names: dict[str, str], read: Callable[[str], Tensor]) -> Callable[..., None]:
    def bring(module: nn.Module, _: object) -> None:
        for name, full in names.items():
            module._parameters[name] = nn.Parameter(read(full), requires_grad=False)

    return bring


def _forgetting(empty: dict[str, nn.Parameter]) -> Callable[..., None]:
    def forget(module: nn.Module, *_: object) -> None:
        module._parameters.update(empty)

    return forget


def _compute_buffers(network: nn.Module) -> None:
    """Compute the buffers that no file holds, rotary frequencies, by building their modules again off ``meta``."""
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


def _said(error: BaseException) -> str:
    """Return an error's first line without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
