"""Declaration of a quantised format.

A format is one file. Its ``find`` sees names, dtypes and shapes, and returns the tensors that are stored in the format;
all others stay as they are, and are refused if they look quantised. It imports no torch; the decoders do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo


class Settings(NamedTuple):
    """The description of a checkpoint's quantisation in its configuration.

    Attributes:
        method: its name, such as ``fp8``; "" if nothing describes it.
        options: its content, such as ``{"weight_block_size": [128, 128]}``.
        evidence: the key or file that it comes from.
    """

    method: str = ""
    options: Mapping[str, Any] = {}
    evidence: str = ""


def _nothing(name: str) -> None:
    """Return None: no content is available."""


@dataclass(frozen=True)
class Stored:
    """The stored tensors of a checkpoint.

    Attributes:
        tensors: name -> dtype and shape.
        settings: description of the quantisation.
        content: returns the bytes of a small tensor, or None if they aren't available.
        modules: name of a module -> last part of the name -> full name of its tensors.
    """

    tensors: Mapping[str, TensorInfo]
    settings: Settings
    content: Callable[[str], bytes | None] = _nothing
    modules: Mapping[str, Mapping[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        """Group the tensors by module."""
        modules: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            module, _, last = name.rpartition(".")
            modules.setdefault(module, {})[last] = name
        object.__setattr__(self, "modules", modules)


class Found(NamedTuple):
    """A quantised tensor as a format finds it.

    Attributes:
        name: the name of the tensor that it represents.
        format: the format, for messages: ``FP8, a scale per tensor``.
        shape: its shape.
        parts: role -> name of the stored tensor.
        settings: further arguments of the decoder.
        left_out: names of stored tensors that belong to it but don't affect its values.
        overhead: bytes that reading a range needs in addition to its elements as float32.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    settings: Mapping[str, Any] = {}
    left_out: tuple[str, ...] = ()
    overhead: int = 0


class Format(NamedTuple):
    """A quantised format that is read.

    Attributes:
        title: its name, for messages.
        methods: values of ``quant_method`` in configurations that go with it; "" is a checkpoint without one.
        find: returns the tensors of a checkpoint that are stored in the format.
        decoder: returns a reader of a tensor's values in float32, from readers of its parts by role.
        refusal: returns why settings are not supported, or None; by default all are.
    """

    title: str
    methods: frozenset[str]
    find: Callable[[Stored], list[Found]]
    decoder: Callable[[Mapping[str, Any], QuantisedTensor], Any]
    refusal: Callable[[Settings], str | None] = lambda settings: None
